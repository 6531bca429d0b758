"""A disk of several files in the place of another: none of the old one's files is left, or lost."""

import os
from pathlib import Path

import pytest

import tapcore
from tapcore.tools.create import create_image

KINDS = {
    "monolithicSparse": [],
    "monolithicFlat": ["disk-flat.vmdk"],
    "twoGbMaxExtentSparse": ["disk-s001.vmdk", "disk-s002.vmdk"],
    "twoGbMaxExtentFlat": ["disk-f001.vmdk", "disk-f002.vmdk"],
    "streamOptimized": [],
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(kind: str, name: str = "disk.vmdk") -> None:
    create_image(name, 3 << 30, options={"subformat": kind}, force=True)


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_no_extent_of_the_old_disk_is_left(old: str, new: str) -> None:
    make(old)
    assert sorted(os.listdir()) == sorted(["disk.vmdk", *KINDS[old]])
    make(new)
    assert sorted(os.listdir()) == sorted(["disk.vmdk", *KINDS[new]])
    with tapcore.open("vmdk:disk.vmdk", readonly=True) as disk:
        assert disk.size == 3 << 30


def test_what_only_a_stranger_calls_an_extent_stays() -> None:
    make("monolithicFlat")
    os.rename("disk-flat.vmdk", "other-flat.vmdk")
    text = Path("disk.vmdk").read_text().replace("disk-flat", "other-flat")
    Path("disk.vmdk").write_text(text)
    Path("disk-flat.vmdk").write_bytes(b"not named by it")
    make("monolithicSparse")
    assert sorted(os.listdir()) == ["disk-flat.vmdk", "disk.vmdk", "other-flat.vmdk"]


def test_an_extent_in_use_keeps_the_disk_from_being_replaced() -> None:
    make("monolithicFlat")
    with tapcore.open("aio:disk-flat.vmdk", readonly=False):
        for new in ("monolithicFlat", "streamOptimized"):
            with pytest.raises(tapcore.ImageLockedError, match="in use"):
                make(new)
    assert sorted(os.listdir()) == ["disk-flat.vmdk", "disk.vmdk"]


def test_through_a_link_all_lies_where_the_link_leads() -> None:
    os.mkdir("there")
    make("twoGbMaxExtentSparse", "there/disk.vmdk")
    os.symlink("there/disk.vmdk", "link.vmdk")
    make("monolithicFlat", "link.vmdk")
    assert sorted(os.listdir("there")) == ["disk-flat.vmdk", "disk.vmdk"]
    assert sorted(os.listdir()) == ["link.vmdk", "there"]
    assert os.path.islink("link.vmdk")
    with tapcore.open("vmdk:link.vmdk", readonly=False) as disk:
        assert disk.size == 3 << 30
