"""Requests that meet while the host is late: none is lost, none damages another, none is early."""

import random
from pathlib import Path

import pytest

import tapcore
from latetrials import AnyMeetings, Trial
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
