"""Chunked sparse images: 64 KiB chunks, stored in the order in which they were first written.

The file consists of slots of 64 KiB. Slot 0 begins with the magic, the disk's size in bytes, and
the parent as "handle:name". The table follows in slot 1 and later: for each chunk the number of
its slot, or 0 for a hole. Numbers are little-endian.
"""

import os
import struct

import tapcore
from tapcore import hookimpl

CHUNK = 64 << 10
SECTORS = CHUNK // 512  # in a chunk
HEADER = struct.Struct("<8sQ1024s")
MAGIC = b"TAPCHUNK"
LARGEST = 1 << 40

disk_info = tapcore.DiskInfo(
    handle="chunk", name="chunked sparse image", api=1, suffixes=(".chunk",)
)


def slots(size):
    return -(-size // CHUNK)


class Image:
    """An open image: its file, its table, and the table's entries that are not in the file yet."""

    def __init__(self, file):
        self.file, self.unsaved = file, {}
        head = os.pread(file.fd, HEADER.size, 0).ljust(HEADER.size, b"\0")
        magic, self.size, parent = HEADER.unpack(head)
        self.parent = parent.rstrip(b"\0").decode(errors="replace")
        self.first = 1 + slots(4 * slots(self.size))  # slot after the table
        self.end = slots(file.size)
        whole = self.first * CHUNK <= file.size
        if magic != MAGIC or self.size % 512 or self.size > LARGEST or not whole:
            raise tapcore.ImageFormatError("is not a chunk image, or its header is damaged")
        self.table = list(
            struct.unpack(f"<{slots(self.size)}I", os.pread(file.fd, 4 * slots(self.size), CHUNK))
        )
        used = [slot for slot in self.table if slot]
        if len(set(used)) < len(used) or any(not self.first <= s < self.end for s in used):
            raise tapcore.ImageFormatError("has a damaged table")

    def flush(self):
        """The chunks first, then the entries that name them; 0 or -errno."""
        res = self.file.flush_blocking()
        for chunk, slot in self.unsaved.items():
            entry = memoryview(slot.to_bytes(4, "little"))
            res = res or self.file.write_blocking(CHUNK + 4 * chunk, entry)
        res = res or self.file.flush_blocking()
        if not res:
            self.unsaved.clear()
        return res


@hookimpl
def td_create(name, size, parent):
    recorded = str(parent).encode() if parent else b""
    if size is None or size > LARGEST or len(recorded) > 1024:
        raise tapcore.UsageError("needs a size up to 1 TiB, and a shorter name of the parent")
    tapcore.create_host_file(name, (1 + slots(4 * slots(size))) * CHUNK)
    with open(name, "r+b") as file:
        file.write(HEADER.pack(MAGIC, size, recorded))


@hookimpl
def td_probe(head):
    return head.startswith(MAGIC)


@hookimpl
def td_open(dd, name, flags):
    if dd.options.cache != "writeback":
        raise tapcore.UsageError("the format chunk always goes through the page cache")
    file = tapcore.open_image_file(name, flags, dd.options)
    try:
        dd.private = Image(file)
    except BaseException:
        file.close()
        raise
    dd.size = dd.private.size // 512
    dd.sector_size = CHUNK  # from here on the core asks for whole chunks only


@hookimpl
def td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv):
    image, finished = dd.private, 0
    for at in range(0, nb_sectors, SECTORS):
        count = min(SECTORS, nb_sectors - at)  # the disk's last chunk may be cut
        slot = image.table[(sector + at) // SECTORS]
        res = tapcore.BLK_NOT_ALLOCATED  # the core asks the parent, or fills in zeroes
        if slot:
            res = image.file.read_blocking(slot * CHUNK, buf[at * 512 : (at + count) * 512])
        finished += cb(dd, res, sector + at, count, id, prv)
    return finished


@hookimpl
def td_queue_write(dd, sector, nb_sectors, buf, cb, id, prv):
    image, finished = dd.private, 0
    for at in range(0, nb_sectors, SECTORS):
        count = min(SECTORS, nb_sectors - at)
        chunk = (sector + at) // SECTORS
        slot = image.table[chunk] or image.end
        res = image.file.write_blocking(slot * CHUNK, buf[at * 512 : (at + count) * 512])
        if res == 0 and slot == image.end:
            image.table[chunk] = image.unsaved[chunk] = slot
            image.end += 1
        finished += cb(dd, res, sector + at, count, id, prv)
    return finished


@hookimpl
def td_queue_flush(dd, cb, id, prv):
    return cb(dd, dd.private.flush(), 0, 0, id, prv)


@hookimpl
def td_extents(dd, sector, nb_sectors):
    file, end = dd.private.file, sector + nb_sectors
    while sector < end:
        count = min(SECTORS - sector % SECTORS, end - sector)
        slot = dd.private.table[sector // SECTORS]
        place = slot * CHUNK + sector % SECTORS * 512
        if slot:
            yield tapcore.Extent(sector, count, "data", file.fd, file.path, place)
        else:
            yield tapcore.Extent(sector, count, "unallocated")
        sector += count


@hookimpl
def td_get_parent_id(dd, id):
    if not dd.private.parent:
        return tapcore.TD_NO_PARENT
    id.drivertype, _, id.name = dd.private.parent.partition(":")
    return 0


@hookimpl
def td_validate_parent():
    return 0  # nothing is recorded by which a changed parent could be told


@hookimpl
def td_close(dd):
    try:
        if not dd.read_only and (res := dd.private.flush()):
            raise OSError(-res, os.strerror(-res))
    finally:
        dd.private.file.close()
