"""A driver that answers late, in random order and in pieces: copy-on-write images in memory.

What it does with a request is drawn from the image's seed: which pieces it makes of it, which of
them it answers inside the queue call and which later, through an eventfd, when it has been told to
submit. It believes nothing: what the core does wrong is noted in `violations`.
"""

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from tapcore import (
    BLK_NOT_ALLOCATED,
    TD_NO_PARENT,
    DiskDriver,
    DiskId,
    DiskInfo,
    Extent,
    TdCallback,
    hookimpl,
)

MAGIC = b"LATE"

READ, WRITE, ZERO, DISCARD, FLUSH = "read", "write", "zero", "discard", "flush"


@attrs.define(eq=False)
class LateImage:
    """An image; it outlives being opened. Sizes are in sectors.

    Attributes:
        parent: what `td_get_parent_id` says: an image, a negative errno, or an exception to raise.
        validate: what `td_validate_parent` says.
        now: how likely a piece is answered inside the queue call.
        depth: pieces that it takes at once; None for any number.
        busy: how likely it says -EBUSY for no reason at all.
        zero: how td_queue_write_zeroes behaves: "yes", "no", "raise", or "mixed" (answers
            -EOPNOTSUPP for odd clusters).
        opens: flags of each opening.
        closes: how often it was closed.
        violations: what the core did wrong.
        writes: stores so far; their numbers for each sector are in `stored`, and the last one that
            a flush has put on disk is `flushed`.
    """

    size: int
    cluster: int = 1
    sector_size: int = 512
    parent: DiskId | int | Exception | None = None
    validate: int | Exception = 0
    seed: int = 0
    now: float = 0.3
    depth: int | None = None
    busy: float = 0.0
    zero: str = "yes"
    open_error: Exception | None = None
    close_error: Exception | None = None
    data: bytearray = b""  # type: ignore[assignment]
    allocated: set[int] = attrs.field(factory=set)
    opens: list[int] = attrs.field(factory=list)
    closes: int = 0
    violations: list[str] = attrs.field(factory=list)
    writes: int = 0
    stored: dict[int, list[int]] = attrs.field(factory=dict)
    flushed: int = 0

    def __attrs_post_init__(self) -> None:
        self.data = self.data or bytearray(self.size * 512)

    def fill(self, rng: random.Random, share: float = 0.5) -> None:
        """Allocate random clusters with random content."""
        for cluster in range(-(-self.size // self.cluster)):
            if rng.random() < share:
                start, end = self.bounds(cluster)
                self.data[start * 512 : end * 512] = rng.randbytes((end - start) * 512)
                self.allocated.add(cluster)

    def bounds(self, cluster: int) -> tuple[int, int]:
        """First sector, and the one past the last."""
        start = cluster * self.cluster
        return start, min(start + self.cluster, self.size)

    def store(self, sector: int, content: bytes | memoryview) -> None:
        """Write into an allocated place."""
        self.data[sector * 512 : sector * 512 + len(content)] = content
        self.writes += 1
        for at in range(sector, sector + len(content) // 512):
            self.stored.setdefault(at, []).append(self.writes)

    def snapshot(self) -> tuple[bytes, frozenset[int]]:
        """Everything that must not change in a parent."""
        return bytes(self.data), frozenset(self.allocated)

    def content(self, below: bytes) -> bytearray:
        """What the image reads as, over its parent's content."""
        out = bytearray(below[: self.size * 512].ljust(self.size * 512, b"\0"))
        for cluster in self.allocated:
            start, end = self.bounds(cluster)
            out[start * 512 : end * 512] = self.data[start * 512 : end * 512]
        return out

    def runs(self, sector: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Where it is allocated and where not: (first sector, end, allocated)."""
        while sector < end:
            stop = min(self.bounds(sector // self.cluster)[1], end)
            yield sector, stop, sector // self.cluster in self.allocated
            sector = stop


@attrs.define(eq=False)
class _Piece:
    op: str
    sector: int
    nb_sectors: int
    buf: memoryview | None
    answer: Callable[[int, int, int], int]
    """(res, sector, nb_sectors)"""
    flush_of: int = 0


@attrs.define(eq=False)
class _Open:
    image: LateImage
    rng: random.Random
    eventfd: int
    queued: list[_Piece] = attrs.field(factory=list)
    submitted: list[_Piece] = attrs.field(factory=list)
    copying: dict[int, list[_Piece]] = attrs.field(factory=dict)

    @property
    def taken(self) -> int:
        waiting = sum(len(pieces) for pieces in self.copying.values())
        return len(self.queued) + len(self.submitted) + waiting


class Late:
    """The driver without optional hooks; images come from `options.private["images"]` by name."""

    def __init__(self, handle: str = "late") -> None:
        self.disk_info = DiskInfo(handle=handle, name="late, in pieces", api=1)

    @hookimpl
    def td_open(self, dd: DiskDriver, name: str, flags: int) -> None:
        images = dd.options.private["images"]
        image: LateImage = images.get(name) or images[os.path.basename(name)]
        if image.open_error is not None:
            raise image.open_error
        image.opens.append(flags)
        dd.private = _Open(image, random.Random(image.seed), os.eventfd(0, os.EFD_NONBLOCK))
        dd.io_fd[0] = dd.private.eventfd
        dd.size = image.size
        dd.sector_size = image.sector_size

    @hookimpl
    def td_close(self, dd: DiskDriver) -> None:
        state: _Open = dd.private
        image = state.image
        image.closes += 1
        dd.options.private.get("closed", []).append(image)
        if state.taken:
            image.violations.append("closed with requests in flight")
        os.close(state.eventfd)
        if image.close_error is not None:
            raise image.close_error

    @hookimpl
    def td_get_parent_id(self, dd: DiskDriver, id: DiskId) -> int:
        parent = dd.private.image.parent
        if isinstance(parent, Exception):
            raise parent
        if parent is None:
            return TD_NO_PARENT
        if isinstance(parent, int):
            return parent
        id.name, id.drivertype = parent.name, parent.drivertype
        return 0

    @hookimpl
    def td_validate_parent(self, dd: DiskDriver, p: DiskDriver, flags: int) -> int:
        verdict = dd.private.image.validate
        if isinstance(verdict, Exception):
            raise verdict
        return int(verdict)

    @hookimpl
    def td_probe(self, name: str, head: bytes, tail: bytes) -> bool:
        return head.startswith(MAGIC + self.disk_info.handle.encode() + b"\0")

    @hookimpl
    def td_extents(self, dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
        for start, end, allocated in dd.private.image.runs(sector, sector + nb_sectors):
            yield Extent(start, end - start, "data" if allocated else "unallocated")

    # ---- taking -----------------------------------------------------------------------------

    @hookimpl
    def td_queue_read(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return self._queue(dd, READ, sector, nb_sectors, buf, cb, id, prv)

    @hookimpl
    def td_queue_write(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return self._queue(dd, WRITE, sector, nb_sectors, buf, cb, id, prv)

    def _queue(
        self,
        dd: DiskDriver,
        op: str,
        sector: int,
        nb_sectors: int,
        buf: memoryview | None,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        state: _Open = dd.private
        self._look_for_violations(dd, op, sector, nb_sectors, buf)
        if state.rng.random() < state.image.busy:
            return -errno.EBUSY
        if state.image.depth is not None and state.taken >= state.image.depth:
            return -errno.EBUSY

        def answer(res: int, at: int, count: int) -> int:
            return cb(dd, res, at, count, id, prv)

        flush_of = state.image.writes
        pieces = [
            _Piece(op, at, count, _part(buf, sector, at, count), answer, flush_of)
            for at, count in (
                [(sector, nb_sectors)]
                if op == DISCARD  # only whole clusters can be discarded
                else _cuts(state.rng, sector, nb_sectors)
            )
        ]
        state.rng.shuffle(pieces)
        now = [state.rng.random() < state.image.now for _ in pieces]
        state.queued.extend(p for p, at_once in zip(pieces, now, strict=True) if not at_once)
        return sum(self._perform(dd, p) for p, at_once in zip(pieces, now, strict=True) if at_once)

    @staticmethod
    def _look_for_violations(
        dd: DiskDriver, op: str, sector: int, nb_sectors: int, buf: memoryview | None
    ) -> None:
        image: LateImage = dd.private.image
        unit = image.sector_size // 512
        found = image.violations
        if op == FLUSH:
            return
        if nb_sectors < 1 or sector < 0 or sector + nb_sectors > image.size:
            found.append(f"{op} of {nb_sectors} sectors at {sector}, of {image.size}")
        at_end = sector + nb_sectors == image.size
        if sector % unit or (nb_sectors % unit and not at_end):
            found.append(f"{op} of {nb_sectors} sectors at {sector}, in units of {unit}")
        if buf is not None and (len(buf) != nb_sectors * 512 or buf.itemsize != 1):
            found.append(f"{op} of {nb_sectors} sectors with {len(buf)} bytes")
        if op != READ and dd.read_only:
            found.append(f"{op} of an image that is open read-only")

    @hookimpl
    def td_submit(self, dd: DiskDriver) -> int:
        state: _Open = dd.private
        state.submitted += state.queued
        state.queued.clear()
        if state.submitted:
            os.eventfd_write(state.eventfd, 1)
        return 0

    @hookimpl
    def td_do_callbacks(self, dd: DiskDriver, sid: int) -> int:
        state: _Open = dd.private
        try:
            os.eventfd_read(state.eventfd)
        except BlockingIOError:
            state.image.violations.append("called without being readable")
        finished = 0
        for _ in range(state.rng.randint(1, max(len(state.submitted), 1))):
            if state.submitted:
                at = state.rng.randrange(len(state.submitted))
                finished += self._perform(dd, state.submitted.pop(at))
        if state.submitted:
            os.eventfd_write(state.eventfd, 1)
        return finished

    # ---- doing ------------------------------------------------------------------------------

    def _perform(self, dd: DiskDriver, piece: _Piece) -> int:
        state: _Open = dd.private
        image = state.image
        if piece.op == FLUSH:
            image.flushed = max(image.flushed, piece.flush_of)
            return piece.answer(0, 0, 0)
        if piece.op == READ:
            return self._read(state, piece)
        if piece.op == DISCARD:
            return self._discard(state, piece)
        finished = 0
        end = piece.sector + piece.nb_sectors
        for start, stop, _ in list(image.runs(piece.sector, end)):
            content = _part(piece.buf, piece.sector, start, stop - start)
            mixed = image.zero == "mixed" and image.sector_size == 512  # refuses whole units only
            if piece.op == ZERO and mixed and start // image.cluster % 2:
                finished += piece.answer(-errno.EOPNOTSUPP, start, stop - start)
                continue
            part = _Piece(WRITE, start, stop - start, content, piece.answer)
            finished += self._write(dd, start // image.cluster, part)
        return finished

    def _read(self, state: _Open, piece: _Piece) -> int:
        image = state.image
        assert piece.buf is not None
        finished = 0
        end = piece.sector + piece.nb_sectors
        runs = list(image.runs(piece.sector, end))
        state.rng.shuffle(runs)
        for start, stop, allocated in runs:
            if not allocated:
                for at, count in _cuts(state.rng, start, stop - start):
                    finished += piece.answer(BLK_NOT_ALLOCATED, at, count)
                continue
            target = _part(piece.buf, piece.sector, start, stop - start)
            assert target is not None
            target[:] = image.data[start * 512 : stop * 512]
            finished += piece.answer(0, start, stop - start)
        return finished

    def _write(self, dd: DiskDriver, cluster: int, piece: _Piece) -> int:
        """One cluster, or a part of it: that needs the rest from below first."""
        state: _Open = dd.private
        image = state.image
        start, end = image.bounds(cluster)
        if cluster in state.copying:
            state.copying[cluster].append(piece)
            return 0
        if cluster in image.allocated or piece.nb_sectors == end - start:
            assert piece.buf is not None
            image.allocated.add(cluster)
            image.store(piece.sector, piece.buf)
            return piece.answer(0, piece.sector, piece.nb_sectors)
        state.copying[cluster] = [piece]
        buf = memoryview(bytearray((end - start) * 512))

        def copied(req: Any) -> None:
            waiting = state.copying.pop(cluster)
            if req.status:
                for each in waiting:
                    each.answer(req.status, each.sector, each.nb_sectors)
                return
            image.data[start * 512 : end * 512] = buf
            image.allocated.add(cluster)
            for each in waiting:
                self._write(dd, cluster, each)

        assert dd.td_state.blkif is not None
        dd.td_state.blkif.read_below(dd, start, buf, copied)
        return 0

    @staticmethod
    def _discard(state: _Open, piece: _Piece) -> int:
        image = state.image
        end = piece.sector + piece.nb_sectors
        for start, stop, allocated in list(image.runs(piece.sector, end)):
            cluster = start // image.cluster
            whole = (start, stop) == image.bounds(cluster)
            if allocated and whole and cluster not in state.copying:
                image.allocated.discard(cluster)
                image.store(start, bytes((stop - start) * 512))
        return piece.answer(0, piece.sector, piece.nb_sectors)


class LateFull(Late):
    """The same with everything: flush, discard, write zeroes."""

    def __init__(self, handle: str = "latefull") -> None:
        super().__init__(handle)

    @hookimpl
    def td_queue_flush(self, dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
        return self._queue(dd, FLUSH, 0, 0, None, cb, id, prv)

    @hookimpl
    def td_queue_discard(
        self, dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        return self._queue(dd, DISCARD, sector, nb_sectors, None, cb, id, prv)

    @hookimpl
    def td_queue_write_zeroes(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        how = dd.private.image.zero
        if how == "no":
            return -errno.EOPNOTSUPP
        if how == "raise":
            raise OSError(errno.EOPNOTSUPP, "no such thing here")
        buf = memoryview(bytes(nb_sectors * 512))
        return self._queue(dd, ZERO, sector, nb_sectors, buf, cb, id, prv)


def _part(buf: memoryview | None, sector: int, at: int, count: int) -> memoryview | None:
    return None if buf is None else buf[(at - sector) * 512 : (at - sector + count) * 512]


def _cuts(rng: random.Random, sector: int, nb_sectors: int) -> list[tuple[int, int]]:
    """A range in one to four pieces: (first sector, sectors)."""
    cuts = range(rng.randrange(4) if nb_sectors else 0)
    inner = {sector + rng.randrange(nb_sectors) for _ in cuts}
    edges = [sector, *sorted(inner - {sector}), sector + nb_sectors]
    return [(a, b - a) for a, b in itertools.pairwise(edges)]
