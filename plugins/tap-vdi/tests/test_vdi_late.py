"""Requests that meet while the host is late: none is lost, none damages another, none is early."""

import errno
import random
from pathlib import Path

import attrs
import pytest

import tapcore
from latetrials import (
    Trial,
    a_flush_publishes_only_what_it_covers,
    a_stage_that_failed_is_written_again_in_order,
    every_loss_in_turn,
    everything_late,
    everything_late_and_failing,
    what_meets_a_cluster_being_filled,
    who_is_told_reads_what_was_written,
    writes_that_wait_keep_their_order,
)
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DIFFERENCING, DYNAMIC, STORED_AT
from tap_vdi.parents import new_parent
from tapcore import DiskId, ImageFile
from tapcore.engine import WRITE, ZERO
from vditools import KIB, problems

BLOCK = 8 * KIB
SIZE = 8 * BLOCK


@pytest.fixture
def trial(tmp_path: Path, rng: random.Random) -> Trial:
    """Of an empty disk of eight blocks, over a parent with content."""
    parent, image, below = tmp_path / "parent.vdi", tmp_path / "disk.vdi", rng.randbytes(SIZE)
    tapcore.create_image(f"vdi:{parent}", SIZE)
    with tapcore.open(f"vdi:{parent}", readonly=False) as disk:
        disk.pwrite(0, below)
    found = new_parent(str(tmp_path), DiskId("parent.vdi", "vdi"))
    header = new_header(SIZE, BLOCK, DIFFERENCING)
    header = attrs.evolve(header, parent=found.id, parent_modified=found.modified)
    write_image(str(image), header)
    trial = Trial("vdi", image, rng, SIZE, below)
    trial.problems = lambda content: problems(content, closed=False)
    return trial


def test_everything_late(trial: Trial) -> None:
    everything_late(trial)


def test_everything_late_and_failing(trial: Trial) -> None:
    everything_late_and_failing(trial)


def test_every_loss_in_turn(trial: Trial) -> None:
    every_loss_in_turn(trial)


def test_writes_that_wait_keep_their_order(trial: Trial) -> None:
    writes_that_wait_keep_their_order(trial, BLOCK)


def test_who_is_told_reads_what_was_written(trial: Trial) -> None:
    who_is_told_reads_what_was_written(trial, BLOCK)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("op", [WRITE, ZERO])
def test_what_meets_a_block_being_filled(op: int, before: int, trial: Trial) -> None:
    what_meets_a_cluster_being_filled(trial, BLOCK, op, before)


def test_a_flush_publishes_only_what_it_covers(trial: Trial) -> None:
    a_flush_publishes_only_what_it_covers(trial, BLOCK)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_that_failed_is_written_again_in_order(stage: int, trial: Trial) -> None:
    a_stage_that_failed_is_written_again_in_order(trial, BLOCK, stage)


def test_a_count_that_is_perhaps_not_safe_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel could not write it has forgotten."""
    image = tmp_path / "disk.vdi"
    write_image(str(image), new_header(SIZE, BLOCK, DYNAMIC))
    written: list[int] = []
    write = ImageFile.write_metadata

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        written.append(offset)
        write(file, offset, data)

    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "flush_blocking", lambda _: -errno.EIO)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        monkeypatch.setattr(ImageFile, "write_metadata", noted)
        disk.sync()
    assert STORED_AT in written


def test_a_new_block_shows_nothing_of_what_a_crash_left_in_its_place(tmp_path: Path) -> None:
    """The file is longer than the places that its header counts."""
    image = tmp_path / "disk.vdi"
    write_image(str(image), header := new_header(SIZE, BLOCK, DYNAMIC))
    with image.open("r+b") as file:
        file.seek(header.where(0))
        file.write(b"?" * 2 * BLOCK)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(BLOCK + 512, b"x" * 512)
        shown = disk.pread(BLOCK, length=BLOCK)
    assert shown == bytes(512) + b"x" * 512 + bytes(BLOCK - 1024)
