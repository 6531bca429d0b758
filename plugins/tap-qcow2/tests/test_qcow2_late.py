"""Everything late, in any order, and failing: no request is lost, none damages another."""

import errno
import logging
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

import latetrials
import tapcore
from latecrowd import Crowd, History
from latedisk import LateHost
from qcow2tools import (
    MIB,
    PASSPHRASE,
    assert_clean,
    checked,
    content_by_qemu,
    convert,
    create,
    qemu_img,
    source_content,
)
from qcow2walk import inconsistent, walk
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, WRITE_COMPRESSED, ZERO
from tapcore.testkit import Recording

SECTOR = 512
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
FAULTS = {
    "write_now": 0.02,
    "write_blocking": 0.04,
    "write_metadata": 0.03,
    "flush_blocking": 0.06,
    "truncate_up": 0.04,
}
READ_FAULTS = {"read_now": 0.02, "read_blocking": 0.04, "read_metadata": 0.04}


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encrypted image's key is derived in no time."""
    monkeypatch.setattr("tapcore.formats.luks.keys.iterations_for", lambda *_: 1000)


def create_encrypted(image: Path, size: int, options: Mapping[str, Any]) -> None:
    """With `PASSPHRASE`."""
    key = image.with_suffix(".key")
    key.write_text(PASSPHRASE)
    words = {name: str(value) for name, value in options.items()}
    words["encrypt.key-file"] = str(key)
    tapcore.create_image(f"qcow2:{image}", size, options=words)


# ---- kinds of images ---------------------------------------------------------------------------

SNAPSHOT = "before"


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
        few_blocks: of refcounts, four are kept in memory.
    """

    options: Mapping[str, Any] = {}
    cache: int | None = None
    span: int = 1 << 19
    size: int = MIB + 5 * SECTOR
    compressed: bool = False
    snapshot: bool = False
    parent: str = ""
    parent_options: Mapping[str, Any] = {}
    writes_compressed: bool = True
    few_blocks: bool = False

    @property
    def encrypted(self) -> bool:
        """With `qcow2tools.PASSPHRASE`."""
        return "encrypt.format" in self.options

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
        elif self.encrypted:
            create_encrypted(image, self.size, self.options)
        else:
            create(image, self.size, **self.options)
        if self.snapshot:
            with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
                disk.pwrite(0, rng.randbytes(self.span * 2 // 3))
            qemu_img("snapshot", "-c", SNAPSHOT, image)
        return image, below


KINDS = {
    "default": Kind(),
    "512": Kind({"cluster_size": 512}, cache=1024, span=1 << 18),
    "512-refcount-64-lazy": Kind(
        {"cluster_size": 512, "refcount_bits": 64, "lazy_refcounts": "on"}, cache=1024
    ),
    "512-refcount-64-few": Kind(
        {"cluster_size": 512, "refcount_bits": 64}, span=1 << 18, few_blocks=True
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
    "data-file-extended": Kind(
        {"data_file": "disk.data", "extended_l2": "on", "cluster_size": 16384},
        writes_compressed=False,
    ),
    "encrypted": Kind(
        {"encrypt.format": "luks", "cluster_size": 4096}, cache=8192, writes_compressed=False
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
        self.kept = self.snapshot()
        self.files = [self.image]
        if "data_file" in self.kind.options:
            self.files.append(self.folder / str(self.kind.options["data_file"]))

    def open(self) -> tapcore.Disk:
        """For writing, with the kind's cache of tables."""
        name, keys = f"qcow2:{self.image}", PASSPHRASE.encode()
        disk = tapcore.open(name, metadata_cache=self.kind.cache, keys=keys, readonly=False)
        if self.kind.few_blocks:
            disk.state.disks.private.refcounts._keep = 4
        return disk

    def crowd(self, disk: tapcore.Disk, host: LateHost) -> Crowd:
        """Not begun."""
        ops = [WRITE, WRITE, WRITE, READ, READ, ZERO, DISCARD, FLUSH]
        if self.kind.writes_compressed:
            ops += [WRITE_COMPRESSED, WRITE_COMPRESSED]
        span = self.kind.span
        history = History.of(disk.pread(0, length=span))
        crowd = Crowd(disk, host, self.rng, self.files, span, self.below, tuple(ops), history)
        crowd.problems = inconsistent
        return crowd

    def snapshot(self) -> bytes:
        """What the snapshot holds, where there is one."""
        if not self.kind.snapshot:
            return b""
        with tapcore.open(f"qcow2:{self.image}", readonly=True, snapshot=SNAPSHOT) as disk:
            return disk.pread(0, length=disk.size)

    def judge(self, crowd: Crowd, content: bytes) -> None:
        """The disk is closed: what it held last is what QEMU reads; and what flushes left.

        A snapshot holds what it held.
        """
        assert self.snapshot() == self.kept
        now = crowd.history.now()
        assert not crowd.history.wrong(0, content, now, now)
        assert not inconsistent(self.image.read_bytes())
        if not self.kind.encrypted:  # QEMU would want the key, and time, for this
            found = checked(self.image)
            assert not found.get("corruptions"), found
            assert not found["check-errors"], found
        by_qemu = content_by_qemu(self.image, encrypted=self.kind.encrypted)
        assert by_qemu[: self.kind.span] == content
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
        name, keys = f"qcow2:{copy / self.image.name}", PASSPHRASE.encode()
        with tapcore.open(name, readonly=True, keys=keys) as disk:
            return disk.pread(0, length=self.kind.span)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_late(
    kind: str, tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(KINDS[kind], tmp_path, rng)
    with trial.open() as disk:
        host = LateHost(rng, at_once=rng.choice((0, 0, 0.3, 0.8)), slow=rng.choice((0, 0.05, 0.2)))
        crowd = trial.crowd(disk, host)
        with host:
            crowd.run(120 * THOROUGH, 24)
        assert not any(crowd.statuses)
        content = disk.pread(0, length=trial.kind.span)
    assert not walk(trial.image.read_bytes()).leaks
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
            crowd.run(90 * THOROUGH, 16)
            assert host.failed
            assert set(crowd.statuses) <= {0, -errno.EIO, -errno.ENOSPC}
            host.faults = {}
            crowd.flush()  # may tell of a failure that nobody heard of yet
            assert crowd.flush() == 0
            crowd.run(20, 4)
        content = disk.pread(0, length=trial.kind.span)
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
                host.faults = {}
                crowd.flush()  # may tell of a failure that nobody heard of yet
    for state in recording.states(rng, 8 * THOROUGH):
        contents = [state.contents[os.path.realpath(path)] for path in trial.files]
        problems = inconsistent(contents[0])
        assert not problems, f"{state}: {problems[0]}"
        wrong = crowd.history.lost(trial.read(contents), state.moment)
        assert not wrong, f"{state}: {wrong}"


# ---- particular meetings -----------------------------------------------------------------------

MEETINGS: Mapping[str, tuple[int, str]] = {"plain": (4096, "off"), "extended": (16384, "on")}
"""Cluster size, and whether there are subclusters."""


def small_trial(folder: Path, rng: random.Random, kind: str, *, parent: bool) -> latetrials.Trial:
    """Of an empty disk of 256 KiB."""
    size, below, more = 1 << 18, b"", {}
    if parent:
        below = rng.randbytes(size)
        (folder / "parent.raw").write_bytes(below)
        more = {"parent": "parent.raw", "form": "raw"}
    image = folder / "disk.qcow2"
    cluster_size, extended = MEETINGS[kind]
    create(image, size, **more, cluster_size=cluster_size, extended_l2=extended)
    return latetrials.Trial("qcow2", image, rng, size, below, problems=inconsistent)


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("kind", MEETINGS)
def test_every_loss_in_turn(kind: str, parent: bool, tmp_path: Path, rng: random.Random) -> None:
    trial = small_trial(tmp_path, rng, kind, parent=parent)
    trial.ops = latetrials.COMPRESSING_OPS
    latetrials.every_loss_in_turn(trial)


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("kind", MEETINGS)
def test_writes_that_wait_keep_their_order(
    kind: str, parent: bool, tmp_path: Path, rng: random.Random
) -> None:
    trial = small_trial(tmp_path, rng, kind, parent=parent)
    latetrials.writes_that_wait_keep_their_order(trial, MEETINGS[kind][0])


@pytest.mark.parametrize("kind", MEETINGS)
def test_who_is_told_reads_what_was_written(kind: str, tmp_path: Path, rng: random.Random) -> None:
    trial = small_trial(tmp_path, rng, kind, parent=True)
    latetrials.who_is_told_reads_what_was_written(trial, MEETINGS[kind][0])


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("op", [WRITE, WRITE_COMPRESSED, ZERO])
@pytest.mark.parametrize("kind", MEETINGS)
def test_what_meets_a_cluster_being_filled(
    kind: str, op: int, before: int, table: bool, tmp_path: Path, rng: random.Random
) -> None:
    trial, cluster = small_trial(tmp_path, rng, kind, parent=True), MEETINGS[kind][0]
    latetrials.what_meets_a_cluster_being_filled(trial, cluster, op, before, table=table)


@pytest.mark.parametrize("op", [READ, WRITE])
@pytest.mark.parametrize("kind", MEETINGS)
def test_a_place_is_not_used_again_while_something_old_is_on_its_way(
    kind: str, op: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = small_trial(tmp_path, rng, kind, parent=False)
    cluster = MEETINGS[kind][0]
    latetrials.a_place_is_not_used_again_while_something_old_is_on_its_way(trial, cluster, op)


def test_the_rest_of_the_last_cluster_comes_from_below(tmp_path: Path, rng: random.Random) -> None:
    """The disk ends inside it."""
    size, parent = 5 * 4096 + 1536, tmp_path / "parent.raw"
    below = rng.randbytes(size)
    parent.write_bytes(below)
    image = create(tmp_path / "disk.qcow2", size, parent=parent.name, form="raw", cluster_size=4096)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(5 * 4096, b"a" * 512)
    want = below[: 5 * 4096] + b"a" * 512 + below[5 * 4096 + 512 :]
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, length=size) == want
    assert content_by_qemu(image) == want
    assert_clean(image)


def test_what_is_inflated_late_is_not_taken_for_what_came_to_its_place(
    tmp_path: Path, rng: random.Random
) -> None:
    """The same offset, the same length, and so the same entry: but another cluster."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    old, new, other = (rng.randbytes(280) + bytes(232) for _ in range(3))
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.write_compressed(0, old)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk, LateHost(rng) as host:
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
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up, written back and counted down before the turn of the loop ends."""
    monkeypatch.setattr("tapcore.clusters.packed.AT_ONCE_BYTES", 0)
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    content = rng.randbytes(280) + bytes(232)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.write_compressed(0, content)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk, LateHost(rng, at_once=1.0) as host:
        crowd = Crowd(disk, host, rng)
        disk.state.disks.private.tables.wait(0)
        got = bytearray(512)
        crowd.submit(READ, 0, 512, got, turn=False)
        assert not crowd.statuses
        crowd.submit(ZERO, 0, 512, turn=False)
        crowd.submit(FLUSH, 0, 0, turn=False)
        while len(crowd.statuses) < 2:  # all but the read
            host.held = {task for task in host.tasks if "PackedContent" in task.name}
            crowd.proceed(turns=False)
        crowd.submit(WRITE, 4096, 512, b"x" * 512)
        host.held.clear()
        crowd.settle()
        assert not any(crowd.statuses)
        assert got in (content, bytes(512))
        assert crowd.flush() == 0
    assert_clean(image)


def test_a_late_read_of_what_is_encrypted_does_not_decrypt_a_hole(
    tmp_path: Path, rng: random.Random
) -> None:
    """Its cluster is discarded, and that is flushed, while it waits."""
    image = tmp_path / "disk.qcow2"
    create_encrypted(image, MIB, {"encrypt.format": "luks"})
    keys = PASSPHRASE.encode()
    with tapcore.open(f"qcow2:{image}", keys=keys, readonly=False) as disk:
        disk.pwrite(0, b"a" * 65536)
    with tapcore.open(f"qcow2:{image}", keys=keys, readonly=False) as disk, LateHost(rng) as host:
        disk.state.disks.private.tables.wait(0)
        crowd = Crowd(disk, host, rng)
        got = bytearray(65536)
        crowd.submit(READ, 0, 65536, got)
        host.held.update(host.tasks)
        crowd.submit(DISCARD, 0, 65536)
        assert crowd.flush() == 0
        host.held.clear()
        crowd.settle()
        assert got in (b"a" * 65536, bytes(65536))
        assert crowd.flush() == 0
    assert not walk(image.read_bytes()).leaks


def test_a_table_read_by_a_late_thread_does_not_undo_changes(
    tmp_path: Path, rng: random.Random
) -> None:
    """It was read, changed, written and forgotten again by others meanwhile."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * MIB)
    with (
        tapcore.open(f"qcow2:{image}", metadata_cache=1024, readonly=False) as disk,
        LateHost(rng) as host,
    ):
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
        assert disk.state.disks.private.tables.get(0) is None
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


def test_a_flush_publishes_only_what_it_covers(tmp_path: Path, rng: random.Random) -> None:
    trial = small_trial(tmp_path, rng, "plain", parent=True)
    latetrials.a_flush_publishes_only_what_it_covers(trial, MEETINGS["plain"][0])


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("kind", MEETINGS)
def test_a_stage_that_failed_is_written_again_in_order(
    kind: str, stage: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = small_trial(tmp_path, rng, kind, parent=True)
    latetrials.a_stage_that_failed_is_written_again_in_order(trial, MEETINGS[kind][0], stage)
