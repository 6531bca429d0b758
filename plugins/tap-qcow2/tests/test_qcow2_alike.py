"""A disk of which all L1 entries lead to one table, or to tables in holes: a bounded work."""

import struct
import subprocess
from array import array
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.tools.measure import measure_image

_MOST_RUNS = 100_000
_CLUSTER = 1 << 16


def alike(path: Path, entries: int = 1 << 22) -> Path:
    """An image with the largest L1 table, all entries alike, and no two runs that join."""
    l1 = 3 * _CLUSTER
    l2 = l1 + 8 * entries
    data = l2 + _CLUSTER
    with path.open("wb") as file:
        size = entries << 29
        fields = 1 << 16, 1, 0, 0
        file.write(
            struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, size, 0, entries, l1, *fields)
        )
        file.write(struct.pack(">QQQII", 0, 0, 0, 4, 104))
        file.seek(_CLUSTER)
        file.write(struct.pack(">Q", 2 * _CLUSTER))
        file.seek(l1)
        file.write(struct.pack(">Q", l2) * entries)
        file.write(b"".join(struct.pack(">Q", data + n % 4 * 2 * _CLUSTER) for n in range(8192)))
        file.truncate(data + 8 * _CLUSTER)
    return path


def test_what_lies_where_is_told_up_to_a_bound(tmp_path: Path) -> None:
    image = alike(tmp_path / "disk.qcow2")
    seen: list[int] = []
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        starts = (run.start for run in disk.extents())
        with pytest.raises(tapcore.TapError, match="names the same tables so often"):
            seen.extend(starts)
    assert len(seen) < _MOST_RUNS


def test_measuring_ends_as_well(tmp_path: Path) -> None:
    image = alike(tmp_path / "disk.qcow2")
    with pytest.raises(tapcore.TapError, match="same tables so often"):
        measure_image(f"qcow2:{image}", "qcow2", options={"cluster_size": "2M"})


def test_a_disk_that_has_a_table_twice_can_be_told(tmp_path: Path) -> None:
    image = alike(tmp_path / "disk.qcow2", entries=2)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert sum(run.length for run in disk.extents()) == disk.size


def in_holes(path: Path, cluster_bits: int, entries: int = 1 << 19) -> Path:
    """Each L1 entry with a table of its own, in a file that is one hole."""
    cluster = 1 << cluster_bits
    l1 = 3 * cluster
    l2 = (l1 + 8 * entries + cluster - 1) // cluster * cluster
    fields = cluster, 1, 0, 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, cluster_bits,
        entries << 2 * cluster_bits - 3, 0, entries, l1, *fields,
    )  # fmt: skip
    table = array("Q", range(l2, l2 + entries * cluster, cluster))
    table.byteswap()
    with path.open("wb") as file:
        file.write(head + struct.pack(">QQQII", 0, 0, 0, 4, 104))
        file.seek(l1)
        file.write(table.tobytes())
        file.truncate(l2 + entries * cluster)
    return path


def test_tables_in_holes_are_not_read(tmp_path: Path) -> None:
    """Of 32 GiB of tables, for 256 TiB of disk."""
    image = in_holes(tmp_path / "disk.qcow2", 16)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        found = [(run.start, run.length, run.kind) for run in disk.extents()]
        assert found == [(0, disk.size, "zero")]


def test_a_table_in_memory_is_not_taken_for_a_hole(tmp_path: Path) -> None:
    """What was written is told before its table is on disk, where a hole is."""
    image = in_holes(tmp_path / "disk.qcow2", 12, 1024)
    subprocess.run([peer("qemu-img"), "check", "-q", "-r", "all", image], check=False)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(offset=5 << 21, data=b"x" * 4096)
        kinds = [(run.start, run.kind) for run in disk.extents()]
    assert (5 << 21, "data") in kinds
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        assert [(run.start, run.kind) for run in disk.extents()] == kinds
