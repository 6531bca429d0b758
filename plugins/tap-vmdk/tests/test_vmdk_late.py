"""Everything late, in any order, and failing: no request is lost, none damages another."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from latetrials import (
    FAULTS,
    Trial,
    a_flush_publishes_only_what_it_covers,
    a_stage_that_failed_is_written_again_in_order,
    a_table_that_is_read_late_undoes_nothing,
    crash_when_everything_is_late,
    every_loss_in_turn,
    everything_late,
    everything_late_and_failing,
    what_meets_a_cluster_being_filled,
    who_is_told_reads_what_was_written,
    writes_that_wait_keep_their_order,
)
from tapcore.engine import WRITE, ZERO
from tapcore.tools.check import check_image
from vmdkwriters import descriptor, empty, hosted

KIB = 1 << 10


@attrs.frozen
class Kind:
    """A kind of disk.

    Attributes:
        options: of `create`; None: a sparse file with tables of 32 KiB, more than are kept.
        size: of the disk, bytes; all of it is worked on.
        parent: over a parent with content, which is as long.
        zeroed: entries can say that grains are zero.
    """

    options: Mapping[str, str] | None = None
    size: int = 640 * KIB + 1536
    parent: bool = False
    zeroed: bool = False


KINDS = {
    "few tables in memory": Kind(),
    "few tables in memory, child": Kind(parent=True, zeroed=True),
    "grains of 64 KiB, child": Kind({}, parent=True),
    "stream": Kind({"subformat": "streamOptimized"}),
}


def trial_of(kind: Kind, folder: Path, rng: random.Random) -> Trial:
    image, below = folder / "disk.vmdk", b""
    if kind.parent:
        below = rng.randbytes(kind.size)
        line = f'RW {kind.size // 512} SPARSE "base.vmdk"'
        content = hosted(below, text=descriptor("monolithicSparse", [line]))
        (folder / "base.vmdk").write_bytes(content)
    if kind.options is None:
        parent = "base.vmdk" if kind.parent else ""
        content = empty(kind.size, name="disk.vmdk", entries=8, zeroed=kind.zeroed, parent=parent)
        image.write_bytes(content)
    else:
        more: dict[str, Any] = {"parent": "vmdk:base.vmdk"} if kind.parent else {}
        size = None if kind.parent else kind.size
        tapcore.create_image(f"vmdk:{image}", size, options=kind.options, **more)
    if kind == KINDS["stream"]:  # one that holds nothing yet cannot be read until the first flush
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            disk.pwrite(0, rng.randbytes(100_000))
    trial = Trial("vmdk", image, rng, kind.size, below, options={"metadata_cache": 0})
    trial.first_alone = kind == KINDS["stream"]
    return trial


@pytest.mark.parametrize("kind", KINDS)
def test_everything_late(kind: str, tmp_path: Path, rng: random.Random) -> None:
    trial = trial_of(KINDS[kind], tmp_path, rng)
    everything_late(trial)
    found = check_image(f"vmdk:{trial.image}")
    assert not found.corruptions


@pytest.mark.parametrize("kind", KINDS)
def test_everything_late_and_failing(kind: str, tmp_path: Path, rng: random.Random) -> None:
    everything_late_and_failing(trial_of(KINDS[kind], tmp_path, rng))


@pytest.mark.parametrize("faults", [{}, FAULTS], ids=["late", "failing too"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_when_everything_is_late(
    kind: str, faults: Mapping[str, float], tmp_path: Path, rng: random.Random
) -> None:
    crash_when_everything_is_late(trial_of(KINDS[kind], tmp_path, rng), faults)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_in_turn(kind: str, tmp_path: Path, rng: random.Random) -> None:
    every_loss_in_turn(trial_of(KINDS[kind], tmp_path, rng))


def test_a_table_that_moves_is_there_before_it_is_named(tmp_path: Path, rng: random.Random) -> None:
    """Its two copies differ, so that it gets a new place, and must not lose what it held."""
    size, image = 640 * KIB, tmp_path / "disk.vmdk"
    text = descriptor("monolithicSparse", [f'RW {size // 512} SPARSE "disk.vmdk"'])
    image.write_bytes(
        hosted(rng.randbytes(size // 2), text=text, damage_table=500, capacity=size // 512)
    )
    every_loss_in_turn(Trial("vmdk", image, rng, size))


# ---- particular meetings -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["few tables in memory", "few tables in memory, child"])
def test_writes_that_wait_keep_their_order(kind: str, tmp_path: Path, rng: random.Random) -> None:
    writes_that_wait_keep_their_order(trial_of(KINDS[kind], tmp_path, rng), 4 * KIB)


@pytest.mark.parametrize("kind", ["few tables in memory", "few tables in memory, child"])
def test_who_is_told_reads_what_was_written(kind: str, tmp_path: Path, rng: random.Random) -> None:
    who_is_told_reads_what_was_written(trial_of(KINDS[kind], tmp_path, rng), 4 * KIB)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_table_that_is_read_late_undoes_nothing(
    forgotten: bool, tmp_path: Path, rng: random.Random
) -> None:
    trial = trial_of(KINDS["few tables in memory"], tmp_path, rng)
    a_table_that_is_read_late_undoes_nothing(trial, 4 * KIB, 32 * KIB, forgotten=forgotten)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("op", [WRITE, ZERO])
def test_what_meets_a_grain_being_filled(
    op: int, before: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = trial_of(KINDS["few tables in memory, child"], tmp_path, rng)
    what_meets_a_cluster_being_filled(trial, 4 * KIB, op, before)


def test_a_flush_publishes_only_what_it_covers(tmp_path: Path, rng: random.Random) -> None:
    trial = trial_of(KINDS["few tables in memory, child"], tmp_path, rng)
    a_flush_publishes_only_what_it_covers(trial, 4 * KIB)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_that_failed_is_written_again_in_order(
    stage: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = trial_of(KINDS["few tables in memory, child"], tmp_path, rng)
    a_stage_that_failed_is_written_again_in_order(trial, 4 * KIB, stage)
