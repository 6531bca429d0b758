"""A small format with everything that the kit looks at, by the hooks; `bugs.py` breaks it.

A file consists of slots of 4 KiB. Slot 0 is the header, the next 16 hold the table: for each 4 KiB
chunk of the disk the slot that holds it, 0 for a hole, or 1 for zeroes. Numbers are little-endian.
`changes` grows with the first write after each opening: by it a child knows that its parent is
still what it was.
"""

import errno
import os
import struct
from collections import Counter

import tapcore
from tapcore import hookimpl

CHUNK = 4096
SECTORS = CHUNK // 512
HEADER = struct.Struct("<8sQ16sQ16sQ256s")
MAGIC = b"TAPSPRSE"
TABLE = CHUNK
ENTRIES = 16 * CHUNK // 4
FIRST = 17
HOLE, ZERO = 0, 1
LARGEST = ENTRIES * CHUNK

disk_info = tapcore.DiskInfo(
    handle="sparse",
    name="sparse image",
    api=1,
    suffixes=(".sparse",),
    create_options=(tapcore.FormatOption("space", "reserved at once", ("none", "all"), "none"),),
)


def chunks(size):
    return -(-size // CHUNK)


class Header:
    """The fields of slot 0."""

    def __init__(self, content):
        fields = HEADER.unpack(content[: HEADER.size].ljust(HEADER.size, b"\0"))
        magic, self.size, self.id, self.changes, *parent = fields
        self.parent_id, self.parent_changes, name = parent
        self.parent = name.rstrip(b"\0").decode(errors="replace")
        if magic != MAGIC:
            raise tapcore.ImageFormatError("is not a sparse image")
        if self.size % 512 or self.size > LARGEST:
            raise tapcore.ImageFormatError("has an impossible size in its header")

    def pack(self):
        parent = self.parent_id, self.parent_changes, self.parent.encode()
        return HEADER.pack(MAGIC, self.size, self.id, self.changes, *parent)


class Image:
    """An open image."""

    def __init__(self, dd, file):
        self.dd, self.file = dd, file
        self.header = Header(file.read_metadata(0, HEADER.size))
        count = chunks(self.header.size)
        if file.size < FIRST * CHUNK:
            raise tapcore.ImageFormatError("is too short for its table")
        self.table = list(struct.unpack(f"<{count}I", file.read_metadata(TABLE, 4 * count)))
        self.end = max(file.size // CHUNK, FIRST)
        wrong = self.problems()
        if wrong and not dd.options.metadata_only:
            raise tapcore.ImageFormatError(wrong[0])
        self.unsaved = {}
        self.free = sorted(set(range(FIRST, self.end)) - set(self.table))
        self.freed = []  # may be used again when the table on disk does not name them
        self.busy: Counter[int] = Counter()  # slots that are being read or written
        self.flushes = []
        self.begun = False

    def problems(self):
        """What is wrong with the table."""
        used, wrong = set(), []
        for chunk, slot in enumerate(self.table):
            if slot in (HOLE, ZERO):
                continue
            if not FIRST <= slot < self.end:
                wrong.append(f"has a table that puts chunk {chunk} outside the file")
            elif slot in used:
                wrong.append(f"has a table that puts chunk {chunk} where another one lies")
            used.add(slot)
        return wrong

    def begin(self):
        """Before the first change: what refers to this image has to know. 0 or -errno."""
        if self.begun:
            return 0
        self.header.changes += 1
        try:
            self.file.write_metadata(0, self.header.pack())
        except OSError as exc:
            self.header.changes -= 1
            return -(exc.errno or errno.EIO)
        res = self.file.flush_blocking()
        self.begun = res == 0
        return res

    def read(self, chunk, part, then):
        slot = self.table[chunk]
        res = self.file.read_now(slot * CHUNK, part)
        if res is not None:
            return then(res)
        self.busy[slot] += 1

        def done(res):
            self.busy[slot] -= 1
            return then(res)

        self.file.queue_read(slot * CHUNK, part, done)
        return 0

    def write(self, chunk, part, then):
        slot = self.table[chunk]
        fresh = slot < FIRST
        if fresh:
            slot = self.take()
            if len(part) < CHUNK:
                part = memoryview(bytes(part).ljust(CHUNK, b"\0"))
        self.busy[slot] += 1

        def done(res):
            self.busy[slot] -= 1
            if fresh and res:
                self.free.append(slot)
            elif fresh:
                self.enter(chunk, slot)
            return then(res)

        res = self.file.write_now(slot * CHUNK, part)
        if res is not None:
            return done(res)
        self.file.queue_write(slot * CHUNK, part, done)
        return 0

    def take(self):
        """A slot that nothing refers to."""
        if self.free:
            return self.free.pop()
        self.end += 1
        return self.end - 1

    def enter(self, chunk, entry):
        before, self.table[chunk] = self.table[chunk], entry
        self.unsaved[chunk] = entry
        if before >= FIRST:
            self.freed.append(before)

    def flush(self, then):
        self.flushes.append(then)
        if len(self.flushes) == 1:
            self.next_flush()
        return 0

    def next_flush(self):
        taken, self.unsaved = self.unsaved, {}
        given = [slot for slot in self.freed if not self.busy[slot]]
        self.freed = [slot for slot in self.freed if self.busy[slot]]

        def done(res):
            if res:
                self.unsaved = taken | self.unsaved
                self.freed += given
            else:
                self.free += given
            then = self.flushes.pop(0)
            if self.flushes:
                self.next_flush()
            return then(res)

        self.file.queue_work(lambda: self.save(taken, given), done)

    def save(self, entries, given=()):
        """The content first, then the entries that name it. 0, -errno or OSError."""
        res = self.file.flush_blocking()
        if res or not entries:
            return res
        for chunk, entry in entries.items():
            self.file.write_metadata(TABLE + 4 * chunk, entry.to_bytes(4, "little"))
        res = self.file.flush_blocking()
        if res == 0:
            for slot in given:
                self.file.discard_blocking(slot * CHUNK, CHUNK)
        return res

    def clear(self, sector, nb_sectors, entry):
        for chunk in range(sector // SECTORS, chunks((sector + nb_sectors) * 512)):
            if self.table[chunk] != entry:
                self.enter(chunk, entry)

    def resize(self, size):
        count = chunks(size)
        if count < len(self.table):
            for chunk in range(count, len(self.table)):
                self.enter(chunk, HOLE)
        if size < self.header.size and size % CHUNK and self.table[count - 1] >= FIRST:
            start = self.table[count - 1] * CHUNK + size % CHUNK
            self.file.write_metadata(start, bytes(CHUNK - size % CHUNK))
        res = self.save(self.unsaved)
        if res:
            raise OSError(-res, os.strerror(-res))
        self.unsaved = {}
        self.table = self.table[:count] + [HOLE] * (count - len(self.table))
        self.header.size = size
        self.file.write_metadata(0, self.header.pack())
        res = self.file.flush_blocking()
        if res:
            raise OSError(-res, os.strerror(-res))


def pieces(sector, nb_sectors):
    end = sector + nb_sectors
    while sector < end:
        yield sector, min(SECTORS, end - sector)
        sector += SECTORS


@hookimpl
def td_create(name, size, parent, options):
    head = struct.pack("<16sQ256s", bytes(16), 0, b"")
    if parent is not None:
        below = os.path.join(os.path.dirname(name), parent.name)
        recorded = str(parent).encode()
        if len(recorded) > 256:
            raise tapcore.UsageError("its parent's name is too long")
        head = struct.pack("<16sQ256s", bytes(16), 0, recorded)
        if parent.drivertype == disk_info.handle:
            with open(below, "rb") as file:
                found = Header(file.read(HEADER.size))
            head = struct.pack("<16sQ256s", found.id, found.changes, recorded)
            size = found.size if size is None else size
    if size is None or size > LARGEST:
        raise tapcore.UsageError("needs a size of at most 64 MiB")
    room = FIRST + (chunks(size) if options.get("space") == "all" else 0)
    tapcore.create_host_file(name, room * CHUNK)
    try:
        with open(name, "r+b") as file:
            file.write(struct.pack("<8sQ16sQ", MAGIC, size, os.urandom(16), 0) + head)
    except BaseException:
        tapcore.remove_host_file(name)
        raise


@hookimpl
def td_probe(head):
    return head.startswith(MAGIC)


@hookimpl
def td_inspect(name, fd, size):
    header = Header(os.pread(fd, HEADER.size, 0))
    named = (("parent", header.parent),) if header.parent else ()
    return tapcore.Inspection(header.size, references=named)


@hookimpl
def td_open(dd, name, flags):
    if dd.options.cache != "writeback":
        raise tapcore.UsageError("the format sparse always goes through the page cache")
    file = tapcore.open_image_file(name, flags, dd.options)
    file.keeps_overflow = True
    try:
        dd.private = Image(dd, file)
    except BaseException:
        file.close()
        raise
    dd.io_fd[0] = file.io_fd
    dd.size = dd.private.header.size // 512
    dd.sector_size = CHUNK


@hookimpl
def td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv):
    image, answer, finished = dd.private, tapcore.Answer(cb, dd, id, prv), 0
    for at, count in pieces(sector, nb_sectors):
        entry = image.table[at // SECTORS]
        part = buf[(at - sector) * 512 : (at - sector + count) * 512]
        if entry == HOLE:
            finished += answer(tapcore.BLK_NOT_ALLOCATED, at, count)
        elif entry == ZERO:
            part[:] = bytes(len(part))
            finished += answer(0, at, count)
        else:
            finished += image.read(at // SECTORS, part, answer.over(at, count))
    return finished


@hookimpl
def td_queue_write(dd, sector, nb_sectors, buf, cb, id, prv):
    image, answer, finished = dd.private, tapcore.Answer(cb, dd, id, prv), 0
    if res := image.begin():
        return res
    for at, count in pieces(sector, nb_sectors):
        part = buf[(at - sector) * 512 : (at - sector + count) * 512]
        finished += image.write(at // SECTORS, part, answer.over(at, count))
    return finished


@hookimpl
def td_queue_flush(dd, cb, id, prv):
    return dd.private.flush(tapcore.Answer(cb, dd, id, prv).over(0, 0))


@hookimpl
def td_queue_discard(dd, sector, nb_sectors, cb, id, prv):
    image = dd.private
    if res := image.begin():
        return res
    if image.header.parent:
        for at, count in pieces(sector, nb_sectors):
            if image.table[at // SECTORS] != HOLE:
                image.clear(at, count, ZERO)
    else:
        image.clear(sector, nb_sectors, HOLE)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@hookimpl
def td_queue_write_zeroes(dd, sector, nb_sectors, may_unmap, cb, id, prv):
    image = dd.private
    if not may_unmap:
        return -errno.EOPNOTSUPP
    if res := image.begin():
        return res
    image.clear(sector, nb_sectors, ZERO)
    return cb(dd, 0, sector, nb_sectors, id, prv)


@hookimpl
def td_do_callbacks(dd, sid):
    return dd.private.file.reap()


@hookimpl
def td_extents(dd, sector, nb_sectors):
    image, end = dd.private, sector + nb_sectors
    while sector < end:
        count = min(SECTORS - sector % SECTORS, end - sector)
        entry = image.table[sector // SECTORS]
        if entry >= FIRST:
            place = entry * CHUNK + sector % SECTORS * 512
            file = image.file
            yield tapcore.Extent(sector, count, "data", file.fd, file.path, place)
        else:
            yield tapcore.Extent(sector, count, "zero" if entry == ZERO else "unallocated")
        sector += count


@hookimpl
def td_get_parent_id(dd, id):
    recorded = dd.private.header.parent
    if not recorded:
        return tapcore.TD_NO_PARENT
    id.drivertype, _, id.name = recorded.partition(":")
    return 0


@hookimpl
def td_validate_parent(dd, p):
    mine, below = dd.private.header, p.private
    if not any(mine.parent_id):
        return 0
    if below.header.id != mine.parent_id or below.header.changes != mine.parent_changes:
        raise tapcore.ImageFormatError("its parent is not what it was")
    return 0


@hookimpl
def td_before_commit(dd, p):
    image = dd.private
    image.header.parent_id = bytes(16)  # whatever becomes of it
    image.file.write_metadata(0, image.header.pack())
    if res := image.file.flush_blocking():
        raise OSError(-res, os.strerror(-res))


@hookimpl
def td_resize(dd, size):
    image = dd.private
    if size > LARGEST or image.header.parent:
        raise tapcore.NotSupportedError("can have 64 MiB at most, and none on a parent")
    if res := image.begin():
        raise OSError(-res, os.strerror(-res))
    image.resize(size)
    dd.size = size // 512


@hookimpl
def td_check(dd, repair):
    image = dd.private
    wrong = image.problems()
    used = sum(entry >= FIRST for entry in image.table)
    return tapcore.CheckResult(
        corruptions=len(wrong),
        messages=wrong,
        total_clusters=len(image.table),
        allocated_clusters=used,
    )


@hookimpl
def td_info(dd):
    return {"changes": dd.private.header.changes, "chunks": len(dd.private.table)}


@hookimpl
def td_close(dd):
    image = dd.private
    try:
        image.file.drain()
        if not dd.read_only and (res := image.save(image.unsaved)):
            raise OSError(-res, os.strerror(-res))
    finally:
        image.file.close()
