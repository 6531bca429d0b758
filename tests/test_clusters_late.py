"""Formats with tables, by one that has everything: late, in any order, and failing."""

import errno
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from drivers.toymap import ToyMapDriver, create, inconsistent, share_all

import latetrials
import tapcore
from latecrowd import Crowd, History
from latedisk import LateHost
from tapcore import DiskId
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, WRITE_COMPRESSED, ZERO
from tapcore.testkit import Recording

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
SIZE = (300 << 10) + 5 * 512
FAULTS = {
    "write_now": 0.02,
    "write_blocking": 0.04,
    "write_metadata": 0.03,
    "flush_blocking": 0.06,
    "truncate_up": 0.04,
}
READ_FAULTS = {"read_now": 0.02, "read_blocking": 0.04, "read_metadata": 0.04}


@attrs.frozen
class Kind:
    """A kind of image.

    Attributes:
        units: "sectors": parts of a cluster are stored on their own.
        cipher: "disk" or "place": how its sectors are counted.
        cache: bytes of tables in memory.
        parent: over a shorter one.
        shared: begins with content that is not its own.
    """

    units: str = ""
    cipher: str = ""
    cache: int = 1200  # a few tables
    parent: bool = False
    shared: bool = False


KINDS = {
    "plain": Kind(),
    "large cache": Kind(cache=1 << 20),
    "over a parent": Kind(parent=True),
    "shared": Kind(shared=True),
    "shared, over a parent": Kind(shared=True, parent=True),
    "units": Kind(units="sectors"),
    "units, over a parent": Kind(units="sectors", parent=True),
    "units, shared, over a parent": Kind(units="sectors", shared=True, parent=True),
    "cipher": Kind(cipher="disk"),
    "cipher by place": Kind(cipher="place", parent=True),
    "cipher by place, units, shared": Kind(cipher="place", units="sectors", shared=True),
}


class ToyCrowd(Crowd):
    """What lies in the file is another format's affair."""

    def _walk(self) -> None:
        self.errors += inconsistent(self.files[0].read_bytes())[:1]


def registry() -> tapcore.Registry:
    made = tapcore.Registry()
    row = made.register(ToyMapDriver())
    assert not row.error
    return made


@attrs.define(eq=False, slots=False)
class Trial:
    """An image of a kind, and a crowd on it."""

    kind: Kind
    folder: Path
    rng: random.Random

    def __attrs_post_init__(self) -> None:
        self.image, self.below = self.folder / "disk.toy", bytes(SIZE)
        self.registry = registry()
        parent = None
        if self.kind.parent:
            content = self.rng.randbytes(SIZE // 2 + 3 * 512)
            (self.folder / "parent").write_bytes(content)
            self.below = content.ljust(SIZE, b"\0")
            parent = DiskId("parent", "sync")
        create(str(self.image), SIZE, parent, units=self.kind.units, cipher=self.kind.cipher)
        if self.kind.shared:
            with self.open() as disk:
                disk.pwrite(0, self.rng.randbytes(SIZE // 3))
                disk.write_compressed(SIZE // 4096 // 2 * 4096, bytes(range(256)) * 64)
            share_all(str(self.image))

    def open(self, readonly: bool = False, path: Path | None = None) -> tapcore.Disk:
        return tapcore.open(
            f"toymap:{path or self.image}",
            readonly=readonly,
            registry=self.registry,
            metadata_cache=self.kind.cache,
        )

    def crowd(self, disk: tapcore.Disk, host: LateHost) -> Crowd:
        ops = [WRITE, WRITE, WRITE, READ, READ, ZERO, DISCARD, FLUSH, WRITE_COMPRESSED]
        history = History.of(disk.pread(0, length=SIZE))
        files = [self.image]
        return ToyCrowd(disk, host, self.rng, files, SIZE, self.below, tuple(ops), history)

    def judge(self, crowd: Crowd, content: bytes) -> None:
        """The disk is closed: what it held last is read again, and so what flushes left."""
        now = crowd.history.now()
        assert not crowd.history.wrong(0, content, now, now)
        assert not inconsistent(self.image.read_bytes())
        with self.open(readonly=True) as disk:
            assert disk.pread(0, length=SIZE) == content
        for began, done, contents in crowd.copies:
            wrong = crowd.history.wrong(0, self.read(contents), began, done)
            assert not wrong, f"after a flush: {wrong}"

    def read(self, contents: Sequence[bytes]) -> bytes:
        """What the disk holds if its file holds something."""
        copy = self.folder / "copy"
        if not copy.exists():
            copy.mkdir()
            if self.kind.parent:
                shutil.copy(self.folder / "parent", copy)
        (copy / "disk.toy").write_bytes(contents[0])
        with self.open(readonly=True, path=copy / "disk.toy") as disk:
            return disk.pread(0, length=SIZE)


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random) -> Trial:
    return Trial(KINDS[request.param], tmp_path, rng)


each_kind = pytest.mark.parametrize("trial", KINDS, indirect=True)


@each_kind
def test_everything_late(trial: Trial, rng: random.Random) -> None:
    for _ in range(THOROUGH):
        with trial.open() as disk:
            host = LateHost(
                rng, at_once=rng.choice((0, 0, 0.3, 0.8)), slow=rng.choice((0, 0.05, 0.2))
            )
            crowd = trial.crowd(disk, host)
            with host:
                crowd.run(150, 24)
            assert not any(crowd.statuses)
            content = disk.pread(0, length=SIZE)
        trial.judge(crowd, content)


@each_kind
@pytest.mark.parametrize("reads", [False, True], ids=["writes", "reads too"])
def test_everything_late_and_failing(trial: Trial, reads: bool, rng: random.Random) -> None:
    """What was answered with success is there, and a flush that succeeds keeps it."""
    for _ in range(THOROUGH):
        with trial.open() as disk:
            host = LateHost(rng, at_once=rng.choice((0, 0.5)), slow=rng.choice((0, 0.1)))
            crowd = trial.crowd(disk, host)
            with host:
                host.faults = FAULTS | READ_FAULTS if reads else FAULTS
                crowd.run(110, 16)
                assert host.failed
                assert set(crowd.statuses) <= {0, -errno.EIO, -errno.ENOSPC}
                host.faults = {}
                crowd.flush()  # may tell of a failure that nobody heard of yet
                assert crowd.flush() == 0
                crowd.run(20, 4)
            content = disk.pread(0, length=SIZE)
        trial.judge(crowd, content)


@each_kind
def test_a_crash_when_everything_is_late_and_failing(trial: Trial, rng: random.Random) -> None:
    """Whatever of what is not flushed reached the disk: consistent, and nothing flushed is lost."""
    with trial.open() as disk:
        host = LateHost(rng, at_once=rng.choice((0, 0.5)), slow=rng.choice((0, 0.1)))
        crowd = trial.crowd(disk, host)
        with Recording(trial.image) as recording:
            crowd.history.now = recording.now
            with host:
                host.faults = FAULTS
                crowd.run(100, 16)
                host.faults = {}
                crowd.flush()
    for state in recording.states(rng, 12 * THOROUGH):
        contents = [state.contents[os.path.realpath(trial.image)]]
        assert not inconsistent(contents[0]), state
        wrong = crowd.history.lost(trial.read(contents), state.moment)
        assert not wrong, f"{state}: {wrong}"


# ---- particular meetings -----------------------------------------------------------------------


def test_a_write_in_place_waits_for_what_takes_its_place(
    tmp_path: Path, rng: random.Random
) -> None:
    """A cluster that is stored plain is being packed anew: what is written to it comes after."""
    trial = Trial(KINDS["plain"], tmp_path, rng)
    with trial.open() as disk:
        disk.pwrite(0, b"o" * 4096)
        disk.pwrite(4096, b"o" * 4096)
        host = LateHost(rng, at_once=1.0)
        crowd = ToyCrowd(disk, host, rng)
        with host:
            crowd.submit(WRITE_COMPRESSED, 0, 4096, b"packed! " * 512)
            crowd.submit(WRITE, 512, 512, b"w" * 512)
            crowd.submit(WRITE, 4096, 512, b"w" * 512)  # nobody changes that one
            assert len(crowd.statuses) <= 1  # a slow machine may let that one wait, too
            crowd.settle()
        assert crowd.statuses == [0, 0, 0]
        assert disk.pread(0, length=1032) == b"packed! " * 64 + b"w" * 512 + b"packed! "
        assert disk.pread(4096, length=513) == b"w" * 512 + b"o"


def test_the_table_of_a_busy_cluster_stays_in_memory(tmp_path: Path, rng: random.Random) -> None:
    """Else whoever links the cluster would have to wait for the disk, in the loop."""
    trial = Trial(KINDS["plain"], tmp_path, rng)
    with trial.open() as disk:
        for table in range(0, SIZE, 8 * 4096):
            disk.pwrite(table, b"o" * 4096)
        disk.sync()
        host = LateHost(rng, at_once=0.0)
        crowd = ToyCrowd(disk, host, rng)
        image = disk.state.disks.private
        assert image.tables.most < SIZE // (8 * 4096) - 1
        with host:
            crowd.submit(WRITE, 4096, 4096, b"w" * 4096)  # of the first table
            while not image.clusters.busy:
                crowd.proceed()
            host.held.update(host.tasks)
            for table in range(8 * 4096, SIZE, 8 * 4096):
                crowd.submit(READ, table, 512, bytearray(512))
                crowd.settle()
            assert 0 in image.tables
            host.held.clear()
            crowd.settle()
        assert not any(crowd.statuses)
        assert disk.pread(4096, length=4096) == b"w" * 4096


def test_who_saves_all_waits_for_a_write_back_under_way(tmp_path: Path, rng: random.Random) -> None:
    """Else the tables as they were would be written over those that were saved."""
    trial = Trial(KINDS["plain"], tmp_path, rng)
    with trial.open() as disk:
        disk.pwrite(0, b"o" * 4096)
        disk.sync()
        host = LateHost(rng, at_once=1.0)
        crowd = ToyCrowd(disk, host, rng)
        with host:
            crowd.submit(WRITE, 4096, 4096, b"a" * 4096)
            crowd.submit(FLUSH, 0, 0)
            (flush,) = host.tasks
            flush.go_on()
            crowd.submit(WRITE, 8192, 4096, b"b" * 4096)
            disk.state.disks.private.clusters.writeback.all_now()
            crowd.settle()
        assert crowd.statuses == [0, 0, 0]
    with trial.open(readonly=True) as disk:
        assert disk.pread(0, length=3 * 4096) == b"o" * 4096 + b"a" * 4096 + b"b" * 4096


def small_trial(
    folder: Path, rng: random.Random, *, parent: bool, units: str = ""
) -> latetrials.Trial:
    """Of an empty disk of 256 KiB, eight tables, of which few are kept in memory."""
    size, image, below = 1 << 18, folder / "disk.toy", b""
    if parent:
        below = rng.randbytes(size)
        (folder / "parent").write_bytes(below)
    create(str(image), size, DiskId("parent", "sync") if parent else None, units=units)
    options = {"registry": registry(), "metadata_cache": 1200}
    ops = latetrials.COMPRESSING_OPS
    return latetrials.Trial("toymap", image, rng, size, below, ops, inconsistent, options)


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("units", ["", "sectors"])
def test_every_loss_in_turn(units: str, parent: bool, tmp_path: Path, rng: random.Random) -> None:
    latetrials.every_loss_in_turn(small_trial(tmp_path, rng, parent=parent, units=units))


@pytest.mark.parametrize("parent", [False, True])
def test_writes_that_wait_keep_their_order(
    parent: bool, tmp_path: Path, rng: random.Random
) -> None:
    trial = small_trial(tmp_path, rng, parent=parent)
    latetrials.writes_that_wait_keep_their_order(trial, 4096)


def test_who_is_told_reads_what_was_written(tmp_path: Path, rng: random.Random) -> None:
    trial = small_trial(tmp_path, rng, parent=True)
    latetrials.who_is_told_reads_what_was_written(trial, 4096)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_table_that_is_read_late_undoes_nothing(
    forgotten: bool, tmp_path: Path, rng: random.Random
) -> None:
    trial = small_trial(tmp_path, rng, parent=False)
    latetrials.a_table_that_is_read_late_undoes_nothing(trial, 4096, 8 * 4096, forgotten=forgotten)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("op", [WRITE, WRITE_COMPRESSED, ZERO])
def test_what_meets_a_cluster_being_filled(
    op: int, before: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = small_trial(tmp_path, rng, parent=True)
    latetrials.what_meets_a_cluster_being_filled(trial, 4096, op, before)


def test_a_flush_publishes_only_what_it_covers(tmp_path: Path, rng: random.Random) -> None:
    trial = small_trial(tmp_path, rng, parent=True)
    latetrials.a_flush_publishes_only_what_it_covers(trial, 4096)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_that_failed_is_written_again_in_order(
    stage: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = small_trial(tmp_path, rng, parent=True)
    latetrials.a_stage_that_failed_is_written_again_in_order(trial, 4096, stage)


def test_a_write_into_places_that_were_kept_waits_for_a_busy_one_among_them(
    tmp_path: Path, rng: random.Random
) -> None:
    """Each fills the rest of the cluster, and would write over the other's part."""
    trial = Trial(KINDS["plain"], tmp_path, rng)
    with trial.open() as disk:
        disk.pwrite(0, b"o" * 2 * 4096)
        host = LateHost(rng, at_once=0.0)
        crowd = ToyCrowd(disk, host, rng)
        with host:
            crowd.submit(ZERO, 0, 2 * 4096)
            crowd.settle()
            crowd.submit(WRITE, 4096 + 2048, 512, b"1" * 512)
            assert host.tasks
            host.held.update(host.tasks)
            crowd.submit(WRITE, 0, 4096 + 512, b"2" * (4096 + 512))
            crowd.settle()
            host.held.clear()
            crowd.settle()
        assert crowd.statuses == [0, 0, 0]
        assert disk.pread(0, length=4096 + 512) == b"2" * (4096 + 512)
        assert disk.pread(4096 + 2048, length=513) == b"1" * 512 + b"\0"


def test_a_long_discard_tells_of_a_write_back_that_failed_on_its_way(
    tmp_path: Path, rng: random.Random
) -> None:
    """Nobody else waited for it, and the kernel says only once what it has lost."""
    trial = Trial(KINDS["plain"], tmp_path, rng)
    with trial.open() as disk:
        disk.pwrite(0, b"o" * SIZE)
        disk.sync()
        host = LateHost(rng, at_once=1.0, codes=(errno.EIO,))
        crowd = ToyCrowd(disk, host, rng)
        with host:
            host.faults = {"flush_blocking": 1.0}
            crowd.submit(DISCARD, 0, SIZE)
            crowd.settle()
            assert crowd.statuses == [-errno.EIO]
            host.faults = {}
            assert crowd.flush() == 0


@pytest.mark.parametrize("clusters", [1, 2], ids=["the short way", "in parts"])
@pytest.mark.parametrize("op", [READ, WRITE])
def test_a_place_is_not_used_again_while_something_old_is_on_its_way(
    op: int, clusters: int, tmp_path: Path, rng: random.Random
) -> None:
    """Its cluster is discarded, and that is on disk; but a late read or write is about it."""
    trial = Trial(KINDS["plain"], tmp_path, rng)
    with trial.open() as disk:
        disk.pwrite(0, b"o" * 4096)
        disk.sync()
        host = LateHost(rng, at_once=0.0)
        crowd = ToyCrowd(disk, host, rng)
        got = bytearray(b"w" * clusters * 4096)
        with host:
            crowd.submit(op, 0, clusters * 4096, got)
            host.held.update(host.tasks[:1])
            crowd.settle()
            crowd.submit(DISCARD, 0, 4096)
            crowd.settle()
            assert crowd.flush() == 0
            crowd.submit(WRITE, 4 * 4096, 4096, b"x" * 4096)
            crowd.settle()
            host.held.clear()
            crowd.settle()
        assert not any(crowd.statuses)
        assert op == WRITE or got[:4096] in (b"o" * 4096, bytes(4096))
        assert disk.pread(4 * 4096, length=4096) == b"x" * 4096
