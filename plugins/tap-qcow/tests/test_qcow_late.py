"""Everything late, in any order, and failing: no request is lost, none damages another."""

import random
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

import tapcore
from latetrials import (
    COMPRESSING_OPS,
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
from qcowtools import KIB, new_image, qemu_content, some_content, walk
from tapcore.engine import WRITE, WRITE_COMPRESSED, ZERO


@attrs.frozen
class Kind:
    """A kind of image.

    Attributes:
        geometry: (cluster_bits, l2_bits).
        cache: bytes of tables kept in memory.
        parent: over a raw parent, which is shorter.
        compressed: begins with compressed clusters.
    """

    geometry: tuple[int, int] = (12, 9)
    cache: int | None = None
    parent: bool = False
    compressed: bool = False


KINDS = {
    "as made": Kind(),
    "child": Kind((13, 6), parent=True),
    "few tables in memory, child": Kind((9, 6), cache=1024, parent=True),
    "over compressed clusters": Kind((12, 6), cache=1024, compressed=True),
}
SIZE = 256 * KIB + 1536


def trial_of(kind: Kind, folder: Path, rng: random.Random) -> Trial:
    image, below = folder / "disk.qcow", b""
    if kind.parent:
        below = some_content(rng, SIZE - 20 * 512)
        (folder / "parent.raw").write_bytes(below)
    new_image(image, SIZE, *kind.geometry, parent="parent.raw" if kind.parent else "")
    if kind.compressed:
        with tapcore.open(f"qcow:{image}", readonly=False) as disk:
            disk.write_compressed(0, some_content(rng, 128 * KIB))
    trial = Trial("qcow", image, rng, SIZE, below, COMPRESSING_OPS)
    trial.problems = lambda content: walk(content).problems
    trial.options = {"metadata_cache": kind.cache}
    return trial


@pytest.mark.parametrize("kind", KINDS)
def test_everything_late(kind: str, tmp_path: Path, rng: random.Random) -> None:
    trial = trial_of(KINDS[kind], tmp_path, rng)
    everything_late(trial)
    assert qemu_content(trial.image) == trial.read()


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


# ---- particular meetings -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["as made", "child"])
def test_writes_that_wait_keep_their_order(kind: str, tmp_path: Path, rng: random.Random) -> None:
    trial = trial_of(KINDS[kind], tmp_path, rng)
    writes_that_wait_keep_their_order(trial, 1 << KINDS[kind].geometry[0])


@pytest.mark.parametrize("kind", ["as made", "child"])
def test_who_is_told_reads_what_was_written(kind: str, tmp_path: Path, rng: random.Random) -> None:
    trial = trial_of(KINDS[kind], tmp_path, rng)
    who_is_told_reads_what_was_written(trial, 1 << KINDS[kind].geometry[0])


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_table_that_is_read_late_undoes_nothing(
    forgotten: bool, tmp_path: Path, rng: random.Random
) -> None:
    trial = trial_of(Kind((9, 6), cache=1024), tmp_path, rng)
    a_table_that_is_read_late_undoes_nothing(trial, 512, 32 * KIB, forgotten=forgotten)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("op", [WRITE, WRITE_COMPRESSED, ZERO])
def test_what_meets_a_cluster_being_filled(
    op: int, before: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = trial_of(KINDS["child"], tmp_path, rng)
    what_meets_a_cluster_being_filled(trial, 1 << KINDS["child"].geometry[0], op, before)


def test_a_flush_publishes_only_what_it_covers(tmp_path: Path, rng: random.Random) -> None:
    trial = trial_of(KINDS["child"], tmp_path, rng)
    a_flush_publishes_only_what_it_covers(trial, 1 << KINDS["child"].geometry[0])


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_that_failed_is_written_again_in_order(
    stage: int, tmp_path: Path, rng: random.Random
) -> None:
    trial = trial_of(KINDS["child"], tmp_path, rng)
    cluster = 1 << KINDS["child"].geometry[0]
    a_stage_that_failed_is_written_again_in_order(trial, cluster, stage)
