"""A long request looks at each cluster a few times, not at all others for each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapcore
from qcow2tools import MIB, create, qemu_img
from tap_qcow2.data.diskmap import DiskMap
from tap_qcow2.tables.l2tables import L2Table
from tap_qcow2.tables.mapping import L2Map
from tapcore.clusters import Run

CLUSTERS = 4096
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"cluster_size": 65536},
    "extended": {"cluster_size": 131072, "extended_l2": "on"},
    "data-file": {"cluster_size": 65536, "data_file": "disk.raw"},
    "extended-data-file": {
        "cluster_size": 131072,
        "extended_l2": "on",
        "data_file": "disk.raw",
        "data_file_raw": "on",
    },
}
STATES = ("one cluster", "preallocated", "zeroes with space", "zeroes")


class Looks:
    """How many clusters the tables were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clusters = 0
        honest = L2Map.run_in

        def counted(map: L2Map, table: L2Table, sector: int, stop: int) -> Run:
            run = honest(map, table, sector, stop)
            self.clusters += -(-run.nb_sectors >> map.cluster_shift)
            return run

        monkeypatch.setattr(L2Map, "run_in", counted)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_zeroes_and_discards_look_at_each_cluster_once(
    kind: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every kind of entries, also where each has space of its own."""
    options = dict(KINDS[kind])
    size = CLUSTERS * int(str(options["cluster_size"]))
    if "preallocated" in state or "space" in state:
        options["preallocation"] = "metadata"
    image = create(tmp_path / "disk.qcow2", size, **options)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        if state.startswith("zeroes"):
            disk.zero(0, length=size, unmap=state == "zeroes")
        disk.pwrite(5 * MIB, b"a" * 4096)
    looks = Looks(monkeypatch)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        acts: tuple[Callable[[], None], ...] = (
            lambda: disk.zero(0, length=size, unmap=False),
            lambda: disk.zero(0, length=size),
            lambda: disk.discard(0, length=size),
        )
        for act in acts:
            looks.clusters = 0
            act()
            assert looks.clusters <= 2 * CLUSTERS
            assert disk.pread(5 * MIB - 512, length=8192) == bytes(8192)
    qemu_img("check", "-q", image)


def test_a_flag_that_changes_with_each_cluster_is_no_reason_to_look_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded: 1024 clusters for each step."""
    image = create(tmp_path / "disk.qcow2", CLUSTERS << 16, preallocation="metadata")
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        tables = disk.state.disks.private.clusters.map.tables
        table = tables.wait(0)
        tables.set(
            table,
            0,
            [each & ~(1 << 63) if at % 2 else each for at, each in enumerate(table.entries)],
        )
        looks = Looks(monkeypatch)
        disk.discard(0, length=disk.size)
        assert looks.clusters <= 1024 * CLUSTERS


@pytest.mark.parametrize("way", ["zero", "discard"])
@pytest.mark.parametrize("parent", [{}, {"parent": "parent.raw", "form": "raw"}], ids=len)
def test_what_has_no_tables_is_passed_over_at_once(
    parent: dict[str, Any], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables map 512 KiB each; but what a parent shows has to be hidden, table by table."""
    size = 64 << 20 if parent else 64 << 30
    (tmp_path / "parent.raw").write_bytes(b"p" * MIB)
    image = create(tmp_path / "disk.qcow2", size, cluster_size=2048, **parent)
    steps = 0
    honest = DiskMap.run_to_clear

    def counted(map: DiskMap, sector: int, stop: int) -> Run | None:
        nonlocal steps
        steps += 1
        return honest(map, sector, stop)

    monkeypatch.setattr(DiskMap, "run_to_clear", counted)
    places = [0, size // 2 - 4096, size - 4096]
    with tapcore.open(f"qcow2:{image}", readonly=False, parents=str(tmp_path)) as disk:
        for place in places:
            disk.pwrite(place, b"a" * 4096)
        (disk.zero if way == "zero" else disk.discard)(0, length=size)
        for place in (*places, 8192, MIB - 4096):
            assert disk.pread(place, length=4096) == bytes(4096)
    assert steps < 400
    qemu_img("check", "-q", image)
