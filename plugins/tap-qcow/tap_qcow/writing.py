"""Writes: in place, or into new clusters at the end of the file.

A new cluster is entered in its table, in memory, when it has been written, and answered then; the
write-back brings the entry to the disk. Until it is entered, other writes to it wait.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any

from tap_qcow.claims import Claim, claim_of, first_claimed
from tap_qcow.layout import COMPRESSED
from tap_qcow.mapping import run_at
from tap_qcow.tables import Table
from tapcore import SECTOR_SHIFT, TapError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tap_qcow.image import Image
    from tapcore import DiskDriver, TdCallback


class Write:
    """A write request, of which parts are stored in several steps.

    Args:
        image: open.
        dd: the hook's.
        sector: the hook's.
        buf: the hook's.
        cb: the hook's.
        id: the hook's.
        prv: the hook's.
    """

    __slots__ = ("_buf", "_cb", "_first", "_id", "_prv", "dd", "image")

    def __init__(
        self,
        image: Image,
        dd: DiskDriver,
        sector: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> None:
        self.image = image
        self.dd = dd
        self._first = sector
        self._buf = buf
        self._cb = cb
        self._id = id
        self._prv = prv

    def content(self, sector: int, stop: int) -> memoryview:
        """What is to be written to the sectors from one up to another, not encrypted."""
        first = self._first
        return self._buf[(sector - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]

    def stored_content(self, sector: int, stop: int) -> memoryview:
        """The same as it lies in the file."""
        content, cipher = self.content(sector, stop), self.image.cipher
        return content if cipher is None else memoryview(cipher.encrypt(sector, content))

    def answer(self, res: int, sector: int, stop: int) -> int:
        """The sectors from one up to another are done; returns how many requests that finished."""
        return self._cb(self.dd, res, sector, stop - sector, self._id, self._prv)


def no_room(image: Image) -> int:
    """-EBUSY, or the error of the last write-back, while too many tables wait to be written."""
    writeback = image.writeback
    if not image.tables.full:
        return 0
    if not writeback.running:
        failed = writeback.error
        writeback.when_needed()
        if failed:
            return failed
    return -errno.EBUSY


def write(request: Write, sector: int, nb_sectors: int) -> int:
    """Write a range; returns how many requests were finished inside the call."""
    end = sector + nb_sectors
    shift = request.image.geometry.table_shift
    finished = 0
    while sector < end:
        index = sector >> shift
        stop = min(end, (index + 1) << shift)
        finished += write_in_table(request, index, sector, stop)
        sector = stop
    return finished


def with_table(
    image: Image,
    index: int,
    go_on: Callable[[Table], int],
    again: Callable[[], int],
    fail: Callable[[int], int],
) -> int:
    """Do something with the L2 table of an L1 entry, made if there is none, and pinned meanwhile.

    Args:
        image: open for writing.
        index: of the L1 entry.
        go_on: called with the table, at once if it is in memory.
        again: called when the table, which was not, has been read.
        fail: called with a -errno.

    Returns:
        What was returned by what was called.
    """
    tables = image.tables
    try:
        if not tables.l1[index]:
            tables.add(index, image.allocate_table())
        table = tables.now(index)
        if table is None:
            tables.load(index, lambda res: fail(res) if res else again())
            return 0
    except (TapError, OSError) as exc:
        return fail(-(exc.errno or errno.EIO))
    table.pins += 1
    try:
        return go_on(table)
    finally:
        table.pins -= 1


def write_in_table(request: Write, index: int, sector: int, stop: int) -> int:
    """Write a range that one L2 table maps; returns as `write`."""

    def go_on(table: Table) -> int:
        finished, at = 0, sector
        while at < stop:
            claim = claim_of(request.image.claims, at >> request.image.geometry.cluster_shift)
            if claim is not None:
                until = min(claim.end << request.image.geometry.cluster_shift, stop)
                claim.waiting.append(partial(write_in_table, request, index, at, until))
            else:
                until, done = _write_some(request, table, at, stop)
                finished += done
            at = until
        return finished

    return with_table(
        request.image,
        index,
        go_on,
        partial(write_in_table, request, index, sector, stop),
        lambda res: request.answer(res, sector, stop),
    )


def _write_some(request: Write, table: Table, sector: int, stop: int) -> tuple[int, int]:
    """Write from a sector whose cluster nobody claims.

    Returns:
        Up to which sector that was done, or begun; and how many requests it finished.
    """
    image = request.image
    geometry = image.geometry
    entry = table.entries[(sector >> geometry.cluster_shift) & geometry.entry_mask]
    if not entry or entry & COMPRESSED:
        return _store(request, table, entry, sector, stop)
    try:
        run = run_at(image, table, sector, stop)
    except TapError as exc:
        return stop, request.answer(-exc.errno, sector, stop)
    until = sector + run.nb_sectors
    done = partial(request.answer, sector=sector, stop=until)
    return until, put(request, run.where, request.stored_content(sector, until), done)


def put(request: Write, offset: int, content: memoryview, done: Callable[[int], int]) -> int:
    """Write to the file (offset in bytes), now or later, and call `done(0 or -errno)`.

    Returns:
        What `done` returned, if it was called already.
    """
    file = request.image.file
    res = file.write_now(offset, content)
    if res is not None:
        return done(res)
    file.queue_write(offset, content, (_put, request.dd, 0, 0, 0, done))
    return 0


def _put(
    dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, done: Callable[[int], int]
) -> int:
    return done(res)


# ---- new clusters ----------------------------------------------------------------------------


def _store(request: Write, table: Table, entry: int, sector: int, stop: int) -> tuple[int, int]:
    """Write to clusters that get a new place; returns as `_write_some`."""
    image = request.image
    shift, mask = image.geometry.cluster_shift, image.geometry.sector_mask
    start = sector >> shift
    cluster_end = min((start + 1) << shift, image.sectors)
    whole = not sector & mask and stop >= cluster_end
    if not whole and (entry or image.fills):
        until = min(stop, cluster_end)
        return until, _fill_and_store(request, table, entry, sector, until)
    end = start + _new_clusters(image, table, start, stop)
    until = min(stop, end << shift)
    try:
        host = image.allocate(end - start)
    except OSError as exc:
        return until, request.answer(-(exc.errno or errno.EIO), sector, until)
    claim = Claim(image.claims, table, start, end)
    place = host + ((sector & mask) << SECTOR_SHIFT)
    content = request.stored_content(sector, until)
    if rest := (-until & mask) << SECTOR_SHIFT:  # so that the file is as long as the table says
        content = memoryview(bytes(content) + bytes(rest))
    done = partial(_stored, request, claim, host, sector, until)
    return until, put(request, place, content, done)


def _new_clusters(image: Image, table: Table, start: int, stop: int) -> int:
    """How many clusters from one on can be stored in one go with a write that ends at `stop`."""
    shift, mask = image.geometry.cluster_shift, image.geometry.entry_mask
    last = (stop - 1) >> shift
    cut = bool(stop & image.geometry.sector_mask) and stop < image.sectors
    limit = first_claimed(image.claims, start + 1, last + 1)
    count = 1
    for cluster in range(start + 1, limit):
        entry = table.entries[cluster & mask]
        if 0 < entry < COMPRESSED or (cut and cluster == last and (entry or image.fills)):
            break
        count += 1
    return count


def _fill_and_store(request: Write, table: Table, entry: int, sector: int, until: int) -> int:
    """Write a part of a cluster, and what was there, or shows through, around it."""
    image = request.image
    geometry = image.geometry
    cluster = sector >> geometry.cluster_shift
    start = cluster << geometry.cluster_shift
    claim = Claim(image.claims, table, cluster, cluster + 1)

    def filled(res: int, around: bytes | bytearray) -> int:
        if res:
            return _give_up(request, claim, res, sector, until)
        content = bytearray(around)
        skip = (sector - start) << SECTOR_SHIFT
        new = request.content(sector, until)
        content[skip : skip + len(new)] = new
        try:
            host = image.allocate(1)
        except OSError as exc:
            return _give_up(request, claim, -(exc.errno or errno.EIO), sector, until)
        stored = content if image.cipher is None else image.cipher.encrypt(start, content)
        done = partial(_stored, request, claim, host, sector, until)
        return put(request, host, memoryview(stored), done)

    if entry:
        return image.inflater.fetch(entry, filled)
    around = bytearray(geometry.cluster_size)
    if not image.header.backing_file:
        return filled(0, around)

    def read_below(read: Any) -> None:
        filled(read.status, around)
        image.file.submit()  # this may be called when a parent has answered: outside our hooks

    state = request.dd.td_state
    assert state is not None
    assert state.blkif is not None
    held = min(image.sectors - start, 1 << geometry.cluster_shift) << SECTOR_SHIFT
    state.blkif.read_below(request.dd, start, memoryview(around)[:held], read_below)
    return 0


def _stored(request: Write, claim: Claim, host: int, sector: int, until: int, res: int) -> int:
    """New clusters have been written, or could not be."""
    image = request.image
    if res:
        return _give_up(request, claim, res, sector, until)
    size = image.geometry.cluster_size
    first = claim.start & image.geometry.entry_mask
    places = range(host, host + (claim.end - claim.start) * size, size)
    image.tables.set(claim.table, first, places)
    image.writeback.when_needed()
    finished = request.answer(0, sector, until)
    return finished + claim.release()


def _give_up(request: Write, claim: Claim, res: int, sector: int, until: int) -> int:
    finished = request.answer(res, sector, until)
    return finished + claim.release()
