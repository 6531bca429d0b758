"""Chunked sparse images: a header, a table, and 64 KiB chunks in the order of their first write.

A file consists of slots of 64 KiB. Slot 0 begins with the magic, the disk's size in bytes and the
parent as "handle:name". The table follows in slot 1 and later: for each chunk the number of the
slot that holds it, or 0 for a hole. All numbers are little-endian.
"""

import os
import struct
from collections.abc import Mapping
from typing import Any

import tapcore
from tapcore import DiskDriver, DiskId, ImageFile, ImageFormatError, clusters, hookimpl
from tapcore.clusters import (  # noqa: F401 -- the hooks that are the same for all maps
    td_close,
    td_do_callbacks,
    td_extents,
    td_queue_discard,
    td_queue_flush,
    td_queue_read,
    td_queue_write,
    td_queue_write_zeroes,
    td_submit,
)

CHUNK = 64 << 10
SECTORS = CHUNK // 512
HEADER = struct.Struct("<8sQ1024s")
MAGIC = b"TAPCHKIO"
LARGEST = 1 << 40

disk_info = tapcore.DiskInfo(
    handle="chunkio",
    name="chunked sparse image, without blocking",
    api=1,
    suffixes=(".chunkio",),
)


def slots_for(size: int) -> int:
    """Slots of 64 KiB that `size` bytes take."""
    return -(-size // CHUNK)


def read_header(fd: int, file_size: int) -> tuple[int, str]:
    """The disk's size and its parent, as far as they can be true."""
    head = os.pread(fd, HEADER.size, 0)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise ImageFormatError("is not a chunk image")
    _, size, parent = HEADER.unpack(head)
    if size % 512 or size > LARGEST or (1 + slots_for(4 * slots_for(size))) * CHUNK > file_size:
        raise ImageFormatError("has an impossible size in its header")
    return size, parent.rstrip(b"\0").decode(errors="replace")


class Image(clusters.WritableMap):
    """An open image: where its chunks lie, and the entries that are not in the file yet."""

    def __init__(self, dd: DiskDriver[Any], file: ImageFile) -> None:
        size, self.parent = read_header(file.fd, file.size)
        super().__init__(file, size // 512, CHUNK)
        chunks = slots_for(size)
        self.table = list(struct.unpack(f"<{chunks}I", file.read_metadata(CHUNK, 4 * chunks)))
        self.unsaved: dict[int, int] = {}
        first, self.end = 1 + slots_for(4 * chunks), slots_for(file.size)
        used = [slot for slot in self.table if slot]
        if len(set(used)) < len(used) or any(not first <= slot < self.end for slot in used):
            raise ImageFormatError("has a table that cannot be true")
        self.clusters = clusters.WritableClusters(dd, self)

    def run(self, sector: int, stop: int) -> clusters.Run:
        """The rest of one chunk."""
        slot, skip = self.table[sector // SECTORS], sector % SECTORS
        count = min(SECTORS - skip, stop - sector)
        if not slot:
            return clusters.Run(clusters.HOLE, sector, count)
        return clusters.Run(clusters.DATA, sector, count, slot * CHUNK + skip * 512)

    def allocate(self, sector: int, count: int) -> clusters.Place:
        """Slots at the end of the file."""
        self.end += count
        return clusters.Place((self.end - count) * CHUNK, count, blank=True)

    def link(self, sector: int, stop: int, where: int) -> None:
        """Chunks have been written side by side: from now on the table names them."""
        for chunk in range(sector // SECTORS, slots_for(stop * 512)):
            self.table[chunk] = self.unsaved[chunk] = where // CHUNK
            where += CHUNK

    def picture(self) -> clusters.Picture:
        """First the chunks are made safe, then what names them: a crash leaves unused slots."""
        taken, self.unsaved = self.unsaved, {}
        writes = [(CHUNK + 4 * chunk, slot.to_bytes(4, "little")) for chunk, slot in taken.items()]

        def conclude(failed: int) -> None:
            self.unsaved = taken | self.unsaved if failed else self.unsaved

        return clusters.Picture([[], writes], conclude)


@hookimpl
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """All requests are the core's affair from here on."""
    clusters.open_mapped(dd, name, flags, Image)


@hookimpl
def td_get_parent_id(dd: DiskDriver[Image], id: DiskId) -> int:
    """What the header says; the core checks whether that file may be opened."""
    if not dd.private.parent:
        return tapcore.TD_NO_PARENT
    id.drivertype, _, id.name = dd.private.parent.partition(":")
    return 0


@hookimpl
def td_validate_parent(dd: DiskDriver[Image], p: DiskDriver, flags: int) -> int:
    """Nothing is recorded by which a changed parent could be told."""
    return 0


@hookimpl
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """A header; the empty table is a hole of the file."""
    if size is None or size > LARGEST:
        raise tapcore.UsageError("needs a size of at most 1 TiB", image=name)
    recorded = str(parent).encode() if parent else b""
    if len(recorded) > 1024:
        raise tapcore.UsageError("its parent's name is too long", image=name)
    tapcore.create_host_file(name, (1 + slots_for(4 * slots_for(size))) * CHUNK)
    with open(name, "r+b") as file:
        file.write(HEADER.pack(MAGIC, size, recorded))


@hookimpl
def td_probe(name: str, head: bytes) -> bool:
    """By its magic."""
    return head.startswith(MAGIC)


@hookimpl
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """How much of it is stored."""
    return {"chunk_size": CHUNK, "chunks_stored": sum(map(bool, dd.private.table))}


@hookimpl
def td_inspect(name: str, fd: int, size: int) -> tapcore.Inspection:
    """The header alone."""
    virtual_size, parent = read_header(fd, size)
    return tapcore.Inspection(virtual_size, references=(("parent", parent),) if parent else ())
