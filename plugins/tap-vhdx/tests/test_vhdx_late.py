"""Requests that meet while the host is late: none is lost, none damages another, none is early."""

import errno
import random
from pathlib import Path

import pytest

import tapcore
from latetrials import (
    Meetings,
    Trial,
    a_place_is_not_used_again_while_something_old_is_on_its_way,
)
from tap_vhdx.headers import HEADERS_AT
from tap_vhdx.logentries import HEADER
from tapcore import ImageFile
from tapcore.engine import DISCARD, READ, WRITE, ZERO
from vhdxtools import MIB, content_of, make, problems, store_in_part

BLOCK = MIB
SIZE = 6 * BLOCK


@pytest.fixture
def trial(tmp_path: Path, rng: random.Random) -> Trial:
    """Of an empty disk of six blocks, over a parent with content."""
    parent, image, below = tmp_path / "parent.vhdx", tmp_path / "disk.vhdx", rng.randbytes(SIZE)
    make(parent, SIZE)
    with tapcore.open(f"vhdx:{parent}", readonly=False) as disk:
        disk.pwrite(0, below)
    make(image, SIZE, parent.name, block_size="1M")
    trial = Trial("vhdx", image, rng, SIZE, below)
    trial.problems = lambda content: problems(content, closed=False)
    return trial


class TestMeetings(Meetings):
    cluster = BLOCK


def test_content_is_safe_before_the_log_and_that_before_a_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.vhdx"
    make(image, SIZE)
    steps: list[str] = []
    write, flush = ImageFile.write_metadata, ImageFile.flush_blocking

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        steps.append("log" if bytes(data[:4]) == b"loge" else "page")
        write(file, offset, data)

    def flushed(file: ImageFile) -> int:
        steps.append("safe")
        return flush(file)

    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
        monkeypatch.setattr(ImageFile, "write_metadata", noted)
        monkeypatch.setattr(ImageFile, "flush_blocking", flushed)
        disk.sync()
        monkeypatch.undo()
    assert steps == ["safe", "log", "safe", "page", "safe"]


def test_an_entry_of_the_log_spares_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So there is always one that is whole."""
    image = tmp_path / "disk.vhdx"
    make(image, SIZE)
    entries: list[tuple[int, int]] = []
    write = ImageFile.write_metadata

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        if bytes(data[:4]) == b"loge":
            entries.append((offset, offset + len(data)))
        write(file, offset, data)

    monkeypatch.setattr(ImageFile, "write_metadata", noted)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        for block in range(3):
            disk.pwrite(block * BLOCK, b"x" * 512)
            disk.sync()
    (_, first), (second, end), (third, _) = entries
    assert second >= first
    assert third >= end


@pytest.mark.parametrize(("stage", "spared"), [(2, False), (3, True)], ids=["entry", "pages"])
def test_an_entry_is_spared_once_pages_of_it_may_be_in_their_place(
    stage: int, spared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that could not be written is written again where it was, and not behind."""
    image = tmp_path / "disk.vhdx"
    make(image, SIZE)
    entries: list[tuple[int, int]] = []
    write, flushes = ImageFile.write_metadata, list[int]()

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        if bytes(data[:4]) == b"loge":
            entries.append((offset, offset + len(data)))
        write(file, offset, data)

    def fails_once(file: ImageFile) -> int:
        flushes.append(stage)
        return -errno.EIO if len(flushes) == stage else 0

    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 512)
        monkeypatch.setattr(ImageFile, "write_metadata", noted)
        monkeypatch.setattr(ImageFile, "flush_blocking", fails_once)
        with pytest.raises(tapcore.IOFailedError):
            disk.sync()
        disk.sync()
        monkeypatch.undo()
    (first, end), (second, _) = entries
    assert second == (end if spared else first)


def test_one_header_is_safe_before_the_other_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.vhdx"
    make(image, SIZE)
    steps: list[str] = []
    write, flush = ImageFile.write_metadata, ImageFile.flush_blocking

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        if offset in HEADERS_AT:
            steps.append("header")
        write(file, offset, data)

    def flushed(file: ImageFile) -> int:
        if steps and steps[-1] == "header":
            steps.append("safe")
        return flush(file)

    monkeypatch.setattr(ImageFile, "write_metadata", noted)
    monkeypatch.setattr(ImageFile, "flush_blocking", flushed)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 512)
    assert steps == ["header", "safe"] * 4  # as it begins to be written, and when it is closed


def test_the_log_knows_of_no_longer_file_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is shorter than its log says was cut, for whoever opens it after a crash."""
    image = tmp_path / "disk.vhdx"
    make(image, SIZE)
    told: list[tuple[int, int]] = []
    write = ImageFile.write_metadata

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        if bytes(data[:4]) == b"loge":
            told.append((HEADER.unpack_from(data)[8], image.stat().st_size))
        write(file, offset, data)

    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
        disk.sync()
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "write_now", lambda *_: -errno.EIO)
            with pytest.raises(tapcore.IOFailedError):
                disk.pwrite(3 * BLOCK, b"y" * 2 * BLOCK)
        disk.discard(0, length=BLOCK)
        monkeypatch.setattr(ImageFile, "write_metadata", noted)
        disk.sync()
        monkeypatch.undo()
    assert told
    assert all(flushed <= size for flushed, size in told)


def test_a_place_of_which_no_hole_can_be_made_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a part of what could not be written."""
    image = tmp_path / "disk.vhdx"
    make(image, SIZE)
    end = image.stat().st_size
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        clusters = disk.state.disks.private.clusters
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "write_now", lambda *_: -errno.EIO)
            patch.setattr(ImageFile, "discard_blocking", lambda *_: -errno.EOPNOTSUPP)
            with pytest.raises(tapcore.IOFailedError):
                disk.pwrite(0, b"x" * BLOCK)
            clusters.drain()
        disk.pwrite(BLOCK, b"y" * BLOCK)
        assert clusters.place(BLOCK // 512, 1) == end + BLOCK
    assert content_of(image)[: 2 * BLOCK] == bytes(BLOCK) + b"y" * BLOCK


def test_what_was_given_up_is_used_again_after_a_flush_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.vhdx"
    make(image, SIZE)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
        disk.sync()
        length = image.stat().st_size
        disk.discard(0, length=BLOCK)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "flush_blocking", lambda _: -errno.EIO)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        disk.sync()
        disk.state.disks.private.clusters.drain()  # a hole is made of it first
        disk.pwrite(BLOCK, b"y" * BLOCK)
        disk.sync()
        assert image.stat().st_size == length
        assert disk.pread(0, length=2 * BLOCK) == bytes(BLOCK) + b"y" * BLOCK


def test_what_is_stored_of_a_block_comes_along_where_no_parent_reaches(
    tmp_path: Path, rng: random.Random
) -> None:
    parent, image, content = tmp_path / "parent.vhdx", tmp_path / "disk.vhdx", rng.randbytes(MIB)
    make(parent, MIB)
    make(image, 3 * MIB, parent.name)
    store_in_part(image, 2, [True] * 1024 + [False] * 1024, content, 512)
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(2 * MIB + 1500 * 512, b"w" * 512)
        shown = disk.pread(2 * MIB, length=MIB)
    assert shown[: MIB // 2] == content[: MIB // 2]
    assert shown[MIB // 2 :] == bytes(476 * 512) + b"w" * 512 + bytes(547 * 512)


@pytest.mark.parametrize("op", [READ, WRITE, ZERO, DISCARD])
def test_a_place_is_not_used_again_while_something_old_is_on_its_way(op: int, trial: Trial) -> None:
    a_place_is_not_used_again_while_something_old_is_on_its_way(trial, BLOCK, op)
