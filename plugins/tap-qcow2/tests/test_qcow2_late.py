"""Everything late, in any order, and failing: no request is lost, none damages another."""

import errno
import itertools
import logging
import os
import random
import select
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import pytest

import tapcore
from crashrecorder import Recording
from latedisk import LateHost
from qcow2tools import (
    MIB,
    assert_clean,
    checked,
    content_by_qemu,
    convert,
    create,
    qemu_img,
    source_content,
)
from qcow2walk import walk
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, WRITE_COMPRESSED, ZERO, Engine, Request

SECTOR = 512
NEVER = 1 << 62
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
FAULTS = {
    "write_now": 0.02,
    "write_blocking": 0.04,
    "write_metadata": 0.03,
    "flush_blocking": 0.06,
    "truncate_up": 0.04,
}
READ_FAULTS = {"read_now": 0.02, "read_blocking": 0.04, "read_metadata": 0.04}


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


def inconsistent(content: bytes) -> list[str]:
    """What is wrong with an image's tables; refcounts are not, where the dirty bit is set."""
    found = walk(content)
    if found.incompatible & 1:
        return [each for each in found.problems if "refcount of" not in each]
    return found.problems + found.copied_wrong


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

    @property
    def engine(self) -> Engine:
        """Of the disk."""
        engine = self.disk.state.blkif
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
            assert not engine.in_flight or engine.timeout is not None, "requests are lost"
        poll = select.poll()
        sources = {}
        for fd, dd, sid in engine.poll_fds():
            poll.register(fd, select.POLLIN)
            sources[fd] = (dd, sid)
        for fd, _ in poll.poll(0):
            engine.readable(*sources[fd])
        if turns:
            engine.turn()

    def settle(self) -> None:
        """Until all is answered but what the host holds back."""
        while len(self.host.tasks) > len(self.host.held) or self.engine.timeout is not None:
            self.proceed()
        self.engine.turn()

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
        self.errors += inconsistent(self.files[0].read_bytes())[:1]

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


# ---- kinds of images ---------------------------------------------------------------------------


@attrs.frozen
class Kind:
    """A kind of image, and what is done to it.

    Attributes:
        options: of `qemu-img create`, or `convert`.
        cache: bytes of tables kept in memory.
        span: bytes that are worked on.
        size: of the disk, bytes.
        compressed: begins with compressed clusters.
        snapshot: begins with content that a snapshot holds, too.
        parent: format of a parent, which is a bit shorter than the span.
        parent_options: of it.
        writes_compressed: compressed writes are among the requests.
    """

    options: Mapping[str, object] = {}
    cache: int | None = None
    span: int = 1 << 19
    size: int = MIB + 5 * SECTOR
    compressed: bool = False
    snapshot: bool = False
    parent: str = ""
    parent_options: Mapping[str, object] = {}
    writes_compressed: bool = True

    def make(self, folder: Path, rng: random.Random) -> tuple[Path, bytes]:
        """The image, and what its parents hold."""
        image, below = folder / "disk.qcow2", bytes(self.size)
        if self.compressed:
            raw = folder / "source.raw"
            raw.write_bytes(source_content(rng, self.size))
            convert(raw, image, compress=True, **self.options)
        elif self.parent:
            content = source_content(rng, self.span - 3 * SECTOR)
            raw, parent = folder / "source.raw", folder / f"parent.{self.parent}"
            raw.write_bytes(content)
            words = [f"-o{name}={value}" for name, value in self.parent_options.items()]
            if self.parent == "qcow2":
                words.append("-c")
            qemu_img("convert", "-f", "raw", "-O", self.parent, *words, raw, parent)
            create(image, self.size, parent=parent.name, form=self.parent, **self.options)
            below = content.ljust(self.size, b"\0")
        else:
            create(image, self.size, **self.options)
        if self.snapshot:
            with tapcore.open(f"qcow2:{image}") as disk:
                disk.pwrite(0, rng.randbytes(self.span * 2 // 3))
            qemu_img("snapshot", "-c", "before", image)
        return image, below


KINDS = {
    "default": Kind(),
    "512": Kind({"cluster_size": 512}, cache=1024, span=1 << 18),
    "512-refcount-64-lazy": Kind(
        {"cluster_size": 512, "refcount_bits": 64, "lazy_refcounts": "on"}, cache=1024
    ),
    "4096-v2": Kind({"cluster_size": 4096, "compat": "0.10"}, cache=8192),
    "extended": Kind({"extended_l2": "on", "cluster_size": 16384}, cache=0),
    "extended-over-qcow2": Kind(
        {"extended_l2": "on", "cluster_size": 16384},
        parent="qcow2",
        parent_options={"cluster_size": 4096},
    ),
    "over-raw": Kind(parent="raw"),
    "512-over-qcow2": Kind(
        {"cluster_size": 512}, cache=1024, span=1 << 18, parent="qcow2", parent_options={}
    ),
    "data-file": Kind({"data_file": "disk.data", "cluster_size": 8192}, writes_compressed=False),
    "data-file-raw": Kind(
        {"data_file": "disk.data", "data_file_raw": "on", "cluster_size": 512},
        cache=1024,
        span=1 << 18,
        writes_compressed=False,
    ),
    "compressed": Kind({"cluster_size": 4096}, cache=8192, compressed=True),
    "512-compressed": Kind({"cluster_size": 512}, cache=1024, span=1 << 18, compressed=True),
    "snapshot": Kind({"cluster_size": 2048}, cache=4096, snapshot=True),
}


@attrs.define(eq=False, slots=False)
class Trial:
    """An image of a kind, and a crowd on it."""

    kind: Kind
    folder: Path
    rng: random.Random

    def __attrs_post_init__(self) -> None:
        self.image, self.below = self.kind.make(self.folder, self.rng)
        self.files = [self.image]
        if "data_file" in self.kind.options:
            self.files.append(self.folder / str(self.kind.options["data_file"]))

    def open(self) -> tapcore.Disk:
        """For writing, with the kind's cache of tables."""
        return tapcore.open(f"qcow2:{self.image}", metadata_cache=self.kind.cache)

    def crowd(self, disk: tapcore.Disk, host: LateHost) -> Crowd:
        """Not begun."""
        ops = [WRITE, WRITE, WRITE, READ, READ, ZERO, DISCARD, FLUSH]
        if self.kind.writes_compressed:
            ops += [WRITE_COMPRESSED, WRITE_COMPRESSED]
        span = self.kind.span
        history = History.of(disk.pread(0, span))
        return Crowd(disk, host, self.rng, self.files, span, self.below, tuple(ops), history)

    def judge(self, crowd: Crowd, content: bytes) -> None:
        """The disk is closed: what it held last is what QEMU reads; and what flushes left."""
        now = crowd.history.now()
        assert not crowd.history.wrong(0, content, now, now)
        assert content_by_qemu(self.image)[: self.kind.span] == content
        for began, done, contents in crowd.copies:
            wrong = crowd.history.wrong(0, self.read(contents), began, done)
            assert not wrong, f"after a flush: {wrong}"

    def read(self, contents: Sequence[bytes]) -> bytes:
        """What the disk holds if its files hold something."""
        copy = self.folder / "copy"
        if not copy.exists():
            copy.mkdir()
            for path in self.folder.glob("parent.*"):
                shutil.copy(path, copy)
        for path, content in zip(self.files, contents, strict=True):
            (copy / path.name).write_bytes(content)
        with tapcore.open(f"qcow2:{copy / self.image.name}", readonly=True) as disk:
            return disk.pread(0, self.kind.span)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_late(
    kind: str, tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(KINDS[kind], tmp_path, rng)
    with trial.open() as disk:
        host = LateHost(rng, at_once=rng.choice((0, 0, 0.3, 0.8)), slow=rng.choice((0, 0.05, 0.2)))
        crowd = trial.crowd(disk, host)
        with host:
            crowd.run(220, 24)
        assert not any(crowd.statuses)
        content = disk.pread(0, trial.kind.span)
    assert_clean(trial.image)
    trial.judge(crowd, content)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("reads", [False, True], ids=["writes", "reads too"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_late_and_failing(
    kind: str, reads: bool, tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """What was answered with success is there, and a flush that succeeds keeps it."""
    trial = Trial(KINDS[kind], tmp_path, rng)
    with trial.open() as disk:
        host = LateHost(rng, at_once=rng.choice((0, 0.5)), slow=rng.choice((0, 0.1)))
        crowd = trial.crowd(disk, host)
        with host:
            host.faults = FAULTS | READ_FAULTS if reads else FAULTS
            crowd.run(180, 16)
            assert host.failed
            assert set(crowd.statuses) <= {0, -errno.EIO, -errno.ENOSPC}
            host.faults = {}
            crowd.flush()  # may tell of a failure that nobody heard of yet
            assert crowd.flush() == 0
            crowd.run(20, 4)
        content = disk.pread(0, trial.kind.span)
    found = checked(trial.image)
    assert not found.get("corruptions"), found
    assert not found["check-errors"], found
    trial.judge(crowd, content)
    assert not [each for each in caplog.records if "answered" in each.getMessage()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_when_everything_is_late_and_failing(
    kind: str, tmp_path: Path, rng: random.Random
) -> None:
    """Whatever of what is not flushed reached the disk: consistent, and nothing flushed is lost."""
    trial = Trial(KINDS[kind], tmp_path, rng)
    with trial.open() as disk:
        host = LateHost(rng, at_once=rng.choice((0, 0.5)), slow=rng.choice((0, 0.1)))
        crowd = trial.crowd(disk, host)
        with Recording(*trial.files) as recording:
            crowd.history.now = recording.now
            with host:
                host.faults = FAULTS
                crowd.run(120, 16)
    for state in recording.states(rng, 12 * THOROUGH):
        contents = [state.contents[os.path.realpath(path)] for path in trial.files]
        problems = inconsistent(contents[0])
        assert not problems, f"{state}: {problems[0]}"
        wrong = crowd.history.lost(trial.read(contents), state.moment)
        assert not wrong, f"{state}: {wrong}"


# ---- particular meetings -----------------------------------------------------------------------


def test_what_is_inflated_late_is_not_taken_for_what_came_to_its_place(
    tmp_path: Path, rng: random.Random
) -> None:
    """The same offset, the same length, and so the same entry: but another cluster."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    old, new, other = (rng.randbytes(280) + bytes(232) for _ in range(3))
    with tapcore.open(f"qcow2:{image}") as disk:
        disk.write_compressed(0, old)
    with tapcore.open(f"qcow2:{image}") as disk, LateHost(rng) as host:
        crowd = Crowd(disk, host, rng)
        table = disk.state.disks.private.tables.wait(0)
        place = table.entries[0]
        crowd.submit(READ, 0, 512, bytearray(512))
        host.held.update(host.tasks)
        crowd.submit(WRITE_COMPRESSED, 0, 512, new)
        crowd.settle()
        crowd.submit(WRITE, 5 * 512, 512, b"x" * 512)  # the new one cannot go on behind its place
        crowd.settle()
        host.held.clear()
        crowd.settle()
        assert crowd.flush() == 0
        crowd.submit(WRITE_COMPRESSED, 512, 512, other)
        crowd.settle()
        assert table.entries[1] == place
        got = bytearray(1024)
        crowd.submit(READ, 0, 1024, got)
        crowd.settle()
        assert got == new + other
        assert crowd.flush() == 0
    assert_clean(image)


def test_what_is_to_be_inflated_is_not_overwritten_before_it_is(
    tmp_path: Path, rng: random.Random
) -> None:
    """It is given up, written back and counted down before the turn of the loop ends."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    content = rng.randbytes(280) + bytes(232)
    with tapcore.open(f"qcow2:{image}") as disk:
        disk.write_compressed(0, content)
    with tapcore.open(f"qcow2:{image}") as disk, LateHost(rng, at_once=1.0) as host:
        crowd = Crowd(disk, host, rng)
        disk.state.disks.private.tables.wait(0)
        got = bytearray(512)
        crowd.submit(READ, 0, 512, got, turn=False)
        crowd.submit(ZERO, 0, 512, turn=False)
        crowd.submit(FLUSH, 0, 0, turn=False)
        while len(crowd.statuses) < 2:  # all but the read
            host.held = {task for task in host.tasks if "Inflater" in task.name}
            crowd.proceed(turns=False)
        crowd.submit(WRITE, 4096, 512, b"x" * 512)
        host.held.clear()
        crowd.settle()
        assert not any(crowd.statuses)
        assert got in (content, bytes(512))
        assert crowd.flush() == 0
    assert_clean(image)


def test_a_table_read_by_a_late_thread_does_not_undo_changes(
    tmp_path: Path, rng: random.Random
) -> None:
    """It was read, changed, written and forgotten again by others meanwhile."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}") as disk:
        disk.pwrite(0, b"a" * MIB)
    with tapcore.open(f"qcow2:{image}", metadata_cache=1024) as disk, LateHost(rng) as host:
        crowd = Crowd(disk, host, rng)
        crowd.submit(READ, 0, 512, bytearray(512))
        (loading,) = host.tasks
        host.held.add(loading)
        loading.finish()
        crowd.submit(ZERO, 0, 4096)
        assert crowd.flush() == 0
        for table in range(1, 8):
            crowd.submit(READ, table << 15, 512, bytearray(512))
            crowd.settle()
        assert disk.state.disks.private.tables.cached(0) is None
        host.held.clear()
        crowd.settle()
        got = bytearray(8192)
        crowd.submit(READ, 0, 8192, got)
        crowd.submit(WRITE, 4096, 512, b"b" * 512)
        crowd.settle()
        assert got[:4096] == bytes(4096)
        assert crowd.flush() == 0
    assert_clean(image)
    assert content_by_qemu(image)[:8192] == bytes(4096) + b"b" * 512 + b"a" * 3584
