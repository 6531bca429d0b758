"""A disk of which all L1 entries lead to one table, or to tables in holes: a bounded work."""

import contextlib
import struct
from array import array
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


def in_holes(path: Path, entries: int) -> Path:
    """Each L1 entry with a table of its own, in a file that is one hole."""
    l2 = (4096 + 8 * entries + 65535) // 65536 * 65536
    table = array("Q", range(l2, l2 + entries * 65536, 65536))
    table.byteswap()
    with path.open("wb") as file:
        size = entries << 29
        file.write(struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, size, 16, 13, 0, 0, 4096))
        file.seek(4096)
        file.write(table.tobytes())
        file.truncate(l2 + entries * 65536)
    return path


def test_tables_in_holes_are_not_read(tmp_path: Path) -> None:
    """Of 16 GiB of tables; and the first write, which looks at all of them, is done."""
    image = in_holes(tmp_path / "disk.qcow", 1 << 18)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        found = [(run.start, run.length, run.kind) for run in disk.extents()]
        assert found == [(0, disk.size, "zero")]
        disk.pwrite(offset=5 << 29, data=b"x" * 65536)
        assert [run.start for run in disk.extents() if run.kind == "data"] == [5 << 29]
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        assert [run.start for run in disk.extents() if run.kind == "data"] == [5 << 29]


def test_what_names_its_tables_over_and_over_is_not_written(tmp_path: Path) -> None:
    """All tables would have to be looked at before, for hours."""
    image = alike(tmp_path / "disk.qcow", 1 << 20)
    before = image.read_bytes()
    disk = tapcore.open(f"qcow:{image}", readonly=False)
    with pytest.raises(tapcore.TapError, match=r"disk\.qcow.*names the same tables so often"):
        disk.pwrite(offset=0, data=b"x" * 512)
    with contextlib.suppress(tapcore.TapError):
        disk.close()
    assert image.read_bytes() == before
