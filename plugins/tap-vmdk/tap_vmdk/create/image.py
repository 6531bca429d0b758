"""Making new disks of every kind that can be written."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping

from tap_vmdk.create.content import (
    STREAM_NAME,
    can_be_written,
    empty_stream,
    new_descriptor,
    sparse_geometry,
    sparse_head,
)
from tap_vmdk.create.newdisk import SPLIT_SECTORS, NewDisk, new_disk
from tap_vmdk.create.replaced import replaced_extents
from tap_vmdk.descriptor.text import Descriptor, ExtentLine
from tap_vmdk.identity import parent_at
from tap_vmdk.options import MONOLITHIC_FLAT, MONOLITHIC_SPARSE, SPLIT_FLAT, SPLIT_SPARSE, STREAM
from tapcore import (
    DiskId,
    NotSupportedError,
    UsageError,
    create_host_file,
    open_host_file,
    remove_host_file,
    supersede_host_file,
)


def create_image(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """As `td_create`."""
    below: Descriptor | None = None
    if parent is not None:
        if parent.drivertype not in ("", "vmdk"):
            raise UsageError("the parent of a VMDK must be a VMDK", image=name)
        path = os.path.join(os.path.dirname(os.path.realpath(name)), parent.name)
        found = parent_at(path)
        below = found.descriptor
        size = found.sectors * 512 if size is None else size
    disk = new_disk(size, options)
    if parent is not None and disk.subformat not in (MONOLITHIC_SPARSE, SPLIT_SPARSE):
        raise UsageError(f"a {disk.subformat} disk cannot have a parent", image=name)
    hint = parent.name if parent is not None else ""
    made: list[str] = []
    for path in replaced_extents(name):
        supersede_host_file(path)
    try:
        _create(name, disk, below, hint, made)
    except BaseException:
        for path in made:
            remove_host_file(path)
        raise


def _create(name: str, disk: NewDisk, below: Descriptor | None, hint: str, made: list[str]) -> None:
    if disk.subformat in (MONOLITHIC_SPARSE, STREAM):
        own = os.path.basename(name)
        if disk.subformat == STREAM and not can_be_written(own):
            own = STREAM_NAME
        access = "RDONLY" if disk.subformat == STREAM else "RW"
        line = ExtentLine(access, disk.sectors, "SPARSE", own)
        text = new_descriptor(disk, [line], below, hint).serialise()
        if disk.subformat == STREAM:
            _make_file(name, [(0, empty_stream(disk, text))], 0, made)
        else:
            header = sparse_geometry(disk, embedded=True)
            _make_file(name, sparse_head(header, text), header.overhead * 512, made)
        return
    lines = list(_split(name, disk))
    text = new_descriptor(disk, lines, below, hint).serialise()
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
