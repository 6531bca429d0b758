"""Requests that meet while the host is late: none is lost, none damages another, none is early."""

import random
from pathlib import Path

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
from tapcore.engine import WRITE, ZERO
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
    a_stage_that_failed_is_written_again_in_order(trial, 512, stage)  # in one block
