"""What waits for what: new clusters, their tables, flushes, and errors among them."""

import errno
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from tap_qcow import layout
from tap_qcow.create import l1_end, write_image
from tap_qcow.header import HEADER, Header
from tapcore import CacheMode, DiskId, ImageFile, OpenOptions, Registry
from tapcore.opening.chain import open_disk
from tapcore.testkit import Session

CLUSTER = 4096


def make(path: Path, size: int = 64 << 20, parent: str = "") -> Path:
    """An image with clusters of 4 KiB, even with a parent."""
    header = Header(layout.STANDALONE, size, l1_offset=4096)
    if parent:
        header.backing_file, header.backing_offset = parent, HEADER.size
    write_image(str(path), header, l1_end(header))
    return path


def session(image: Path, **options: Any) -> Session:
    disk = open_disk(DiskId(str(image), "qcow"), Registry(), options=OpenOptions(**options))
    return Session(disk, patience=10, errors=True)


def entry_on_disk(image: Path, cluster: int) -> int:
    """The L2 entry of a cluster, 0 where there is no table, as a program would find it now."""
    content = image.read_bytes()
    (table,) = struct.unpack_from(">Q", content, 4096 + 8 * (cluster >> 9))
    if not table:
        return 0
    (entry,) = struct.unpack_from(">Q", content, table + 8 * (cluster & 511))
    return int(entry)


@attrs.define
class Gate:
    """Writes of data go to threads, and wait there until the gate is opened."""

    opened: threading.Event = attrs.field(factory=threading.Event)
    result: int = 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    original = ImageFile.write_blocking

    def write(file: ImageFile, offset: int, buf: memoryview) -> int:
        gate.opened.wait(10)
        return gate.result or original(file, offset, buf)

    monkeypatch.setattr(ImageFile, "write_now", lambda *_: None)
    monkeypatch.setattr(ImageFile, "write_blocking", write)
    return gate


def wait(session: Session, done: Callable[[], bool]) -> None:
    session.submit()
    for _ in range(100):
        if done():
            return
        session.poll(0.1)
    raise AssertionError("it does not come to an end")


def test_a_flush_publishes_only_what_is_written(tmp_path: Path, gate: Gate) -> None:
    image = make(tmp_path / "disk.qcow")
    with session(image) as asked:
        early = asked.write(8 * 5, b"e" * CLUSTER)
        gate.opened.set()
        wait(asked, lambda: not early.left)
        gate.opened.clear()
        late = asked.write(8 * 6, b"l" * CLUSTER)
        first = asked.flush()
        wait(asked, lambda: not first.left)
        assert late.left
        assert entry_on_disk(image, 5)
        assert not entry_on_disk(image, 6)
        gate.opened.set()
        wait(asked, lambda: not late.left)
        assert not entry_on_disk(image, 6)
        second = asked.flush()
        wait(asked, lambda: not second.left)
        assert entry_on_disk(image, 6)
        asked.finish()


def test_writes_to_a_new_cluster_wait_until_it_is_there(tmp_path: Path, gate: Gate) -> None:
    """All of them end up in the one that the first made; neighbours do not wait."""
    (tmp_path / "parent").write_bytes(b"p" * (1 << 20))
    image = make(tmp_path / "disk.qcow", 1 << 20, "parent")
    with session(image) as asked:
        for sector, byte in ((9, b"1"), (10, b"2"), (15, b"3"), (8, b"4")):
            asked.write(sector, byte * 512)
        asked.write(16, b"n" * 512)
        gate.opened.set()
        asked.finish()
        read = asked.read(8, 16)
        asked.finish()
        want = [b"4", b"1", b"2", b"p", b"p", b"p", b"p", b"3", b"n", *[b"p"] * 7]
        assert read.read() == b"".join(byte * 512 for byte in want)
    assert image.stat().st_size == 8192 + 4096 + 2 * CLUSTER  # L1, the L2 table, two clusters


def test_a_write_that_fails_lets_those_that_wait_go_on(tmp_path: Path, gate: Gate) -> None:
    image = make(tmp_path / "disk.qcow")
    gate.result = -errno.ENOSPC
    with session(image) as asked:
        failed = [asked.write(sector, b"x" * 512) for sector in (0, 1, 2)]
        gate.opened.set()
        asked.finish()
        assert [each.error for each in failed] == [-errno.ENOSPC] * 3
        gate.result = 0
        asked.write(1, b"y" * 512)
        asked.finish()
        read = asked.read(0, 8)
        asked.finish()
        assert read.read() == bytes(512) + b"y" * 512 + bytes(6 * 512)


def test_a_file_that_cannot_grow_keeps_what_was_written(tmp_path: Path, gate: Gate) -> None:
    """Space that was given out for a write that failed is not asked for again by the flush."""
    image = make(tmp_path / "disk.qcow")
    with session(image) as asked:
        gate.opened.set()
        asked.write(0, b"x" * 512)
        asked.finish()
        gate.result = -errno.EFBIG
        failed = asked.write(8, b"y" * (1 << 20))
        asked.finish()
        assert failed.error == -errno.EFBIG
        flush = asked.flush()
        asked.finish()
        assert not flush.error
        assert image.stat().st_size == entry_on_disk(image, 0) + CLUSTER
        assert not entry_on_disk(image, 1)


def test_a_parent_that_cannot_be_read_fails_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parent").write_bytes(b"p" * (1 << 20))
    image = make(tmp_path / "disk.qcow", 1 << 20, "parent")
    with session(image) as asked:
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "read_now", lambda *_: -errno.EIO)
            writes = [asked.write(3, b"x" * 512), asked.write(4, b"x" * 512)]
            asked.finish()
            assert [each.error for each in writes] == [-errno.EIO, -errno.EIO]
        whole = asked.write(0, b"w" * CLUSTER)
        asked.finish()
        assert whole.error == 0


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_flush_after_a_failed_one_writes_the_tables_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, cache: CacheMode
) -> None:
    """The one that failed says so: the kernel has given up the data. What is written then is safe.

    A table of which the L1 entry may be on disk is changed only after what it points to.
    """
    image = make(tmp_path / "disk.qcow")
    written: list[tuple[int, int]] = []
    write_metadata = ImageFile.write_metadata
    with tapcore.open(f"qcow:{image}", cache=cache, readonly=False) as disk:
        disk.pwrite(0, b"x" * CLUSTER)
        flushes = iter(range(1, 10))
        with monkeypatch.context() as patch:

            def flush(file: ImageFile) -> int:
                return -errno.EIO if next(flushes) == stage else 0

            patch.setattr(ImageFile, "flush_blocking", flush)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        disk.pwrite(CLUSTER, b"y" * CLUSTER)
        with monkeypatch.context() as patch:

            def write(file: ImageFile, offset: int, content: bytes) -> None:
                written.append((offset, len(content)))
                write_metadata(file, offset, content)

            patch.setattr(ImageFile, "write_metadata", write)
            disk.sync()
    assert [length for _, length in written] == ([CLUSTER, 256] if stage == 1 else [512, 256])
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        assert disk.pread(0, length=2 * CLUSTER) == b"x" * CLUSTER + b"y" * CLUSTER


@pytest.mark.parametrize("who", ["flush", "close"])
def test_a_failed_sync_that_nobody_waited_for_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Tables are written back when too many have changed; whoever flushes next hears of it."""
    image = make(tmp_path / "disk.qcow", 4 << 30)
    disk = tapcore.open(f"qcow:{image}", metadata_cache=4 * 4096, readonly=False)
    leaf = disk.state.disks
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile, "flush_blocking", lambda _: -errno.EIO)
        for number in range(3):
            disk.pwrite(number * (2 << 20), b"x" * CLUSTER)
        leaf.private.file.drain()
    if who == "flush":
        with pytest.raises(tapcore.IOFailedError):
            disk.sync()
        disk.sync()
        disk.close()
    else:
        with pytest.raises(tapcore.TapError, match="Input/output"):
            disk.close()
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        assert disk.pread(4 << 20, length=CLUSTER) == b"x" * CLUSTER


def test_a_full_disk_fails_the_flush_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make(tmp_path / "disk.qcow")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * CLUSTER)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "write_metadata", full)
            with pytest.raises(tapcore.IOFailedError) as caught:
                disk.sync()
            assert caught.value.errno == errno.ENOSPC
        disk.sync()
        assert entry_on_disk(image, 0)
        disk.pwrite(CLUSTER, b"y" * CLUSTER)
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        assert disk.pread(0, length=2 * CLUSTER) == b"x" * CLUSTER + b"y" * CLUSTER


def test_tables_in_memory_stay_bounded(tmp_path: Path) -> None:
    """Writes all over a large disk: many tables, of which few are kept, and none is lost."""
    image = make(tmp_path / "disk.qcow", 4 << 30)
    most = 8
    with tapcore.open(f"qcow:{image}", metadata_cache=most * 4096, readonly=False) as disk:
        leaf = disk.state.disks
        tables = leaf.private.map.tables
        highest = 0
        for number in range(0, 2048, 3):
            disk.pwrite(number * (2 << 20) + 5000, number.to_bytes(8, "big"))
            highest = max(highest, len(tables), len(tables.dirty))
        assert highest <= 3 * most
        for number in range(0, 2048, 3):
            got = disk.pread(number * (2 << 20) + 5000, length=8)
            assert int.from_bytes(got, "big") == number
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        for number in range(0, 2048, 3):
            got = disk.pread(number * (2 << 20) + 5000, length=8)
            assert int.from_bytes(got, "big") == number


def test_zeroes_and_discards_take_no_space(tmp_path: Path) -> None:
    image = make(tmp_path / "disk.qcow")
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        fresh = image.stat().st_size
        disk.zero(0, length=64 << 20)
        disk.sync()
        assert image.stat().st_size == fresh
        disk.pwrite(0, b"x" * (1 << 20))
        disk.sync()
        before = image.stat().st_size
        for _ in range(3):
            disk.zero(0, length=1 << 20)
            disk.pwrite(4096, b"y" * 9000)
            disk.discard(0, length=1 << 19)
        assert not any(disk.pread(0, length=1 << 19))
    assert image.stat().st_size == before
    assert image.stat().st_blocks * 512 < 1 << 19


def test_what_was_inflated_is_forgotten_when_the_image_is_emptied(tmp_path: Path) -> None:
    """Space is used again then: the same place and length, and so the same entry."""
    image = make(tmp_path / "disk.qcow", 1 << 20)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        for byte in (b"a", b"b"):
            disk.write_compressed(0, byte * CLUSTER)
            disk.sync()
            assert disk.pread(0, length=512) == byte * 512
            leaf = disk.state.disks
            if byte == b"a":
                entry = entry_on_disk(image, 0)
                leaf.drv.td_make_empty(leaf)
                assert disk.pread(0, length=512) == bytes(512)
        assert entry_on_disk(image, 0) == entry
