"""A disk of which all L1 entries lead to one table: told as damaged, after a bounded work."""

import struct
from pathlib import Path

import pytest

import tapcore

_MOST_RUNS = 100_000


def alike(path: Path, entries: int) -> Path:
    """An image with the largest L2 table, named by each L1 entry, and no two runs that join."""
    l2 = (4096 + 8 * entries + 65535) // 65536 * 65536
    data = l2 + 65536
    with path.open("wb") as file:
        size = entries << 29
        file.write(struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, size, 16, 13, 0, 0, 4096))
        file.seek(4096)
        file.write(struct.pack(">Q", l2) * entries)
        file.seek(l2)
        file.write(b"".join(struct.pack(">Q", data + n % 4 * 131072) for n in range(8192)))
        file.truncate(data + (1 << 20))
    return path


def test_what_lies_where_is_told_up_to_a_bound(tmp_path: Path) -> None:
    image = alike(tmp_path / "disk.qcow", 1 << 20)
    seen: list[int] = []
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        starts = (run.start for run in disk.extents())
        with pytest.raises(tapcore.TapError, match="names the same tables so often"):
            seen.extend(starts)
    assert len(seen) < _MOST_RUNS


def test_a_disk_that_has_a_table_twice_can_be_told(tmp_path: Path) -> None:
    image = alike(tmp_path / "disk.qcow", 2)
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        assert sum(run.length for run in disk.extents()) == disk.size
