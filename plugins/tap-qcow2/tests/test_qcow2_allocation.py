"""Every sort of allocation at every distance from where a new refcount block, or a larger refcount
table, is needed: nothing is given out twice."""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qcow2crashes import judge

import tapcore
from qcow2tools import MIB, assert_clean, create
from tapcore.engine import WRITE_COMPRESSED, Request

CLUSTER = 512
PER_BLOCK = 64  # clusters that a block of 64-bit refcounts counts
PER_TABLE = 64 * PER_BLOCK  # that the blocks of a refcount table of one cluster count


def write(disk: tapcore.Disk) -> None:
    """Data, and a table for it."""
    disk.pwrite(3 * MIB, b"w" * (3 * CLUSTER))


def write_far(disk: tapcore.Disk) -> None:
    """More than a block counts."""
    disk.pwrite(3 * MIB + 512, b"w" * (PER_BLOCK + 5) * CLUSTER)


def grow(disk: tapcore.Disk) -> None:
    """A larger L1 table, of two clusters and more."""
    disk.resize(8 * MIB)


def grow_much(disk: tapcore.Disk) -> None:
    """One of more clusters than a block counts."""
    disk.resize(256 * MIB)


def _driver(disk: tapcore.Disk) -> Any:
    return disk.state.disks.drv


def snapshot(disk: tapcore.Disk) -> None:
    """A copy of the L1 table, and a table of snapshots; then what is copied on writing."""
    _driver(disk).td_snapshot_create(disk.state.disks, "s")
    disk.pwrite(0, b"s" * (2 * CLUSTER))


def come_and_go(disk: tapcore.Disk) -> None:
    """Snapshots that are applied and deleted."""
    for name in ("one", "two"):
        _driver(disk).td_snapshot_create(disk.state.disks, name)
    _driver(disk).td_snapshot_apply(disk.state.disks, "one")
    _driver(disk).td_snapshot_delete(disk.state.disks, "two")


def compressed(disk: tapcore.Disk) -> None:
    """Clusters that share host clusters, and cross from one to the next."""
    rng = random.Random(1)
    engine: Any = disk.state.blkif
    for n in range(6):
        content = memoryview(rng.randbytes(300) + bytes(CLUSTER - 300))
        at = 3 * MIB + n * CLUSTER
        request = Request(WRITE_COMPRESSED, at, CLUSTER, content, lambda request: None)
        engine.submit(request)
        engine.turn()
    disk.sync()


CHANGES = [write, write_far, grow, grow_much, snapshot, come_and_go, compressed]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    """An image whose file has about so many clusters."""
    folder = tmp_path_factory.mktemp("filled")

    @functools.cache
    def make(clusters: int) -> bytes:
        image = create(folder / "disk.qcow2", 4 * MIB, cluster_size=CLUSTER, refcount_bits=64)
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            disk.pwrite(0, b"f" * (clusters * CLUSTER))
        return image.read_bytes()

    return make


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_at_the_edge_of_a_refcount_block(
    change: Callable[[tapcore.Disk], None], filled: Callable[[int], bytes], tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow2"
    sizes = set()
    for clusters in range(40, 40 + PER_BLOCK + 2):
        image.write_bytes(filled(clusters))
        sizes.add(image.stat().st_size // CLUSTER % PER_BLOCK)
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            change(disk)
            assert disk.pread(2 * CLUSTER, length=30 * CLUSTER) == b"f" * (30 * CLUSTER)
        found, problems = judge(image.read_bytes())
        assert not problems, f"after {clusters} clusters: {problems[:5]}"
        assert not found.leaks
    assert len(sizes) > PER_BLOCK - 8  # the end of the file was nearly everywhere in a block
    assert_clean(image)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_at_the_edge_of_the_refcount_table(
    change: Callable[[tapcore.Disk], None], filled: Callable[[int], bytes], tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow2"
    start = PER_TABLE * 31 // 33  # the tables and blocks take the rest
    for clusters in (*range(start - 66, start + 66, 9), *range(start, start + 9)):
        image.write_bytes(filled(clusters))
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            change(disk)
            assert disk.pread(2 * CLUSTER, length=30 * CLUSTER) == b"f" * (30 * CLUSTER)
        found, problems = judge(image.read_bytes())
        assert not problems, f"after {clusters} clusters: {problems[:5]}"
        assert not found.leaks
    assert_clean(image)


def test_the_defaults_at_two_gibibytes(tmp_path: Path) -> None:
    """Where the second refcount block begins with clusters of 64 KiB: a snapshot, a larger disk."""
    image = create(tmp_path / "disk.qcow2", 4 << 30, preallocation="metadata")
    for change in (snapshot, grow_slightly):
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            change(disk)
        assert_clean(image)


def grow_slightly(disk: tapcore.Disk) -> None:
    """By one entry of the L1 table."""
    disk.resize(disk.size + (512 << 20))


@pytest.mark.parametrize("extended", ["off", "on"])
def test_a_raw_data_file_shows_what_the_disk_does(
    extended: str, tmp_path: Path, rng: random.Random
) -> None:
    """Zeroes, discards and writes in part too: it is read without the image."""
    options = {"data_file": "disk.data", "data_file_raw": "on", "extended_l2": extended}
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=16384, **options)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(MIB))
        disk.zero(65536, length=65536, unmap=False)
        disk.zero(196608, length=65536, unmap=True)
        disk.zero(300_032, length=1024)
        disk.discard(524288, length=65536)
        disk.pwrite(70_144, b"w" * 512)
        content = disk.pread(0, length=MIB)
    assert (tmp_path / "disk.data").read_bytes() == content
