"""Requests that meet while the host is late: none is lost, none damages another, none is early."""

import errno
import random
from pathlib import Path

import pytest

import tapcore
from latetrials import AnyMeetings, Trial
from tapcore import ImageFile
from vhdtools import KIB, make, problems

BLOCK = 8 * KIB
SIZE = 8 * BLOCK


@pytest.fixture
def trial(tmp_path: Path, rng: random.Random) -> Trial:
    """Of an empty disk of eight blocks, over a parent with content."""
    parent, image, below = tmp_path / "parent.vhd", tmp_path / "disk.vhd", rng.randbytes(SIZE)
    tapcore.create_image(f"vhd:{parent}", SIZE, options={"subformat": "fixed"})
    with tapcore.open(f"vhd:{parent}", readonly=False) as disk:
        disk.pwrite(0, below)
    make(image, SIZE, BLOCK, parent.name)
    trial = Trial("vhd", image, rng, SIZE, below)
    trial.problems = lambda content: problems(content, closed=False)
    return trial


class TestMeetings(AnyMeetings):
    cluster = BLOCK
    unit = 512  # in one block


def test_a_place_of_which_no_hole_can_be_made_is_not_used_again(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs read what it holds, whatever the bitmap says."""
    end = trial.image.stat().st_size - 512
    with tapcore.open(f"vhd:{trial.image}", readonly=False) as disk:
        clusters = disk.state.disks.private.clusters
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "write_now", lambda *_: -errno.EIO)
            patch.setattr(ImageFile, "discard_blocking", lambda *_: -errno.EOPNOTSUPP)
            with pytest.raises(tapcore.IOFailedError):
                disk.pwrite(0, b"x" * BLOCK)
            clusters.drain()
        disk.pwrite(BLOCK, b"y" * BLOCK)
        assert clusters.place(BLOCK // 512, 1) >= end + BLOCK
    assert trial.read()[: 2 * BLOCK] == trial.below[:BLOCK] + b"y" * BLOCK


def test_a_footer_that_may_not_be_on_disk_is_written_again(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = ImageFile.write_metadata

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        if bytes(data[:8]) == b"conectix":
            written.append(offset)
        write(file, offset, data)

    with tapcore.open(f"vhd:{trial.image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "flush_blocking", lambda _: -errno.EIO)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        monkeypatch.setattr(ImageFile, "write_metadata", noted)
        disk.sync()
        assert written == [trial.image.stat().st_size - 512]
        disk.sync()
        assert len(written) == 1


def test_the_copy_of_the_footer_is_safe_before_the_other_one_moves(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trial.image.open("r+b") as file:
        file.write(bytes(512))
    steps: list[str] = []
    write, flush = ImageFile.write_metadata, ImageFile.flush_blocking

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        steps.append("other" if offset else "copy")
        write(file, offset, data)

    def flushed(file: ImageFile) -> int:
        steps.append("safe")
        return flush(file)

    monkeypatch.setattr(ImageFile, "write_metadata", noted)
    monkeypatch.setattr(ImageFile, "flush_blocking", flushed)
    with tapcore.open(f"vhd:{trial.image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
    assert steps[:3] == ["copy", "safe", "other"]
