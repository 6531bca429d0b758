"""Requests that overlap in place and time, and what each sector may hold at any moment."""

import itertools
import random
import select
from collections.abc import Callable
from pathlib import Path

import attrs

import tapcore
from latedisk import LateHost
from tapcore.engine import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    WRITE_COMPRESSED,
    ZERO,
    Engine,
    Request,
    engine_of,
)

SECTOR = 512
NEVER = 1 << 62


# ---- what a sector may hold --------------------------------------------------------------------


@attrs.define(eq=False)
class Change:
    """What a request makes of a sector, and when.

    Attributes:
        content: of the sector.
        began: moment of its submission.
        sure: it does so when it succeeds; what a discard makes of a sector is not sure.
        done: moment of its answer.
    """

    content: bytes
    began: int
    sure: bool = True
    done: int = NEVER


@attrs.define(slots=False)
class History:
    """What each sector of a disk may hold: what ran at the same time had any order.

    Attributes:
        sectors: the changes of each.
        flushes: moments at which those that succeeded began and were answered.
        now: gives a moment later than all others.
    """

    sectors: list[list[Change]]
    flushes: list[tuple[int, int]] = attrs.field(factory=list)
    now: Callable[[], int] = attrs.field(factory=lambda: itertools.count(1).__next__)

    @classmethod
    def of(cls, content: bytes) -> "History":
        """Before the first request."""
        parts = [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]
        return cls([[Change(part, -1, done=-1)] for part in parts])

    def wrong(self, first: int, content: bytes, began: int, done: int) -> str:
        """What is wrong with content read from a sector on, from one moment to another."""
        for number, at in enumerate(range(0, len(content), SECTOR), first):
            got = content[at : at + SECTOR]
            changes = self.sectors[number]
            latest = max(change.began for change in changes if change.sure and change.done < began)
            allowed = [c.content for c in changes if c.done >= latest and c.began < done]
            if got not in allowed:
                return (
                    f"sector {number} reads {got[:8].hex()} from {began} to {done}, not "
                    f"{' or '.join(content[:8].hex() for content in allowed)}"
                )
        return ""

    def lost(self, content: bytes, crash: int) -> str:
        """What is wrong with the content of a disk that crashed at a moment."""
        covered = max((began for began, done in self.flushes if done <= crash), default=0)
        return self.wrong(0, content, covered, crash + 1)


# ---- many requests at once ---------------------------------------------------------------------


@attrs.define(eq=False, slots=False)
class Crowd:
    """Requests of all kinds that overlap in place and time.

    Attributes:
        disk: open for writing.
        host: entered.
        rng: decides what is asked for.
        files: all that the disk writes.
        span: bytes of the disk that are worked on.
        below: what the parents hold there.
        ops: kinds of requests.
        history: what all that did.
        copies: of the files, made when a flush was answered: (moment it began, answered, contents).
        errors: what was read, or lay in the file, and should not have.
        statuses: of the requests, in the order of their answers.
        submitted: how many requests there were.
        problems: what is wrong with the tables in the first file, given as its bytes.
    """

    disk: tapcore.Disk
    host: LateHost
    rng: random.Random
    files: list[Path] = attrs.field(factory=list)
    span: int = 0
    below: bytes = b""
    ops: tuple[int, ...] = ()
    history: History = attrs.field(factory=lambda: History([]))
    copies: list[tuple[int, int, list[bytes]]] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)
    statuses: list[int] = attrs.field(factory=list)
    submitted: int = 0
    problems: Callable[[bytes], list[str]] = lambda content: []

    @property
    def engine(self) -> Engine:
        """Of the disk."""
        engine = engine_of(self.disk.state)
        assert isinstance(engine, Engine)
        return engine

    def run(self, count: int, most: int) -> None:
        """So many requests, at most so many at once; then until all are answered."""
        engine = self.engine
        while count:
            if engine.in_flight < most and self.rng.random() < 0.5:
                engine.submit(self._request())
                count -= 1
                continue
            self.proceed(turns=self.rng.random() < 0.5)
            if self.rng.random() < 0.05:
                self._walk()
        self.settle()
        assert len(self.statuses) == self.submitted
        assert not self.errors, self.errors[0]

    def proceed(self, *, turns: bool = True) -> None:
        """Let something happen, or a parked request come again; with or without a loop's turn."""
        engine = self.engine
        if turns:
            engine.turn()
        if not self.host.step() and turns:
            assert not engine.in_flight or self.tries_again, "requests are lost"
        poll = select.poll()
        sources = {}
        for fd, dd, sid in engine.poll_fds():
            poll.register(fd, select.POLLIN)
            sources[fd] = (dd, sid)
        for fd, _ in poll.poll(0):
            engine.readable(*sources[fd])
        if turns:
            engine.turn()

    @property
    def tries_again(self) -> bool:
        """What found no room comes again by itself; `engine.timeout` has other reasons, too."""
        return self.engine._dispatcher.timeout is not None

    def settle(self) -> None:
        """Until all is answered but what the host holds back."""
        self.engine.turn()
        while len(self.host.tasks) > len(self.host.held) or self.tries_again:
            self.proceed()

    def submit(
        self,
        op: int,
        at: int,
        length: int,
        buf: bytes | bytearray | None = None,
        *,
        turn: bool = True,
    ) -> None:
        """A request of the test's own."""
        self.submitted += 1
        view = None if buf is None else memoryview(bytearray(buf) if op != READ else buf)
        request = Request(op, at, length, view, lambda req: self.statuses.append(req.status))
        request.may_unmap = False
        self.engine.submit(request)
        if turn:
            self.engine.turn()

    def flush(self) -> int:
        """A flush alone: its status."""
        self.engine.submit(self._flush())
        self.settle()
        return self.statuses[-1]

    def _walk(self) -> None:
        """What is in the file, whatever of it is on disk, is consistent at any moment."""
        self.errors += self.problems(self.files[0].read_bytes())[:1]

    # ---- requests ---------------------------------------------------------------------------

    def _request(self) -> Request:
        op = self.rng.choice(self.ops)
        if op == FLUSH:
            return self._flush()
        self.submitted += 1
        first, count = self._place(op)
        length = count * SECTOR
        began = self.history.now()
        if op == READ:
            return self._read(first, length, began)
        content = self._content(op, length)
        changes = [
            Change(content[at : at + SECTOR], began, op != DISCARD)
            for at in range(0, length, SECTOR)
        ]
        if op == DISCARD:
            where = range(first * SECTOR, first * SECTOR + length, SECTOR)
            changes += [Change(self.below[at : at + SECTOR], began, False) for at in where]
        for number, change in enumerate(changes):
            self.history.sectors[first + number % count].append(change)

        def done(request: Request) -> None:
            self.statuses.append(request.status)
            moment = self.history.now()
            for change in changes:
                change.done = moment
                change.sure = change.sure and not request.status

        view = memoryview(bytearray(content)) if op in (WRITE, WRITE_COMPRESSED) else None
        fua = self.rng.random() < 0.1
        request = Request(op, first * SECTOR, length, view, done, fua=fua)
        request.may_unmap = self.rng.random() < 0.5
        return request

    def _place(self, op: int) -> tuple[int, int]:
        sectors = self.span // SECTOR
        unit = max(self.disk.cluster_size // SECTOR, 1)
        if op == WRITE_COMPRESSED or self.rng.random() < 0.3:
            first = self.rng.randrange(-(-sectors // unit)) * unit
            count = self.rng.choice((1, 1, 2, 5)) * unit
        else:
            first = self.rng.randrange(sectors)
            count = self.rng.choice((1, 3, 8, 50, 200))
        return first, min(count, sectors - first)

    def _content(self, op: int, length: int) -> bytes:
        if op in (ZERO, DISCARD):
            return bytes(length)
        if op == WRITE_COMPRESSED and self.rng.random() < 0.8:
            words = (self.rng.randbytes(self.rng.choice((2, 8))) for _ in range(length // SECTOR))
            return b"".join((word * 256)[:SECTOR] for word in words)
        return self.rng.randbytes(length)

    def _read(self, first: int, length: int, began: int) -> Request:
        buf = bytearray(b"?" * length)

        def done(request: Request) -> None:
            self.statuses.append(request.status)
            if not request.status:
                wrong = self.history.wrong(first, bytes(buf), began, self.history.now())
                self.errors += [wrong] if wrong else []

        return Request(READ, first * SECTOR, length, memoryview(buf), done)

    def _flush(self) -> Request:
        self.submitted += 1
        began = self.history.now()

        def done(request: Request) -> None:
            self.statuses.append(request.status)
            if request.status:
                return
            self.history.flushes.append((began, self.history.now()))
            if self.files and len(self.copies) < 3 and self.rng.random() < 0.3:
                contents = [path.read_bytes() for path in self.files]
                self.copies.append((began, self.history.now(), contents))

        return Request(FLUSH, 0, 0, None, done)
