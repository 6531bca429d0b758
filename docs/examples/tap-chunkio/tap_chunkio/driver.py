"""Chunked sparse images: a header, a table, and 64 KiB chunks in the order of their first write.

A file consists of slots of 64 KiB. Slot 0 begins with the magic, the disk's size in bytes and the
parent as "handle:name". The table follows in slot 1 and later: for each chunk the number of the
slot that holds it, or 0 for a hole. All numbers are little-endian.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tapcore import (
    BLK_NOT_ALLOCATED,
    HOOKS_VERSION,
    SECTOR_SHIFT,
    TD_NO_PARENT,
    Answer,
    DiskDriver,
    DiskId,
    DiskInfo,
    Extent,
    ImageFile,
    ImageFormatError,
    Inspection,
    TdCallback,
    UsageError,
    create_host_file,
    hookimpl,
    open_image_file,
)

CHUNK = 64 << 10
SECTORS = CHUNK >> SECTOR_SHIFT
HEADER = struct.Struct("<8sQ1024s")
MAGIC = b"TAPCHKIO"
LARGEST = 1 << 40

disk_info = DiskInfo(
    handle="chunkio",
    name="chunked sparse image, without blocking",
    api=HOOKS_VERSION,
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


class Image:
    """An open image: its file, its table, and the entries that are not in the file yet."""

    def __init__(self, file: ImageFile) -> None:
        self.file = file
        self.size, self.parent = read_header(file.fd, file.size)
        chunks = slots_for(self.size)
        self.table = list(struct.unpack(f"<{chunks}I", os.pread(file.fd, 4 * chunks, CHUNK)))
        self.unsaved: dict[int, int] = {}
        first, self.end = 1 + slots_for(4 * chunks), slots_for(file.size)
        used = [slot for slot in self.table if slot]
        if len(set(used)) < len(used) or any(not first <= slot < self.end for slot in used):
            raise ImageFormatError("has a table that cannot be true")

    def save_table(self, entries: Mapping[int, int]) -> int:
        """Write new entries (chunk: slot), whose chunks are on disk by now; 0 or -errno."""
        for chunk, slot in entries.items():
            entry = memoryview(slot.to_bytes(4, "little"))
            if res := self.file.write_blocking(CHUNK + 4 * chunk, entry):
                return res
            self.unsaved.pop(chunk, None)  # another flush may have been quicker
        return 0


@hookimpl
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """The core reads and writes whole chunks where a client asks for less: see sector_size."""
    if dd.options.cache != "writeback":
        raise UsageError("chunkio: always goes through the page cache")
    file = open_image_file(name, flags, dd.options)
    try:
        dd.private = Image(file)
    except BaseException:
        file.close()
        raise
    dd.io_fd[0] = file.io_fd
    dd.size = dd.private.size >> SECTOR_SHIFT
    dd.sector_size = CHUNK


def pieces(sector: int, nb_sectors: int) -> Iterator[tuple[int, int, int, int]]:
    """Chunk by chunk: its number, its first sector, how many sectors, where in the request."""
    for at in range(sector, sector + nb_sectors, SECTORS):
        yield at // SECTORS, at, min(SECTORS, sector + nb_sectors - at), (at - sector) * 512


@hookimpl
def td_queue_read(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """From the page cache at once, else later; holes are the core's affair."""
    image: Image = dd.private
    answer, finished = Answer(cb, dd, id, prv), 0
    for chunk, at, count, start in pieces(sector, nb_sectors):
        slot = image.table[chunk]
        if not slot:
            finished += answer(BLK_NOT_ALLOCATED, at, count)
            continue
        part = buf[start : start + count * 512]
        res = image.file.read_now(slot * CHUNK, part)
        if res is None:
            image.file.queue_read(slot * CHUNK, part, answer.over(at, count))
        else:
            finished += answer(res, at, count)
    return finished


@hookimpl
def td_queue_write(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """In place, or into a new slot, which the table names once the write has succeeded."""
    image: Image = dd.private
    answer, finished = Answer(cb, dd, id, prv), 0

    def stored(slot: int, at: int, count: int, res: int) -> int:
        if res == 0 and slot != image.table[at // SECTORS]:
            image.table[at // SECTORS] = image.unsaved[at // SECTORS] = slot
        return answer(res, at, count)

    for chunk, at, count, start in pieces(sector, nb_sectors):
        slot = image.table[chunk]
        if not slot:
            slot, image.end = image.end, image.end + 1
        part = buf[start : start + count * 512]
        then = partial(stored, slot, at, count)
        res = image.file.write_now(slot * CHUNK, part)
        if res is None:
            image.file.queue_write(slot * CHUNK, part, then)
        else:
            finished += then(res)
    return finished


@hookimpl
def td_queue_flush(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
    """First the chunks, then the table that names them: a crash leaves at worst unused slots."""
    image: Image = dd.private
    entries = dict(image.unsaved)  # those that come meanwhile have chunks that are not safe yet

    flushed = Answer(cb, dd, id, prv).over(0, 0)

    def chunks_are_safe(res: int) -> int:
        res = res or image.save_table(entries)
        if res:
            return flushed(res)
        image.file.queue_flush(flushed)
        return 0

    image.file.queue_flush(chunks_are_safe)
    return 0


@hookimpl
def td_do_callbacks(dd: DiskDriver, sid: int) -> int:
    """Answer what has finished."""
    finished: int = dd.private.file.reap()
    return finished


@hookimpl
def td_close(dd: DiskDriver) -> None:
    """As a flush; the file's own close syncs what was written last."""
    image: Image = dd.private
    try:
        image.file.drain()
        if image.unsaved:
            res = image.file.flush_blocking() or image.save_table(dict(image.unsaved))
            if res:
                raise OSError(-res, os.strerror(-res))
    finally:
        image.file.close()


@hookimpl
def td_get_parent_id(dd: DiskDriver, id: DiskId) -> int:
    """What the header says; the core checks whether that file may be opened."""
    if not dd.private.parent:
        return TD_NO_PARENT
    id.drivertype, _, id.name = dd.private.parent.partition(":")
    return 0


@hookimpl
def td_validate_parent(dd: DiskDriver, p: DiskDriver, flags: int) -> int:
    """Nothing is recorded by which a changed parent could be told."""
    return 0


@hookimpl
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """Straight from the table."""
    image: Image = dd.private
    file, end = image.file, sector + nb_sectors
    while sector < end:
        chunk, skip = divmod(sector, SECTORS)
        count = min(SECTORS - skip, end - sector)
        if slot := image.table[chunk]:
            place = slot * CHUNK + skip * 512
            yield Extent(sector, count, "data", file.fd, file.path, place)
        else:
            yield Extent(sector, count, "unallocated")
        sector += count


@hookimpl
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """A header; the empty table is a hole of the file."""
    if size is None or size > LARGEST:
        raise UsageError("needs a size of at most 1 TiB", image=name)
    recorded = str(parent).encode() if parent else b""
    if len(recorded) > 1024:
        raise UsageError("its parent's name is too long", image=name)
    create_host_file(name, (1 + slots_for(4 * slots_for(size))) * CHUNK)
    with open(name, "r+b") as file:
        file.write(HEADER.pack(MAGIC, size, recorded))


@hookimpl
def td_probe(name: str, head: bytes) -> bool:
    """By its magic."""
    return head.startswith(MAGIC)


@hookimpl
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """How much of it is stored."""
    return {"chunk_size": CHUNK, "chunks_stored": sum(map(bool, dd.private.table))}


@hookimpl
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """The header alone."""
    virtual_size, parent = read_header(fd, size)
    return Inspection(virtual_size, references=(("parent", parent),) if parent else ())
