"""Making new images: the first clusters, and what is allocated from the start."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from tap_qcow2.image import format_name
from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tapcore import (
    DiskId,
    UsageError,
    create_host_file,
    host_file_size,
    open_host_file,
    parse_size,
    plain_name,
    read_key_file,
    remove_host_file,
)

_SIZE_LIMIT: Final = "a disk of this size needs larger clusters (cluster_size)"


@attrs.define
class Plan:
    """What is to be made.

    Attributes:
        header: with everything that does not depend on where the tables come to lie.
        preallocation: "off", "metadata", "falloc" or "full".
        key_file: with the passphrase, where the image is encrypted.
    """

    header: Header
    preallocation: str = "off"
    key_file: str = ""


def create(name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]) -> None:
    """Make an image, replacing what is at `name`.

    Args:
        name: path of the new file.
        size: virtual size in bytes.
        parent: to be recorded.
        options: as `disk_info.create_options`, their choices checked.

    Raises:
        TapError, OSError: nothing is left behind.
    """
    if size is None:
        raise UsageError("a new image needs a size")
    plan = plan_image(size, parent, options)
    head = plan.header.data_file
    secret = read_key_file(plan.key_file) if plan.key_file else b""
    create_host_file(name, 0)
    try:
        if head:
            _make_data_file(name, plan, size)
        _write_first_clusters(name, plan, secret)
        if plan.preallocation != "off":
            from tap_qcow2.create.preallocation import preallocate

            preallocate(name, plan.preallocation)
    except BaseException:
        remove_host_file(name)
        raise


def plan_image(size: int, parent: DiskId | None, options: Mapping[str, str]) -> Plan:
    """Check options and their combination.

    Raises:
        UsageError: a value, or two together, that are not possible.
    """
    header = Header(size=size)
    header.version = 2 if options.get("compat", "1.1") == "0.10" else 3
    header.cluster_bits = cluster_bits(options.get("cluster_size", "64K"))
    header.refcount_order = refcount_order(options.get("refcount_bits", "16"))
    if options.get("lazy_refcounts") == "on":
        header.compatible |= layout.COMPAT_LAZY_REFCOUNTS
    if options.get("extended_l2") == "on":
        header.incompatible |= layout.INCOMPAT_EXTENDED_L2
        if header.cluster_bits < layout.MIN_EXTENDED_CLUSTER_BITS:
            raise UsageError("extended_l2 needs a cluster_size of at least 16K")
    if options.get("compression_type") == "zstd":
        header.compression_type = layout.COMPRESSION_NAMES.index("zstd")
        header.incompatible |= layout.INCOMPAT_COMPRESSION
    _plan_data_file(header, options)
    if parent is not None:
        header.backing_file, header.backing_format = parent.name, format_name(parent)
    plan = Plan(header, options.get("preallocation", "off"))
    _plan_encryption(plan, options)
    _check_together(plan, parent)
    header.l1_size = max(header.geometry.l1_entries(size), 1)
    if header.l1_size * 8 > layout.MAX_L1_BYTES:
        raise UsageError(_SIZE_LIMIT)
    header.serialize()  # raises where names are too long
    return plan


def cluster_bits(text: str) -> int:
    """log2 of `cluster_size`."""
    size = parse_size(text)
    bits = size.bit_length() - 1
    if size != 1 << max(bits, 0) or not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
        raise UsageError("cluster_size must be a power of two from 512 to 2M")
    return bits


def refcount_order(text: str) -> int:
    """log2 of `refcount_bits`."""
    if text not in ("1", "2", "4", "8", "16", "32", "64"):
        raise UsageError("refcount_bits must be a power of two from 1 to 64")
    return int(text).bit_length() - 1


def _plan_data_file(header: Header, options: Mapping[str, str]) -> None:
    header.data_file = plain_name(options.get("data_file", ""))
    raw = options.get("data_file_raw") == "on"
    if raw and not header.data_file:
        raise UsageError("data_file_raw needs a data_file")
    if header.data_file:
        header.incompatible |= layout.INCOMPAT_DATA_FILE
    if raw:
        header.autoclear |= layout.AUTOCLEAR_DATA_FILE_RAW


def _plan_encryption(plan: Plan, options: Mapping[str, str]) -> None:
    plan.key_file = options.get("encrypt.key-file", "")
    if options.get("encrypt.format") != "luks":
        if plan.key_file:
            raise UsageError("encrypt.key-file needs encrypt.format=luks")
        return
    if not plan.key_file:
        raise UsageError("encrypt.format=luks needs encrypt.key-file=FILE")
    plan.header.crypt_method = layout.CRYPT_LUKS
    plan.header.crypto = (0, 0)


def _check_together(plan: Plan, parent: DiskId | None) -> None:
    header = plan.header
    if header.version == 2:
        wrong = [
            name
            for name, wanted in (
                ("lazy_refcounts", header.lazy_refcounts),
                ("refcount_bits", header.refcount_order != 4),
                ("extended_l2", header.extended_l2),
                ("compression_type", header.compression_type),
                ("data_file", header.has_data_file),
            )
            if wanted
        ]
        if wrong:
            raise UsageError(f"{', '.join(wrong)} needs compat=1.1")
    if header.data_file_raw and parent is not None:
        raise UsageError("data_file_raw and a parent exclude each other")
    if header.has_data_file and header.crypt_method:
        raise UsageError("data_file and encryption exclude each other")
    if plan.preallocation not in ("off", "metadata") and header.crypt_method:
        raise UsageError("an encrypted image can have preallocation=metadata at most")
    if plan.preallocation != "off" and header.crypt_method and header.version == 2:
        raise UsageError("encryption with preallocation needs compat=1.1")  # zero clusters
    if plan.preallocation != "off" and parent is not None and not header.extended_l2:
        raise UsageError("preallocation would hide the parent (except with extended_l2)")


def _make_data_file(name: str, plan: Plan, size: int) -> None:
    path = os.path.join(os.path.dirname(name), plan.header.data_file)
    if os.path.realpath(path) == os.path.realpath(name):
        raise UsageError("its data file cannot be the image itself")
    how = plan.preallocation if plan.preallocation in ("falloc", "full") else "off"
    # on a device its old content would show: at once, or where clusters are given out by and by
    shows = plan.header.data_file_raw or plan.preallocation != "off"
    create_host_file(path, size, how, zeroed=shows)


def _write_first_clusters(name: str, plan: Plan, secret: bytes) -> None:
    """Header, refcount table and blocks, L1 table, LUKS header: one behind the other."""
    header = plan.header
    size = 1 << header.cluster_bits
    luks = _luks_header(secret) if header.crypt_method == layout.CRYPT_LUKS else b""
    l1_clusters = -(-header.l1_size * 8 // size)
    luks_clusters = -(-len(luks) // size)
    table_clusters, blocks = _refcount_clusters(header, 1 + l1_clusters + luks_clusters)
    at = 1
    header.refcount_table_offset = at * size
    header.refcount_table_clusters = table_clusters
    at += table_clusters
    first_block = at
    at += blocks
    header.l1_table_offset = at * size
    at += l1_clusters
    if luks:
        header.crypto = (at * size, len(luks))
    table = bigendian.zeroes(blocks)
    for number in range(blocks):
        table[number] = (first_block + number) * size
    used = at + luks_clusters
    with _writing(name) as fd:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            os.ftruncate(fd, used * size)
        elif host_file_size(fd) < used * size:
            raise UsageError("the block device is too small for the image's tables")
        else:
            _zero(fd, used * size)
        for number, content in enumerate(_full_blocks(header, used, blocks)):
            os.pwrite(fd, content, (first_block + number) * size)
        os.pwrite(fd, bigendian.to_bytes(table), header.refcount_table_offset)
        if luks:
            os.pwrite(fd, luks, at * size)
        os.fsync(fd)
        os.pwrite(fd, header.serialize(), 0)  # last: before that it is no image
        os.fsync(fd)


def _zero(fd: int, length: int) -> None:
    """What a device held must not be taken for tables."""
    zeroes = bytes(1 << 20)
    for at in range(0, length, len(zeroes)):
        os.pwrite(fd, zeroes[: length - at], at)


def _luks_header(secret: bytes) -> bytes:
    from tapcore.luks import create_luks

    content, _ = create_luks(secret)
    return content


def _refcount_clusters(header: Header, others: int) -> tuple[int, int]:
    """Clusters of the refcount table, and blocks, that count themselves and `others` clusters."""
    bits = header.cluster_bits
    per_block = 1 << (bits + 3 - header.refcount_order)
    table, blocks = 1, 1
    while True:
        need_blocks = -(-(others + table + blocks) // per_block)
        need_table = -(-need_blocks * 8 // (1 << bits))
        if need_blocks <= blocks and need_table <= table:
            return table, blocks
        table, blocks = max(table, need_table), max(blocks, need_blocks)


def _full_blocks(header: Header, used: int, blocks: int) -> Iterator[bytes]:
    """Refcount blocks in which the first `used` clusters have a refcount of one."""
    per_block = 1 << (header.cluster_bits + 3 - header.refcount_order)
    for number in range(blocks):
        block = RefcountBlock.empty(header.refcount_order, 0, per_block)
        for at in range(min(max(used - number * per_block, 0), per_block)):
            block.values[at] = 1
        yield block.serialize()


@contextlib.contextmanager
def _writing(name: str) -> Iterator[int]:
    fd = open_host_file(name, writing=True)
    try:
        yield fd
    finally:
        os.close(fd)
