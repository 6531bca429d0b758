"""Random work on a disk while it is recorded, and what may be read from it after a crash.

What was answered before a flush began, which was done before the crash, must be there. Of what came
later each sector may be there or not, whatever the others are.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic

import attrs

from tapcore.disk import Disk
from tapcore.engine import DISCARD, FLUSH, WRITE, ZERO, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.testkit.crashstates import NEVER, SECTOR
from tapcore.testkit.failing import broken, error_name, run_of
from tapcore.testkit.recording import Recording


@attrs.define(eq=False)
class Done:
    """One request: its sectors' new content, when it began, was answered, and is surely safe."""

    sector: int
    content: bytes
    discard: bool = False
    fua: bool = False
    began: int = 0
    done: int = NEVER

    @property
    def nb_sectors(self) -> int:
        return len(self.content) // SECTOR


@attrs.define(eq=False)
class Workload:
    """Batches of writes, zeroes, discards and flushes, and their history.

    Attributes:
        disk: open for writing, within the recording.
        recording: of its files.
        rng: decides.
        windows: the (offset, length) in bytes, whole sectors, in which the work is done.
        below: what discarded sectors may read as besides zeroes: a parent's content, all of the
            disk; None without one.
        largest: bytes of a request at most.
        flushes: how often a batch has one, 0 to 1.
        history: the requests in their order.
    """

    disk: Disk
    recording: Recording
    rng: random.Random
    windows: Sequence[tuple[int, int]]
    below: bytes | None = None
    largest: int = 96 << 10
    flushes: float = 0.4
    history: list[Done] = attrs.field(factory=list)
    _flushed: list[tuple[int, int]] = attrs.field(factory=list)
    _before: dict[int, bytes] = attrs.field(factory=dict)
    _now: dict[int, bytes] = attrs.field(factory=dict)
    _judged: tuple[int, dict[int, bytearray], dict[int, list[bytes]]] = (-1, {}, {})

    def __attrs_post_init__(self) -> None:
        for offset, length in self.windows:
            content = self.disk.pread(offset, length=length)
            self._before[offset] = content
            for at in range(0, length, SECTOR):
                self._now[(offset + at) // SECTOR] = content[at : at + SECTOR]

    # ---- work -------------------------------------------------------------------------------

    def run(self, batches: int) -> None:
        """Do so many batches; each is finished before the next begins."""
        for _ in range(batches):
            self._batch()

    def flush(self) -> None:
        """A flush alone."""
        began = self.recording.now()
        self.disk.sync()
        self._flushed.append((began, self.recording.now()))

    def closed(self, began: int) -> None:
        """The disk was closed, which began at a moment: that makes all safe, as a flush does."""
        self._flushed.append((began, self.recording.now()))

    def write(self, op: int, offset: int, content: bytes) -> None:
        """A write of a certain kind (WRITE, WRITE_COMPRESSED), alone."""
        request = self._change(op, offset // SECTOR, content)
        self._finish([request])

    def change(self, op: int, offset: int, length: int) -> None:
        """A ZERO of whole sectors, alone."""
        if length:
            self._finish([self._change(op, offset // SECTOR, bytes(length))])

    def write_beside_a_flush(self, offset: int, content: bytes, seconds: float) -> int:
        """A write that comes while a flush is under way, which does not cover it.

        Args:
            offset: bytes, of whole units.
            content: of them.
            seconds: for the write; then a driver counts as one that does it later.

        Returns:
            A moment after the write's answer; the flush may be under way still (`end`).
        """
        engine = engine_of(self.disk.state)
        flush = self._flush_request()
        engine.submit(flush)
        engine.turn()
        write = self._change(WRITE, offset // SECTOR, content)
        engine.submit(write)
        loop, until = EngineLoop(engine), monotonic() + seconds
        loop.turn()
        while self.history[-1].done == NEVER and (left := until - monotonic()) > 0:
            loop.wait(left)
        return self.recording.now()

    def end(self) -> None:
        """Wait until nothing is under way."""
        EngineLoop(engine_of(self.disk.state)).finish()

    def replaced(self, content: Mapping[int, bytes], began: int) -> None:
        """All windows have got another content at once, by other means; it is safe by now."""
        for offset, after in content.items():
            done = self.recording.now()
            entry = Done(offset // SECTOR, after, fua=True, began=began, done=done)
            self.history.append(entry)
            self._remember(entry)

    def _batch(self) -> None:
        requests = [self._request(sector, count) for sector, count in self._places()]
        while self.rng.random() < self.flushes:  # several may be under way at once
            requests.insert(self.rng.randrange(len(requests) + 1), self._flush_request())
        # the moments of all are taken before any is submitted: they count as beginning together
        self._finish(requests)
        for request in requests:
            if request.op == DISCARD:
                self._discarded(request)

    def _finish(self, requests: Sequence[Request]) -> None:
        """All in one batch, until each is answered."""
        engine = engine_of(self.disk.state)
        for request in requests:
            engine.submit(request)
        EngineLoop(engine).finish()
        for request in requests:
            if request.status:
                where = run_of(request.sector, request.nb_sectors)
                broken(f"a request for {where} failed with {error_name(request.status)}")

    def _places(self) -> Iterator[tuple[int, int]]:
        """Disjoint runs of sectors."""
        taken: set[int] = set()
        for _ in range(self.rng.choice((1, 1, 2, 4, 8))):
            offset, length = self.rng.choice(self.windows)
            most = self.rng.choice((1, 8, self.largest // SECTOR))
            start = self.rng.randrange(length // SECTOR)
            count = min(self.rng.randint(1, most), length // SECTOR - start)
            if self.rng.random() < 0.4:  # whole clusters too
                count = max(count & -8, 1)
                start &= -8
            run = range(offset // SECTOR + start, offset // SECTOR + start + count)
            if taken.isdisjoint(run):
                taken.update(run)
                yield run.start, count

    def _request(self, sector: int, count: int) -> Request:
        op = self.rng.choice((WRITE, WRITE, WRITE, WRITE, ZERO, DISCARD))
        content = bytes(count * SECTOR) if op != WRITE else self.rng.randbytes(count * SECTOR)
        return self._change(op, sector, content, fua=op == WRITE and self.rng.random() < 0.1)

    def _change(self, op: int, sector: int, content: bytes, *, fua: bool = False) -> Request:
        entry = Done(sector, content, discard=op == DISCARD, fua=fua)
        entry.began = self.recording.now()
        self.history.append(entry)

        def done(request: Request) -> None:
            entry.done = self.recording.now()

        view = None if op in (ZERO, DISCARD) else memoryview(bytearray(content))
        request = Request(op, sector * SECTOR, len(content), view, done, fua=fua)
        request.may_unmap = self.rng.random() < 0.5
        if op != DISCARD:
            self._remember(entry)
        return request

    def _remember(self, entry: Done) -> None:
        for n in range(entry.nb_sectors):
            self._now[entry.sector + n] = entry.content[n * SECTOR : (n + 1) * SECTOR]

    def _flush_request(self) -> Request:
        began = self.recording.now()
        return Request(
            FLUSH, 0, 0, None, lambda _: self._flushed.append((began, self.recording.now()))
        )

    def _discarded(self, request: Request) -> None:
        """Each sector is as it was, or zeroes, or shows the parent again."""
        got = self.disk.pread(request.offset, length=request.length)
        for n in range(request.nb_sectors):
            sector, content = request.sector + n, got[n * SECTOR : (n + 1) * SECTOR]
            if content not in (self._now[sector], bytes(SECTOR), self._below(sector)):
                broken(f"sector {sector} holds something new after a discard of it")
            self._now[sector] = content

    def _below(self, sector: int) -> bytes:
        if self.below is None:
            return bytes(SECTOR)
        return self.below[sector * SECTOR : (sector + 1) * SECTOR].ljust(SECTOR, b"\0")

    # ---- judgement --------------------------------------------------------------------------

    @property
    def content(self) -> dict[int, bytes]:
        """What the windows hold now: by offset."""
        return {
            offset: b"".join(
                self._now[n] for n in range(offset // SECTOR, (offset + length) // SECTOR)
            )
            for offset, length in self.windows
        }

    def wrong(self, moment: int, offset: int, content: bytes) -> str:
        """What is wrong with a window after a crash; "" where nothing is.

        Args:
            moment: of the crash.
            offset: of the window.
            content: as read.
        """
        sure, unsure = self._expected(moment)
        want = sure[offset]
        if len(content) != len(want):
            return f"{len(content)} bytes instead of {len(want)}"
        if content == want:
            return ""
        first = offset // SECTOR
        levelled = bytearray(content)
        for sector, allowed in unsure.items():
            at = (sector - first) * SECTOR
            if 0 <= at < len(content) and content[at : at + SECTOR] in allowed:
                levelled[at : at + SECTOR] = want[at : at + SECTOR]
        if levelled == want:
            return ""
        at = next(
            n for n in range(0, len(want), SECTOR) if levelled[n:][:SECTOR] != want[n:][:SECTOR]
        )
        sector = first + at // SECTOR
        got = content[at : at + SECTOR]
        what = "zeroes" if not any(got) else got[:8].hex()
        possible = (bytes(want[at : at + SECTOR]), *unsure.get(sector, ()))
        wanted = " or ".join(each[:8].hex() for each in possible)
        return f"sector {sector} reads {what}, where {wanted} was written"

    def _expected(self, moment: int) -> tuple[dict[int, bytearray], dict[int, list[bytes]]]:
        """What the windows surely hold, and what single sectors may hold instead."""
        if self._judged[0] == moment:
            return self._judged[1:]
        covered = max((began for began, done in self._flushed if done <= moment), default=0)
        sure = {offset: bytearray(before) for offset, before in self._before.items()}
        unsure: dict[int, list[bytes]] = {}
        for entry in self.history:
            if entry.began > moment:
                continue
            if entry.discard:
                self._may_hold(unsure, entry)
            elif entry.done < covered or (entry.fua and entry.done <= moment):
                self._surely_holds(sure, unsure, entry)
            else:
                self._may_hold(unsure, entry)
        self._judged = moment, sure, unsure
        return sure, unsure

    @staticmethod
    def _surely_holds(
        sure: dict[int, bytearray], unsure: dict[int, list[bytes]], entry: Done
    ) -> None:
        for offset, content in sure.items():
            at = entry.sector * SECTOR - offset
            if 0 <= at < len(content):
                content[at : at + len(entry.content)] = entry.content
        for sector in range(entry.sector, entry.sector + entry.nb_sectors) if unsure else ():
            unsure.pop(sector, None)

    def _may_hold(self, unsure: dict[int, list[bytes]], entry: Done) -> None:
        for n in range(entry.nb_sectors):
            allowed = unsure.setdefault(entry.sector + n, [])
            allowed.append(entry.content[n * SECTOR : (n + 1) * SECTOR])
            if entry.discard:
                allowed.append(self._below(entry.sector + n))
