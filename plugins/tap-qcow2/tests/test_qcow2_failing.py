"""Calls of the kernel that fail at the worst moment: told once, and nothing else is damaged."""

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import pytest

import tapcore
from diskmodel import run_all
from qcow2tools import (
    MIB,
    assert_clean,
    checked,
    content_by_qemu,
    create,
    source_content,
)
from qcow2walk import walk
from tapcore.engine import DISCARD, WRITE, Request
from tapcore.files.imagefile import ImageFile
from tapcore.process.workers import WorkerPool


@attrs.define
class Failing:
    """A method of `ImageFile` that fails where `when(*args)` says so."""

    when: Callable[..., bool]
    code: int = errno.EIO
    failed: int = 0


@contextmanager
def failing(
    name: str, when: Callable[..., bool], *, code: int = errno.EIO, raises: bool = True
) -> Iterator[Failing]:
    """See `Failing`; `when` is called with the method's arguments."""
    fault = Failing(when, code)
    real = getattr(ImageFile, name)

    def call(file: ImageFile, *args: Any) -> Any:
        if not fault.when(*args):
            return real(file, *args)
        fault.failed += 1
        if raises:
            raise OSError(fault.code, "injected")
        return -fault.code

    with patch.object(ImageFile, name, call):
        yield fault


@contextmanager
def watched(image: Path) -> Iterator[None]:
    """After each write of metadata what is in the file is consistent."""
    real = ImageFile.write_metadata

    def write(file: ImageFile, offset: int, data: Any) -> None:
        real(file, offset, data)
        found = walk(image.read_bytes())
        problems = found.problems + found.copied_wrong
        if found.incompatible & 1:
            problems = [each for each in problems if "refcount of" not in each]
        assert not problems, f"after a write at {offset:#x}: {problems[0]}"

    with patch.object(ImageFile, "write_metadata", write):
        yield


def image_of(disk: tapcore.Disk) -> Any:
    """What the driver has."""
    return disk.state.disks.private


def empty_with_a_small_refcount_table(folder: Path, **options: Any) -> Path:
    """It has to move when the image file becomes larger than 2 MiB."""
    return create(folder / "disk.qcow2", 4 * MIB, cluster_size=512, refcount_bits=64, **options)


# ---- write-backs -------------------------------------------------------------------------------


def test_after_a_failed_write_back_a_new_table_is_changed_in_order(tmp_path: Path) -> None:
    """It may be pointed to on disk: so refcounts come first, as for any other."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        l1 = image_of(disk).header.l1_table_offset
        written: list[int] = []
        real = ImageFile.write_metadata

        def note(file: ImageFile, offset: int, data: Any) -> None:
            written.append(offset)
            real(file, offset, data)

        disk.pwrite(0, b"a" * 512)
        with (
            patch.object(ImageFile, "write_metadata", note),
            failing("flush_blocking", lambda: written[-1:] == [l1], raises=False) as fault,
            pytest.raises(tapcore.TapError),
        ):
            disk.sync()
        assert fault.failed == 1
        disk.pwrite(5 * 512, b"b" * 512)
        with watched(image):
            disk.sync()
    assert_clean(image)
    assert content_by_qemu(image)[: 6 * 512] == b"a" * 512 + bytes(4 * 512) + b"b" * 512


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_after_a_failed_write_back_a_moved_refcount_table_is_changed_in_order(
    stage: int, tmp_path: Path
) -> None:
    image = empty_with_a_small_refcount_table(tmp_path)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        place = image_of(disk).header.refcount_table_offset
        half = b"a" * (1900 << 10)
        disk.pwrite(0, half)
        disk.sync()
        disk.pwrite(len(half), b"b" * (300 << 10))
        assert image_of(disk).header.refcount_table_offset != place
        flushes = iter(range(1, 10))
        with (
            failing("flush_blocking", lambda: next(flushes) == stage, raises=False),
            pytest.raises(tapcore.TapError),
        ):
            disk.sync()
        disk.pwrite(len(half) + (300 << 10), b"c" * (100 << 10))
        with watched(image):
            disk.sync()
    assert_clean(image)
    want = half + b"b" * (300 << 10) + b"c" * (100 << 10)
    assert content_by_qemu(image)[: len(want)] == want


@pytest.mark.parametrize("what", ["table", "header"])
def test_a_moved_refcount_table_that_could_not_be_written_is_written_whole(
    what: str, tmp_path: Path
) -> None:
    """Most of it has not changed, but at its new place there is nothing yet; then it is named."""
    image = create(tmp_path / "disk.qcow2", 8 * MIB, cluster_size=512, refcount_bits=64)
    half = 3800 << 10
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * half)
        disk.sync()
        refcounts = image_of(disk).refcounts
        assert not refcounts.directory.dirty
        disk.pwrite(half, b"b" * MIB)
        assert refcounts.table_moved
        assert 0 not in refcounts.directory.dirty
        place = image_of(disk).header.refcount_table_offset if what == "table" else 0
        with (
            failing("write_metadata", lambda offset, data: offset == place) as fault,
            pytest.raises(tapcore.TapError),
        ):
            disk.sync()
        assert fault.failed == 1
        disk.sync()
    assert_clean(image)


def test_a_moved_refcount_table_is_on_disk_before_its_old_place_is_used_again(
    tmp_path: Path,
) -> None:
    """Lazy refcounts are written late; where they are to be found is not."""
    image = empty_with_a_small_refcount_table(tmp_path, lazy_refcounts="on")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * (1900 << 10))
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        place = image_of(disk).header.refcount_table_offset
        disk.pwrite(1900 << 10, b"a" * (300 << 10))
        assert image_of(disk).header.refcount_table_offset != place
        for n in range(10):
            disk.sync()
            disk.pwrite((2200 << 10) + n * 4096, b"b" * 4096)
        disk.sync()
        crashed = image.read_bytes()
    found = walk(crashed)
    assert not [each for each in found.problems if "refcount of" not in each]


def test_a_failed_flush_that_nobody_waited_for_is_told_to_who_flushes_next(tmp_path: Path) -> None:
    """The kernel says only once that data is lost."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}", metadata_cache=1024, readonly=False) as disk:
        with failing("flush_blocking", lambda: True, raises=False) as fault:
            for n in range(3):
                disk.pwrite(n << 15, b"a" * 512)
            image_of(disk).file.drain()
        assert fault.failed
        with pytest.raises(tapcore.TapError, match="Input/output"):
            disk.sync()
        disk.sync()
    assert_clean(image)


def test_closing_tells_of_a_flush_that_failed(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    disk = tapcore.open(f"qcow2:{image}", readonly=False)
    disk.pwrite(0, b"a" * 4096)
    with (
        failing("write_metadata", lambda *_: True, code=errno.ENOSPC),
        pytest.raises(tapcore.TapError),
    ):
        disk.close()
    assert not checked(image).get("corruptions")


def test_writes_fail_when_tables_cannot_be_written_and_go_on_when_they_can(tmp_path: Path) -> None:
    """Not more and more memory, and no waiting for ever."""
    image = create(tmp_path / "disk.qcow2", 4 * MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}", metadata_cache=1024, readonly=False) as disk:
        statuses: list[int] = []

        def requests() -> list[Request]:
            return [
                Request(
                    WRITE, n << 15, 512, memoryview(b"a" * 512), lambda r: statuses.append(r.status)
                )
                for n in range(100)
            ]

        with failing("write_metadata", lambda *_: True, code=errno.ENOSPC):
            run_all(disk, requests())
            assert set(statuses[-50:]) == {-errno.ENOSPC}
            assert len(image_of(disk).tables.dirty) < 20
        disk.sync()
        statuses.clear()
        run_all(disk, requests())
        assert len(statuses) == 100
        assert not any(statuses)
        disk.sync()
        for n in range(100):
            assert disk.pread(n << 15, length=512) == b"a" * 512
    assert_clean(image)


def test_a_refcount_that_cannot_be_read_costs_leaks_and_no_answer(tmp_path: Path) -> None:
    """Counting down what is free happens in the middle of answering a flush."""
    image = create(tmp_path / "disk.qcow2", MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * (MIB // 2))
        disk.sync()
        disk.discard(0, length=MIB // 4)
        image_of(disk).refcounts._blocks.clear()
        with failing("read_metadata", lambda *_: True) as fault:
            disk.sync()
        assert fault.failed
        disk.pwrite(MIB // 2, b"b" * 512)
        disk.sync()
    found = checked(image)
    assert found["leaks"] == 4
    assert not found.get("corruptions")
    assert content_by_qemu(image)[MIB // 4 : MIB // 2 + 512] == b"a" * (MIB // 4) + b"b" * 512


def test_space_that_cannot_be_given_back_fails_no_flush(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * MIB)
        disk.discard(0, length=MIB // 2)
        with failing("discard_blocking", lambda *_: True, raises=False) as fault:
            disk.sync()
            image_of(disk).file.drain()
        assert fault.failed
    assert_clean(image)


def test_space_is_given_back_by_the_write_back_after_one_that_failed(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * MIB)
        disk.sync()
        disk.discard(0, length=MIB // 2)
        with (
            failing("flush_blocking", lambda: True, raises=False),
            pytest.raises(tapcore.TapError),
        ):
            disk.sync()
        before = image.stat().st_blocks
        disk.sync()
        image_of(disk).file.drain()
        assert image.stat().st_blocks <= before - MIB // 2 // 512
    assert_clean(image)


def test_no_thread_can_be_started(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * 512)

        def put(*_: Any) -> None:
            raise OSError(errno.EAGAIN, "no threads")

        with patch.object(WorkerPool, "put", put), pytest.raises(tapcore.TapError):
            disk.sync()
        disk.sync()
    assert_clean(image)


# ---- requests ----------------------------------------------------------------------------------


def test_a_file_that_cannot_grow_leaks_nothing(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        with (
            failing("truncate_up", lambda *_: True, code=errno.ENOSPC),
            pytest.raises(tapcore.TapError, match="No space"),
        ):
            disk.pwrite(512, b"a" * 512)
        disk.pwrite(70000, b"b" * 512)
    assert_clean(image)


@pytest.mark.parametrize("how", ["whole", "part", "compressed"])
def test_a_write_that_fails_leaks_nothing(how: str, tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * 4096)
        write = disk.write_compressed if how == "compressed" else disk.pwrite
        with failing("write_now", lambda *_: True, raises=False) as fault:
            for n in (8, 8, 16):
                with pytest.raises(tapcore.TapError):
                    write(n * 4096, b"b" * (512 if how == "part" else 3 * 4096))
        assert fault.failed
        disk.pwrite(4096, b"c" * 4096)
    assert_clean(image)
    assert content_by_qemu(image)[: 20 * 4096] == b"a" * 4096 + b"c" * 4096 + bytes(18 * 4096)


def test_a_discard_of_everything_keeps_few_tables_in_memory(
    tmp_path: Path, rng: random.Random
) -> None:
    (tmp_path / "parent.raw").write_bytes(source_content(rng, 4 * MIB))
    image = create(
        tmp_path / "disk.qcow2", 4 * MIB, parent="parent.raw", form="raw", cluster_size=512
    )
    most = 0
    with tapcore.open(f"qcow2:{image}", metadata_cache=4096, readonly=False) as disk:
        tables = image_of(disk).tables
        real = type(tables).add

        def add(self: Any, *args: Any) -> Any:
            nonlocal most
            most = max(most, len(self.dirty))
            return real(self, *args)

        with patch.object(type(tables), "add", add):
            run_all(disk, [Request(DISCARD, 0, 4 * MIB, None, lambda request: None)])
        assert most <= tables.most + 2
        assert disk.pread(0, length=4 * MIB) == bytes(4 * MIB)
    assert_clean(image)
    assert content_by_qemu(image) == bytes(4 * MIB)


# ---- the header --------------------------------------------------------------------------------


def test_what_is_given_up_does_not_wait_for_a_flush_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tables can give up very many clusters, each of which takes memory until then."""
    monkeypatch.setattr("tap_qcow2.data.diskmap.MOST_RELEASED", 10)
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * MIB)
        disk.sync()
        disk.discard(0, length=MIB)
        image_of(disk).file.drain()
        assert not image_of(disk).refcounts.released
    assert_clean(image)


def test_a_header_never_tells_of_a_refcount_table_that_is_not_there(tmp_path: Path) -> None:
    """A parent is recorded when the table has moved, in memory only."""
    image = empty_with_a_small_refcount_table(tmp_path)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        inside = image_of(disk)
        place = inside.header.refcount_table_offset
        disk.pwrite(0, b"a" * (2200 << 10))
        assert inside.header.refcount_table_offset != place
        with watched(image):
            inside.record_parent(tapcore.DiskId("other.raw", "aio"))
            inside.record_parent(None)
    assert_clean(image)


@pytest.mark.parametrize("healed", [True, False])
def test_a_header_that_cannot_be_written_leaves_the_old_l1_table_in_use(
    healed: bool, tmp_path: Path
) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * 4096)
        disk.sync()
        inside = image_of(disk)
        headers: list[int] = []
        real = ImageFile.write_metadata

        def note(file: ImageFile, offset: int, data: Any) -> None:
            if not offset:
                headers.append(offset)
            real(file, offset, data)

        def when() -> bool:
            return len(headers) == 1 or (bool(headers) and not healed)

        with (
            patch.object(ImageFile, "write_metadata", note),
            failing("flush_blocking", when, raises=False),
            pytest.raises(tapcore.TapError),
        ):
            disk.resize(64 * MIB)
        assert disk.size == MIB
        if healed:
            disk.pwrite(MIB // 2, b"b" * 4096)
            disk.sync()
        else:
            with pytest.raises(tapcore.TapError):
                disk.pwrite(MIB // 2, b"b" * 4096)
            assert inside.broken
            inside.header_writer.broken = False  # so that it is closed in peace
            return
    assert_clean(image)
    content = content_by_qemu(image)
    assert (content[:4096], content[MIB // 2 :][:4096]) == (b"a" * 4096, b"b" * 4096)


def test_an_image_that_cannot_be_emptied_keeps_its_content(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * (MIB // 2))
        disk.sync()
        dd = disk.state.disks
        flushes = iter(range(1, 10))
        with (
            failing("flush_blocking", lambda: next(flushes) == 4, raises=False) as fault,
            pytest.raises(OSError, match="flush failed"),
        ):
            dd.drv.td_make_empty(dd)
        assert fault.failed
        assert disk.pread(0, length=MIB // 2) == b"a" * (MIB // 2)
        disk.pwrite(MIB // 2, b"b" * 4096)
        disk.sync()
        assert disk.pread(0, length=MIB // 2) == b"a" * (MIB // 2)
    assert not checked(image).get("corruptions")
    assert content_by_qemu(image)[: MIB // 2 + 4096] == b"a" * (MIB // 2) + b"b" * 4096


def test_what_a_failed_shrinking_left_does_not_show_when_the_disk_grows(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=512)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * MIB)
        disk.sync()
        tables = type(image_of(disk).tables)

        def wait(self: Any, index: int) -> Any:
            raise OSError(errno.EIO, "injected")

        with patch.object(tables, "wait", wait), pytest.raises(tapcore.TapError):
            disk.resize(MIB // 2)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        size = disk.size
        assert size in (MIB, MIB // 2)
        disk.resize(MIB + 4096)
        assert disk.pread(0, length=disk.size) == b"a" * size + bytes(MIB + 4096 - size)
    assert_clean(image)
    assert content_by_qemu(image) == b"a" * size + bytes(MIB + 4096 - size)


# ---- what a crash of others left ---------------------------------------------------------------


def test_a_table_that_lacks_its_flag_is_copied_and_its_place_used_again(tmp_path: Path) -> None:
    """As QEMU leaves it when it crashes while it deletes a snapshot: not shared any more."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * 8192)
        l1 = image_of(disk).header.l1_table_offset
        table = image_of(disk).tables.offset_of(0)
    with open(image, "r+b") as file:
        file.seek(l1)
        file.write(table.to_bytes(8, "big"))
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        for n in range(4):
            disk.pwrite(16384 + n * 4096, b"b" * 4096)
            disk.sync()
        assert image_of(disk).tables.offset_of(0) != table
        assert image_of(disk).refcounts.get(table >> 12) == 1, "its place is used"
        assert disk.pread(0, length=32768) == b"a" * 8192 + bytes(8192) + b"b" * 16384
    assert_clean(image)
