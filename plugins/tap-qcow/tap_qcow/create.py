"""Making images: laid out as QEMU does, or as blktap did."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from tap_qcow import layout
from tap_qcow.header import HEADER, Header, encode_name
from tap_qcow.layout import Geometry
from tapcore import (
    SECTOR_SHIFT,
    Keys,
    Measurement,
    NotSupportedError,
    UsageError,
    create_host_file,
    open_host_file,
    remove_host_file,
)

LARGEST: Final = layout.MAX_L1_BYTES // 8 << (12 + 9)
"""Bytes of the largest disk that is made here: 16 TiB, as `STANDALONE` and as `CHILD`."""


def encryption(options: Mapping[str, str]) -> int:
    """The header's encryption method that options ask for.

    Raises:
        UsageError: they make no sense, or the passphrase cannot be read.
    """
    method, key_file = options.get("encrypt.format", ""), options.get("encrypt.key-file", "")
    if not method:
        if key_file:
            raise UsageError("encrypt.key-file is given without encrypt.format=aes")
        return layout.CRYPT_NONE
    if method != "aes":
        raise UsageError(f"'{method}' is not a value of the option 'encrypt.format' (allowed: aes)")
    if not key_file:
        raise UsageError("encrypt.format=aes needs encrypt.key-file=FILE")
    Keys.from_words((key_file,))  # nothing of it is stored, but it must be usable
    return layout.CRYPT_AES


def check_size(size: int | None) -> int:
    """The size (bytes) of a new disk.

    Raises:
        UsageError: it cannot have that size.
    """
    if size is None:
        raise UsageError("a new image needs a size (for example 10G)")
    if not 0 < size <= LARGEST:
        raise UsageError(f"a qcow disk has from 512 bytes to {LARGEST >> 40} TiB")
    return size


def new_header(size: int, parent: str, crypt_method: int) -> Header:
    """The header of an image as QEMU lays it out: header, parent's name, L1 table."""
    name = encode_name(parent)
    return Header(
        layout.CHILD if name else layout.STANDALONE,
        size,
        l1_offset=(HEADER.size + len(name) + 7) & -8,
        backing_file=parent,
        backing_offset=HEADER.size if name else 0,
        crypt_method=crypt_method,
    )


def write_image(path: str, header: Header, length: int) -> None:
    """Make the file; its L1 table is empty.

    Args:
        path: of the new file.
        header: to be written, with its extension and the parent's name.
        length: of the file, bytes.

    Raises:
        OSError, TapError: nothing is left behind.
    """
    if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
        raise NotSupportedError(
            "a qcow image grows while it is used: it needs a file, not a device"
        )
    create_host_file(path, length)
    try:
        with os.fdopen(open_host_file(path, writing=True), "r+b") as file:
            file.write(header.pack())
            if header.xen is not None:
                file.write(header.xen.pack())
            if header.backing_file:
                file.seek(header.backing_offset)
                file.write(encode_name(header.backing_file))
    except BaseException:
        remove_host_file(path)
        raise


def l1_end(header: Header, unit: int = 1 << SECTOR_SHIFT) -> int:
    """Where a new image's file ends: behind the L1 table, which takes whole units (bytes)."""
    return header.l1_offset + -(-header.l1_bytes // unit) * unit


def measure(size: int, data: Iterable[tuple[int, int]]) -> Measurement:
    """How large an image without a parent is that holds data; arguments as the hook's."""
    header = new_header(size, "", layout.CRYPT_NONE)
    geometry = header.geometry
    clusters = tables = 0
    next_cluster = next_table = 0
    for start, length in data:
        if not length:
            continue
        first, last = start >> geometry.cluster_bits, (start + length - 1) >> geometry.cluster_bits
        clusters += last + 1 - max(first, next_cluster)
        next_cluster = last + 1
        last_table = last >> geometry.l2_bits
        tables += last_table + 1 - max(first >> geometry.l2_bits, next_table)
        next_table = last_table + 1
    empty = l1_end(header)
    whole = -(-size // geometry.cluster_size)
    return Measurement(
        _file_size(geometry, empty, tables, clusters),
        _file_size(geometry, empty, geometry.l1_entries(size), whole),
    )


def _file_size(geometry: Geometry, empty: int, tables: int, clusters: int) -> int:
    if not clusters:
        return empty
    return geometry.align(empty) + tables * geometry.table_bytes + clusters * geometry.cluster_size
