"""Making new disks of every kind that can be written."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from tap_vmdk import sparse
from tap_vmdk.descriptor import NO_PARENT, Descriptor, ExtentLine, random_cid
from tap_vmdk.newdisk import NewDisk, new_disk
from tap_vmdk.options import MONOLITHIC_FLAT, MONOLITHIC_SPARSE, SPLIT_FLAT, SPLIT_SPARSE, STREAM
from tap_vmdk.parents import cid_of
from tap_vmdk.sparse import SparseHeader
from tap_vmdk.superseded import superseded_extents
from tap_vmdk.tables import raw32, round_up, words32
from tapcore import (
    DiskId,
    NotSupportedError,
    UsageError,
    create_host_file,
    open_host_file,
    remove_host_file,
    supersede_host_file,
)

SPLIT_SECTORS: Final = 4192256
"""Of an extent of a split disk: 2047 MiB, as VMware splits."""
STREAM_NAME: Final = "generated-stream.vmdk"
"""What a stream calls itself where its name is not known, as VMware does. Programs that look for
the file by this name (Sleuth Kit) do not open it then."""
DESCRIPTOR_SECTORS: Final = 20
"""Reserved in a sparse file."""


def create_image(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """As `td_create`."""
    parent_cid = NO_PARENT
    if parent is not None:
        if parent.drivertype not in ("", "vmdk"):
            raise UsageError("the parent of a VMDK must be a VMDK", image=name)
        path = os.path.join(os.path.dirname(os.path.realpath(name)), parent.name)
        parent_cid, parent_sectors = cid_of(path)
        size = parent_sectors * 512 if size is None else size
    disk = new_disk(size, options)
    if parent is not None and disk.subformat not in (MONOLITHIC_SPARSE, SPLIT_SPARSE):
        raise UsageError(f"a {disk.subformat} disk cannot have a parent", image=name)
    hint = parent.name if parent is not None else ""
    made: list[str] = []
    for path in superseded_extents(name):
        supersede_host_file(path)
    try:
        _create(name, disk, parent_cid, hint, made)
    except BaseException:
        for path in made:
            remove_host_file(path)
        raise


def _create(name: str, disk: NewDisk, parent_cid: int, hint: str, made: list[str]) -> None:
    if disk.subformat in (MONOLITHIC_SPARSE, STREAM):
        own = os.path.basename(name)
        if disk.subformat == STREAM and not _can_be_written(own):
            own = STREAM_NAME
        access = "RDONLY" if disk.subformat == STREAM else "RW"
        line = ExtentLine(access, disk.sectors, "SPARSE", own)
        text = new_descriptor(disk, [line], parent_cid, hint).serialise()
        if disk.subformat == STREAM:
            _make_file(name, [(0, empty_stream(disk, text))], 0, made)
        else:
            header = sparse_geometry(disk, embedded=True)
            _make_file(name, sparse_head(header, text), header.overhead * 512, made)
        return
    lines = list(_split(name, disk))
    text = new_descriptor(disk, lines, parent_cid, hint).serialise()
    for line in lines:
        path = os.path.join(os.path.dirname(name), line.name)
        if line.kind == "FLAT":
            _make_file(path, [], line.sectors * 512, made)
        else:
            header = sparse_geometry(disk, sectors=line.sectors)
            _make_file(path, sparse_head(header, b""), header.overhead * 512, made)
    _make_file(name, [(0, text)], 0, made)


def _split(name: str, disk: NewDisk) -> Iterator[ExtentLine]:
    """The extents of a disk that lies in files of their own."""
    stem = os.path.basename(name).removesuffix(".vmdk")
    if disk.subformat == MONOLITHIC_FLAT:
        yield ExtentLine("RW", disk.sectors, "FLAT", f"{stem}-flat.vmdk")
        return
    kind, letter = ("FLAT", "f") if disk.subformat == SPLIT_FLAT else ("SPARSE", "s")
    for number, start in enumerate(range(0, disk.sectors, SPLIT_SECTORS), 1):
        sectors = min(SPLIT_SECTORS, disk.sectors - start)
        yield ExtentLine("RW", sectors, kind, f"{stem}-{letter}{number:03d}.vmdk")


def _make_file(path: str, pieces: list[tuple[int, bytes]], size: int, made: list[str]) -> None:
    """A file of a size (bytes), or longer, with some content; it is in `made` if it is there."""
    _refuse_device(path)
    create_host_file(path, max((at + len(piece) for at, piece in pieces), default=0) or size)
    made.append(path)
    fd = open_host_file(path, writing=True)
    try:
        for at, piece in pieces:
            _write_all(fd, piece, at)
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _refuse_device(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISBLK(os.stat(path).st_mode):
            raise NotSupportedError(
                "a VMDK needs files, not a block device (aio: makes a raw disk on one)", image=path
            )


def _write_all(fd: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while len(view):
        count = os.pwrite(fd, view, at)
        at += count
        view = view[count:]


# ---- what lies in the files --------------------------------------------------------------------


def new_descriptor(
    disk: NewDisk, extents: list[ExtentLine], parent_cid: int = NO_PARENT, hint: str = ""
) -> Descriptor:
    """Of a new disk.

    Args:
        disk: what it is to be.
        extents: of it.
        parent_cid: of the parent's content.
        hint: where the parent is.

    Raises:
        UsageError: a name has characters that cannot be written there.
    """
    for name in (hint, *(line.name for line in extents)):
        if not _can_be_written(name):
            raise UsageError("a name in a VMDK must not have quotes or control characters")
    parent = [f'parentFileNameHint="{hint}"'] if hint else []
    return Descriptor(
        [
            "# Disk DescriptorFile",
            "version=1",
            'encoding="UTF-8"',
            f"CID={random_cid():08x}",
            f"parentCID={parent_cid:08x}",
            f'createType="{disk.subformat}"',
            *parent,
            "",
            "# Extent description",
            *map(str, extents),
            "",
            "# The Disk Data Base",
            "#DDB",
            "",
            f'ddb.adapterType = "{disk.adapter}"',
            f'ddb.geometry.cylinders = "{disk.cylinders}"',
            f'ddb.geometry.heads = "{disk.heads}"',
            'ddb.geometry.sectors = "63"',
            f'ddb.longContentID = "{os.urandom(16).hex()}"',
            'ddb.toolsVersion = "2147483647"',
            f'ddb.virtualHWVersion = "{disk.hwversion}"',
        ]
    )


def _can_be_written(name: str) -> bool:
    """Whether a descriptor can hold a name: it may have bytes that are no text, but no control
    characters."""
    return '"' not in name and all(c.isprintable() or "\udc80" <= c <= "\udcff" for c in name)


def sparse_geometry(disk: NewDisk, *, sectors: int = 0, embedded: bool = False) -> SparseHeader:
    """The header of a new sparse file, with the places of everything before its grains.

    Args:
        disk: what it is to be.
        sectors: of the file; 0: of the whole disk.
        embedded: the descriptor lies in the file.
    """
    flags = sparse.FLAG_NEWLINE | sparse.FLAG_REDUNDANT
    if disk.zeroed_grain:
        flags |= sparse.FLAG_ZEROED
    header = SparseHeader(2 if disk.zeroed_grain else 1, flags, sectors or disk.sectors)
    size = header.directory_sectors + header.tables * header.table_sectors
    rgd = 1 + DESCRIPTOR_SECTORS
    return attrs.evolve(
        header,
        descriptor_offset=1 if embedded else 0,
        descriptor_size=DESCRIPTOR_SECTORS if embedded else 0,
        rgd_offset=rgd,
        gd_offset=rgd + size,
        overhead=round_up(rgd + 2 * size, header.grain),
    )


def sparse_head(header: SparseHeader, descriptor: bytes) -> list[tuple[int, bytes]]:
    """What a new sparse file holds, as (offset, content): its tables are holes, and so empty.

    Args:
        header: of `sparse_geometry`.
        descriptor: empty for an extent of a disk that has its own file.

    Raises:
        UsageError: the descriptor is too long.
    """
    pieces = [(0, header.pack()), (512, _fitting(descriptor))]
    for offset in (header.rgd_offset, header.gd_offset):
        first = offset + header.directory_sectors
        end = first + header.tables * header.table_sectors
        if end > 1 << 32:
            raise UsageError("is too large for sparse files, whose places are below 2 TiB")
        directory = words32(b"")
        directory.extend(range(first, end, header.table_sectors))
        pieces.append((offset * 512, raw32(directory)))
    return pieces


def stream_header(disk: NewDisk) -> SparseHeader:
    """Of a stream, with its directory at the end: version 3, which ESXi insists on."""
    flags = sparse.FLAG_NEWLINE | sparse.FLAG_COMPRESSED | sparse.FLAG_MARKERS
    return SparseHeader(
        3,
        flags,
        disk.sectors,
        descriptor_offset=1,
        descriptor_size=DESCRIPTOR_SECTORS,
        gd_offset=sparse.GD_AT_END,
        overhead=sparse.DEFAULT_GRAIN,
        compression=sparse.COMPRESSION_DEFLATE,
    )


def stream_head(disk: NewDisk, descriptor: bytes) -> bytes:
    """What comes before the grains of a stream."""
    header = stream_header(disk)
    head = header.pack() + _fitting(descriptor)
    return head.ljust(header.overhead * 512, b"\0")


def empty_stream(disk: NewDisk, descriptor: bytes) -> bytes:
    """A whole stream without grains."""
    header = stream_header(disk)
    directory = bytes(header.directory_sectors * 512)
    mark = sparse.marker(sparse.MARKER_DIRECTORY, header.directory_sectors)
    end = sparse.footer(header, header.overhead + 1)
    return stream_head(disk, descriptor) + mark + directory + end


def _fitting(descriptor: bytes) -> bytes:
    if len(descriptor) > DESCRIPTOR_SECTORS * 512:
        raise UsageError("its name, or its parent's, is too long")
    return descriptor
