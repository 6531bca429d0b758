"""`tapdisk info` for people: a chain as a tree, sizes as sizes, lists as tables."""

import time
from pathlib import Path

import pytest
from drivers.toy import BLOCK, ToyDriver, change_head

from tapcore import Bitmap, DiskDriver, Snapshot, hookimpl
from tapcore.cli.main import main
from tapcore.cli.tree import ASCII, UNICODE, branches_for, tree_lines
from tapcore.tools.create import create_image
from tapcore.tools.info import image_info


class TalkativeDriver(ToyDriver):
    """A toy that has every kind of fact."""

    @hookimpl
    def td_info(self, dd: DiskDriver) -> dict[str, object]:
        return {
            "cluster_size": 65536,
            "refcount_bits": 16,
            "dirty": False,
            "data_file": None,
            "snapshots": [{"id": "1"}],
            "extents": [
                {"kind": "FLAT", "size": 2 << 30, "file_name": "a\x1b[31m"},
                {"kind": "ZERO", "size": 512, "file_name": None},
            ],
            "odd": [{"a": 1}, {"b": 2}],
        }

    @hookimpl
    def td_snapshots(self, dd: DiskDriver) -> list[Snapshot]:
        return [
            Snapshot("1", "first", 86400 * 365, 0, 3 << 20, 3_723_004_000_000),
            Snapshot("2", "far away", 1 << 62),
        ]

    @hookimpl
    def td_bitmaps(self, dd: DiskDriver) -> list[Bitmap]:
        return [
            Bitmap("monday", 65536, enabled=True),
            Bitmap("old", 512, enabled=False),
            Bitmap("bad", 512, enabled=True, inconsistent=True),
        ]


@pytest.fixture
def toy_driver() -> ToyDriver:
    return TalkativeDriver()


def test_lists_are_tables_and_sizes_are_sizes(
    toys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    create_image("disk.toy", 1 << 20)
    assert main(["info", "disk.toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "image:        disk.toy",
        "format:       toy",
        "virtual size: 1 MiB (1048576 bytes)",
    ]
    assert lines[3].startswith("disk size: ")
    assert lines[5:] == [
        "of this format:",
        "    cluster size:  64 KiB",
        "    refcount bits: 16",
        "    dirty:         no",
        "    odd:           a=1; b=2",
        "extents:",
        "    KIND  SIZE   FILE NAME",
        "    FLAT  2 GiB  a\\x1b[31m",
        "    ZERO  512 B  -",
        "snapshots:",
        "    ID  NAME      VM STATE  DATE                 VM CLOCK",
        "    1   first     3 MiB     1971-01-01 00:00:00  01:02:03.004",
        "    2   far away  -         -                    00:00:00.000",
        "bitmaps:",
        "    NAME    GRANULARITY  STATE",
        "    monday  64 KiB       recording",
        "    old     512 B        not recording",
        "    bad     512 B        inconsistent",
    ]


def test_json_has_the_format_as_the_driver_says_it(toys: Path) -> None:
    create_image("disk.toy", 1 << 20)
    [info] = image_info("disk.toy")
    assert info.as_dict()["format"]["cluster_size"] == 65536
    assert not {"notes", "snapshots", "bitmaps"} & {*info.as_dict()}


def test_a_chain_is_a_tree(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_image("old.toy", 8 * BLOCK)
    create_image("base.toy", None, parent="old.toy")
    create_image("child.toy", None, parent="base.toy")
    change_head("base.toy", size=16 * BLOCK)
    assert main(["info", "child.toy", "--chain"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "child.toy"
    assert out[1:3] == ["│  format:       toy", "│  virtual size: 32 KiB (32768 bytes)"]
    at = out.index(f"└─ {toys}/base.toy")
    assert out[at + 1 : at + 3] == [
        "   │  format:       toy",
        "   │  virtual size: 64 KiB (65536 bytes)",
    ]
    at = out.index(f"   └─ {toys}/old.toy")
    assert all(line.startswith("         ") for line in out[at + 1 :] if not line.endswith(".toy"))
    assert not any("parent" in line for line in out)  # the tree says it


def test_a_tree_where_only_ascii_can_be_shown() -> None:
    lines = [*tree_lines([("a", ["1"]), ("b", ["2", ""])], ASCII)]
    assert lines == ["a", "|  1", "`- b", "      2", ""]
    assert branches_for("utf-8") is UNICODE
    assert branches_for("latin-1") is branches_for(None) is branches_for("nonsense") is ASCII
    assert len({len(part) for part in (*UNICODE, *ASCII)}) == 1
