"""Trials of a disk of any format on a host on which everything is late, and fails.

    trial = Trial("vmdk", image, rng, span=1 << 19)
    everything_late(trial)          # or one of the others

What is looked at is content, answers, and, by `Trial.problems`, the tables of the file. A format
whose trial is always the same one inherits them as tests: `Meetings`, `AnyMeetings`.
"""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

import tapcore
from latecrowd import Crowd, History
from latedisk import LateHost
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, WRITE_COMPRESSED, ZERO, Request
from tapcore.testkit import Change, Recording

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
FAULTS = {
    "write_now": 0.02,
    "write_blocking": 0.04,
    "write_metadata": 0.03,
    "flush_blocking": 0.06,
    "truncate_up": 0.04,
}
READ_FAULTS = {"read_now": 0.02, "read_blocking": 0.04, "read_metadata": 0.04}
OPS = (WRITE, WRITE, WRITE, READ, READ, ZERO, DISCARD, FLUSH)
COMPRESSING_OPS = (*OPS, WRITE_COMPRESSED, WRITE_COMPRESSED)


@attrs.define(eq=False)
class Trial:
    """An image that is there, in a folder with all that it needs.

    Attributes:
        handle: of its driver.
        image: path; its name without the suffix is `disk`.
        rng: decides everything.
        span: bytes of the disk, from its start on, that are worked on.
        below: what the parents hold there.
        ops: kinds of requests.
        problems: what is wrong with the tables of the image file, given as its bytes.
        options: of `tapcore.open`.
        first_alone: one write, of a sector, comes before all else: threads of several first ones
            wait for each other, which a host where one runs at a time cannot have.
    """

    handle: str
    image: Path
    rng: random.Random
    span: int
    below: bytes = b""
    ops: tuple[int, ...] = OPS
    problems: Callable[[bytes], list[str]] = lambda content: []
    options: Mapping[str, Any] = attrs.field(factory=dict)
    first_alone: bool = False

    @property
    def files(self) -> list[Path]:
        """All that the disk writes, the image first."""
        others = sorted(set(self.image.parent.glob("disk*")) - {self.image})
        return [self.image, *others]

    @contextmanager
    def crowd(self) -> Iterator[Crowd]:
        """A crowd, not begun, on the disk, opened on a late host; both end with the block.

        It is opened there since a driver may keep methods of its files from then on.
        """
        luck, slow = self.rng.choice((0, 0, 0.3, 0.8)), self.rng.choice((0, 0.05, 0.2))
        before, disk = self.read(), None
        try:
            with LateHost(self.rng, luck, slow) as host:
                disk = tapcore.open(f"{self.handle}:{self.image}", readonly=False, **self.options)
                below = self.below.ljust(self.span, b"\0")
                crowd = Crowd(disk, host, self.rng, self.files, self.span, below, self.ops)
                crowd.history = History.of(before)
                crowd.problems = self.problems
                if self.first_alone:
                    crowd.ops, crowd.span = (WRITE,), 512
                    crowd.run(1, 1)
                    crowd.ops, crowd.span = self.ops, self.span
                yield crowd
        finally:
            if disk is not None:
                disk.close()

    def read(self, contents: Sequence[bytes] | None = None) -> bytes:
        """What the disk holds, or would if its files held something."""
        image = self.image
        if contents is not None:
            image = self._copy(contents)
        name, options = f"{self.handle}:{image}", {**self.options, "readonly": True}
        with tapcore.open(name, **options) as disk:
            return disk.pread(0, length=self.span)

    def _copy(self, contents: Sequence[bytes]) -> Path:
        folder = self.image.parent / "copy"
        if not folder.exists():
            folder.mkdir()
            for path in self.image.parent.iterdir():
                if path.is_file() and path not in self.files:
                    shutil.copy(path, folder)
        for path, content in zip(self.files, contents, strict=True):
            (folder / path.name).write_bytes(content)
        return folder / self.image.name

    def judge(self, crowd: Crowd) -> None:
        """The disk is closed: it holds what it held last, and what flushes left, held that."""
        now = crowd.history.now()
        wrong = crowd.history.wrong(0, self.read(), now, now)
        assert not wrong, f"after closing: {wrong}"
        assert not self.problems(self.image.read_bytes())
        for began, done, contents in crowd.copies:
            wrong = crowd.history.wrong(0, self.read(contents), began, done)
            assert not wrong, f"after a flush: {wrong}"


def everything_late(trial: Trial) -> None:
    """No request fails, is lost, or damages another."""
    with trial.crowd() as crowd:
        crowd.run(100 * THOROUGH, 20)
        assert not any(crowd.statuses)
    trial.judge(crowd)


def everything_late_and_failing(trial: Trial) -> None:
    """What was answered with success is there, and a flush that succeeds keeps it."""
    with trial.crowd() as crowd:
        crowd.host.faults = trial.rng.choice((FAULTS, FAULTS | READ_FAULTS))
        crowd.run(90 * THOROUGH, 16)
        assert set(crowd.statuses) <= {0, -errno.EIO, -errno.ENOSPC}
        crowd.host.faults = {}
        crowd.flush()  # may tell of a failure that nobody heard of yet
        assert crowd.flush() == 0
        crowd.run(20, 4)
    trial.judge(crowd)


def crash_when_everything_is_late(trial: Trial, faults: Mapping[str, float]) -> None:
    """Whatever of what is not flushed reached the disk: consistent, and nothing flushed is lost."""
    with Recording(*trial.files) as recording, trial.crowd() as crowd:
        crowd.history.now = recording.now
        crowd.host.faults = faults
        crowd.run(120, 16)
        crowd.host.faults = {}
        crowd.flush()  # may tell of a failure that nobody heard of yet
    for state in recording.states(trial.rng, 10 * THOROUGH):
        contents = [state.contents[os.path.realpath(path)] for path in trial.files]
        problems = trial.problems(contents[0])
        assert not problems, f"{state}: {problems[0]}"
        wrong = crowd.history.lost(trial.read(contents), state.moment)
        assert not wrong, f"{state}: {wrong}"


# ---- particular meetings -----------------------------------------------------------------------


def writes_that_wait_keep_their_order(trial: Trial, cluster: int) -> None:
    """Those that wait for one new cluster (its size in bytes) go on as they came, each once."""
    with trial.crowd() as crowd:
        host = crowd.host
        host.at_once = host.slow = 0
        crowd.submit(READ, 0, 512, bytearray(512))  # from here on the table is in memory
        crowd.settle()
        crowd.submit(WRITE, cluster, 512, b"1" * 512)
        assert host.tasks
        host.held.update(host.tasks)
        for byte in b"2345":
            crowd.submit(WRITE, cluster + 512, 512, bytes([byte]) * 512)
        crowd.settle()
        assert len(crowd.statuses) == 1
        host.at_once = 1.0
        host.held.clear()
        crowd.settle()
        assert crowd.statuses == [0] * 6
    below = trial.below[cluster + 1024 : 2 * cluster].ljust(cluster - 1024, b"\0")
    assert trial.read()[cluster : 2 * cluster] == b"1" * 512 + b"5" * 512 + below


def who_is_told_reads_what_was_written(trial: Trial, cluster: int) -> None:
    """Even from inside the answer; for a part of a cluster, a whole one, and one in place."""
    wanted: list[bytes] = []
    with trial.crowd() as crowd:
        crowd.host.at_once = 1.0
        crowd.host.slow = 0
        read = [bytearray(512) for _ in range(3)]

        def write(number: int, at: int, length: int) -> None:
            content = bytes([65 + number]) * length
            wanted.append(content[:512])

            def told(request: Request) -> None:
                assert request.status == 0
                crowd.submit(READ, at, 512, read[number])

            crowd.engine.submit(Request(WRITE, at, length, memoryview(bytearray(content)), told))
            crowd.settle()

        write(0, cluster + 512, 512)
        write(1, 4 * cluster, 2 * cluster)
        write(2, 4 * cluster + 1024, 512)
        assert crowd.statuses == [0] * 3
    assert read == wanted


def a_table_that_is_read_late_undoes_nothing(
    trial: Trial, cluster: int, table: int, *, forgotten: bool
) -> None:
    """While a thread reads a table, others have read it, changed it, and perhaps forgotten it.

    Args:
        trial: of an empty disk, of which few tables are kept in memory.
        cluster: bytes.
        table: bytes of the disk that one maps.
        forgotten: the change is written, and the table forgotten, before the thread ends.
    """
    with tapcore.open(f"{trial.handle}:{trial.image}", readonly=False, **trial.options) as disk:
        for at in range(0, trial.span, table):
            disk.pwrite(at, b"a" * 512)
    new, late = b"b" * cluster, bytearray(512)
    with trial.crowd() as crowd:
        host = crowd.host
        host.at_once = host.slow = 0
        crowd.submit(READ, 0, 512, late)
        (loading,) = host.tasks
        host.held.add(loading)
        loading.finish()
        host.at_once = 1.0
        crowd.submit(WRITE, 3 * cluster, cluster, new)
        crowd.settle()
        if forgotten:
            assert crowd.flush() == 0
            for at in [*range(table, trial.span, table)] * 2:
                crowd.submit(READ, at, 512, bytearray(512))
                crowd.settle()
        host.held.clear()
        crowd.settle()
        got = bytearray(cluster)
        crowd.submit(READ, 3 * cluster, cluster, got)
        crowd.settle()
        assert (late, got) == (b"a" * 512, new)
        assert not any(crowd.statuses)
    assert trial.read()[3 * cluster : 4 * cluster] == new


def what_meets_a_cluster_being_filled(
    trial: Trial, cluster: int, op: int, before: int, *, table: bool = False
) -> None:
    """A part of a new cluster is written; its parent's content must not cover what comes meanwhile.

    Args:
        trial: of an empty disk over a parent.
        cluster: bytes.
        op: WRITE, WRITE_COMPRESSED or ZERO: what covers that cluster.
        before: how many clusters before that it covers, too.
        table: something else is stored in the same table already.
    """
    if table:
        with tapcore.open(f"{trial.handle}:{trial.image}", readonly=False, **trial.options) as disk:
            disk.pwrite(4 * cluster, b"t" * cluster)
    first, end = (2 - before) * cluster, 3 * cluster
    content = bytes(end - first) if op == ZERO else b"n" * (end - first)
    with trial.crowd() as crowd:
        host = crowd.host
        host.at_once = host.slow = 0
        crowd.submit(READ, 0, 512, bytearray(512))  # from here on the table is in memory
        crowd.settle()
        if table:  # from here on it is known to be sound
            crowd.submit(WRITE, 4 * cluster, 512, b"u" * 512)
            crowd.settle()
        crowd.submit(WRITE, 2 * cluster + 512, 512, b"p" * 512)
        assert host.tasks
        host.held.update(host.tasks)
        crowd.submit(op, first, end - first, None if op == ZERO else content)
        crowd.settle()
        host.held.clear()
        crowd.settle()
        assert crowd.statuses == [0] * (3 + table)
        assert crowd.flush() == 0
    got = trial.read()[first:end]
    at = before * cluster + 512
    assert got in (content, content[:at] + b"p" * 512 + content[at + 512 :])


def a_place_is_not_used_again_while_something_old_is_on_its_way(
    trial: Trial, cluster: int, op: int
) -> None:
    """Its cluster is discarded, and that is on disk; but a late request is about a part of it.

    Args:
        trial: of an empty disk.
        cluster: bytes.
        op: READ, WRITE, ZERO or DISCARD: of 1024 bytes of the cluster, in its place.
    """
    with tapcore.open(f"{trial.handle}:{trial.image}", readonly=False, **trial.options) as disk:
        disk.pwrite(0, b"o" * cluster)
    part = bytearray(b"w" * 1024) if op in (READ, WRITE) else None
    new = b"n" * 2 * cluster
    with trial.crowd() as crowd:
        host = crowd.host
        host.at_once = host.slow = 0
        crowd.submit(READ, cluster, 512, bytearray(512))  # from here on the table is in memory
        crowd.settle()
        crowd.submit(op, 1024, 1024, part)
        assert host.tasks
        host.held.update(host.tasks)
        crowd.submit(DISCARD, 0, cluster)
        crowd.settle()
        assert crowd.flush() == 0
        crowd.submit(WRITE, 3 * cluster, 2 * cluster, new)
        crowd.settle()
        host.held.clear()
        crowd.settle()
        assert not any(crowd.statuses)
    assert op != READ or part == b"o" * 1024
    assert trial.read()[3 * cluster : 5 * cluster] == new


# ---- every write that a crash can lose, in turn ------------------------------------------------


class _NothingTorn(random.Random):
    """For `Recording.state`: what is kept is kept whole."""

    def random(self) -> float:
        return 1.0


def every_loss_in_turn(trial: Trial) -> None:
    """Little work, all of it: each write of metadata survives alone, and each alone is lost.

    Each just before an fdatasync covers it, so that all that had to come before is lost with it.
    """
    with Recording(*trial.files) as recording, trial.crowd() as crowd:
        crowd.history.now = recording.now
        crowd.host.at_once = 1.0
        crowd.host.slow = 0
        for _ in range(6):
            crowd.ops = tuple(op for op in trial.ops if op not in (READ, FLUSH))
            crowd.run(5, 1)
            crowd.ops = (FLUSH,)
            crowd.run(1, 1)
        assert not any(crowd.statuses)
    end = recording.now()
    for change in recording.changes:
        if not change.metadata:
            continue
        moment = min(change.safe, end) - 1
        for alone in (True, False):

            def keep(each: Change, change: Change = change, alone: bool = alone) -> bool:
                return (each is change) == alone

            state = recording.state(_NothingTorn(), moment, keep)
            contents = [state.contents[os.path.realpath(path)] for path in trial.files]
            problems = trial.problems(contents[0])
            assert not problems, f"{state}: {problems[0]}"
            wrong = crowd.history.lost(trial.read(contents), state.moment)
            assert not wrong, f"{state}: {wrong}"


def a_flush_publishes_only_what_it_covers(trial: Trial, cluster: int) -> None:
    """What is written while a flush is under way is not in the tables before its content is safe.

    Args:
        trial: of an empty disk over a parent.
        cluster: bytes.
    """
    early, late = b"e" * cluster, b"l" * cluster
    with Recording(*trial.files) as recording, trial.crowd() as crowd:
        host = crowd.host
        host.at_once = host.slow = 0
        crowd.submit(READ, 0, 512, bytearray(512))  # from here on the table is in memory
        crowd.submit(WRITE, cluster, cluster, early)
        crowd.settle()
        crowd.submit(FLUSH, 0, 0)
        (flush,) = host.tasks
        host.held.add(flush)
        barriers = len(recording.barriers)
        while len(recording.barriers) == barriers:  # the content that is there is safe now
            flush.go_on()
        host.at_once = 1.0
        crowd.submit(WRITE, 4 * cluster, cluster, late)
        crowd.settle()
        assert crowd.statuses == [0] * 3
        host.held.clear()
        crowd.settle()
        assert crowd.statuses == [0] * 4
    _only_true_content(trial, recording, {cluster: early, 4 * cluster: late})


def a_stage_that_failed_is_written_again_in_order(trial: Trial, cluster: int, stage: int) -> None:
    """What may be named on disk since then is changed only after the content that it leads to.

    Args:
        trial: of an empty disk over a parent.
        cluster: bytes.
        stage: of the first write-back, from 1: its fdatasync fails.
    """
    contents = {cluster: b"e" * cluster, 4 * cluster: b"l" * cluster}
    with Recording(*trial.files) as recording, trial.crowd() as crowd:
        host = crowd.host
        host.at_once, host.slow, host.codes = 1.0, 0, (errno.EIO,)
        (first, early), (second, late) = contents.items()
        crowd.submit(WRITE, first, cluster, early)
        crowd.settle()
        _flush_that_fails(crowd, recording, stage)
        crowd.submit(WRITE, second, cluster, late)
        crowd.settle()
        assert crowd.statuses == [0, -errno.EIO, 0]
        assert crowd.flush() == 0
    _only_true_content(trial, recording, contents)


def _flush_that_fails(crowd: Crowd, recording: Recording, stage: int) -> None:
    host, barriers = crowd.host, len(recording.barriers)
    crowd.submit(FLUSH, 0, 0)
    (flush,) = host.tasks
    host.held.add(flush)
    while len(recording.barriers) < barriers + stage - 1:
        flush.go_on()
    host.faults = {"flush_blocking": 1.0}
    host.held.clear()
    crowd.settle()
    host.faults = {}
    assert crowd.statuses[-1] == -errno.EIO


def _only_true_content(trial: Trial, recording: Recording, contents: Mapping[int, bytes]) -> None:
    """At each moment of a recording, if all metadata but no unsafe content reached the disk.

    Args:
        trial: of a disk over a parent, with nothing else in it.
        recording: of it.
        contents: what was written, by its offset.
    """
    for moment in recording.moments:
        state = recording.state(
            _NothingTorn(), moment, lambda change: change.metadata or change.kind == "size"
        )
        got = trial.read([state.contents[os.path.realpath(path)] for path in trial.files])
        for at, content in contents.items():
            length = len(content)
            assert got[at : at + length] in (content, trial.below[at : at + length]), state


# ---- all of that as tests ----------------------------------------------------------------------


class Meetings:
    """Particular meetings, for the fixture `trial`: of an empty disk over a parent.

    Attributes:
        cluster: bytes.
        unit: of what is written before and after a stage that fails, bytes; 0: a cluster.
    """

    cluster: ClassVar[int]
    unit: ClassVar[int] = 0

    def test_writes_that_wait_keep_their_order(self, trial: Trial) -> None:
        writes_that_wait_keep_their_order(trial, self.cluster)

    def test_who_is_told_reads_what_was_written(self, trial: Trial) -> None:
        who_is_told_reads_what_was_written(trial, self.cluster)

    @pytest.mark.parametrize("before", [0, 1])
    @pytest.mark.parametrize("op", [WRITE, ZERO])
    def test_what_meets_a_block_being_filled(self, op: int, before: int, trial: Trial) -> None:
        what_meets_a_cluster_being_filled(trial, self.cluster, op, before)

    def test_a_flush_publishes_only_what_it_covers(self, trial: Trial) -> None:
        a_flush_publishes_only_what_it_covers(trial, self.cluster)

    @pytest.mark.parametrize("stage", [1, 2])
    def test_a_stage_that_failed_is_written_again_in_order(self, stage: int, trial: Trial) -> None:
        a_stage_that_failed_is_written_again_in_order(trial, self.unit or self.cluster, stage)


class AnyMeetings(Meetings):
    """Meetings at random as well."""

    def test_everything_late(self, trial: Trial) -> None:
        everything_late(trial)

    def test_everything_late_and_failing(self, trial: Trial) -> None:
        everything_late_and_failing(trial)

    def test_every_loss_in_turn(self, trial: Trial) -> None:
        every_loss_in_turn(trial)
