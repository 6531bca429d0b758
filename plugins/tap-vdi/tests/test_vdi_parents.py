"""Differencing images: whose block it is, and which file the parent is."""

import os
import random
import shutil
import struct
import uuid
from pathlib import Path

import pytest

import tapcore
from tap_vdi.header import MODIFIED_AT, PARENT_AT, STORED_AT
from tapcore import ImageFormatError, NotSupportedError, TapError, UsageError
from tapcore.cli.main import main
from tapcore.tools.inspect import inspect_image
from vditools import (
    MIB,
    content_of,
    dissect_content,
    entries_of,
    problems,
    run,
    some_content,
)

SIZE = 3 * MIB + 512


def parent_and_child(folder: Path, rng: random.Random) -> bytes:
    """`base.vdi` with content, which is returned, and `child.vdi` on it."""
    content = some_content(rng, SIZE)
    tapcore.create_image(f"vdi:{folder / 'base.vdi'}", SIZE)
    with tapcore.open(f"vdi:{folder / 'base.vdi'}", readonly=False) as disk:
        disk.pwrite(0, content)
    tapcore.create_image(f"vdi:{folder / 'child.vdi'}", None, parent="vdi:base.vdi")
    return content


def header_of(path: Path) -> tuple[uuid.UUID, ...]:
    """The four UUIDs."""
    content = path.read_bytes()[STORED_AT + 4 : STORED_AT + 68]
    return tuple(uuid.UUID(bytes_le=content[at : at + 16]) for at in range(0, 64, 16))


def test_a_child_made_by_hand(tmp_path: Path, rng: random.Random) -> None:
    """The bytes are those of VirtualBox's header: 1.1, of type 4; a block, a mark, and holes."""
    below = parent_and_child(tmp_path, rng)
    base = (tmp_path / "base.vdi").read_bytes()
    head = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0")
    head += struct.pack("<III", 0xBEDA107F, 0x10001, 0x190) + struct.pack("<II256x", 4, 0)
    head += struct.pack("<II", 0x200, 0x400) + struct.pack("<IIII", 0, 0, 0, 512)
    head += struct.pack("<IQIIII", 0, SIZE, MIB, 0, 4, 1)
    head += b"i" * 16 + b"m" * 16 + base[STORED_AT + 4 : STORED_AT + 36]
    head += struct.pack("<IIII", 0, 0, 0, 512)
    table = struct.pack("<4I", 0xFFFFFFFF, 0, 0xFFFFFFFE, 0xFFFFFFFF)
    mine = rng.randbytes(MIB)
    path = tmp_path / "hand.vdi"
    path.write_bytes(head.ljust(512, b"\0") + table.ljust(512, b"\0") + mine)
    want = bytearray(below[:MIB] + mine + bytes(MIB) + below[3 * MIB :])
    assert content_of(path) == want
    assert dissect_content(path, below) == want
    with tapcore.open(f"vdi:{path}", readonly=False) as disk:
        kinds = [(each.kind, each.length >> 20) for each in disk.extents()]
        for at in (512, 2 * MIB + 512, 3 * MIB):
            disk.pwrite(at, b"n" * 512)
            want[at : at + 512] = b"n" * 512
        assert disk.pread(0, length=SIZE) == want
    assert len(kinds) >= 3
    assert content_of(path) == want
    assert dissect_content(path, below) == want
    assert not problems(path.read_bytes(), closed=True)
    assert sorted(entries_of(path.read_bytes())) == [0, 1, 2, 3]


def test_a_chain_of_three(tmp_path: Path, rng: random.Random) -> None:
    want = bytearray(parent_and_child(tmp_path, rng))
    with tapcore.open(f"vdi:{tmp_path / 'child.vdi'}", readonly=False) as disk:
        for _ in range(20):
            at = rng.randrange(SIZE - 9000)
            want[at : at + 9000] = rng.randbytes(9000)
            disk.pwrite(at, want[at : at + 9000])
    tapcore.create_image(f"vdi:{tmp_path / 'leaf.vdi'}", None, parent="vdi:child.vdi")
    below = bytes(want)
    with tapcore.open(f"vdi:{tmp_path / 'leaf.vdi'}", readonly=False) as disk:
        disk.pwrite(7000, b"leaf")
        disk.zero(MIB, length=MIB)
    want[7000:7004] = b"leaf"
    want[MIB : 2 * MIB] = bytes(MIB)
    assert content_of(tmp_path / "leaf.vdi") == want
    assert dissect_content(tmp_path / "leaf.vdi", below) == want
    assert entries_of((tmp_path / "leaf.vdi").read_bytes())[1] == 0xFFFFFFFE


def test_a_parent_is_found_by_its_id(tmp_path: Path, rng: random.Random) -> None:
    """In the folder, whatever it is called, and in the one above, as VirtualBox has it."""
    below = parent_and_child(tmp_path, rng)
    os.rename(tmp_path / "base.vdi", tmp_path / "renamed")
    assert content_of(tmp_path / "child.vdi") == below
    folder = tmp_path / "Snapshots"
    folder.mkdir()
    os.rename(tmp_path / "child.vdi", folder / "{child}.vdi")
    with pytest.raises(TapError, match="parents"):
        content_of(folder / "{child}.vdi")
    assert content_of(folder / "{child}.vdi", parents="any") == below
    os.rename(tmp_path / "renamed", tmp_path / "x")
    shutil.move(folder / "{child}.vdi", tmp_path / "child.vdi")
    (tmp_path / "x").unlink()
    with pytest.raises(ImageFormatError, match="is neither in its folder nor in the one above"):
        content_of(tmp_path / "child.vdi")


def test_what_else_lies_there_is_passed_over(tmp_path: Path, rng: random.Random) -> None:
    below = parent_and_child(tmp_path, rng)
    os.mkfifo(tmp_path / "a-pipe.vdi")
    (tmp_path / "a-folder.vdi").mkdir()
    (tmp_path / "a-loop.vdi").symlink_to("a-loop.vdi")
    (tmp_path / "an-empty-one.vdi").touch()
    assert content_of(tmp_path / "child.vdi") == below


def test_two_files_of_one_id(tmp_path: Path, rng: random.Random) -> None:
    """The one that was not changed since; else it cannot be told."""
    below = parent_and_child(tmp_path, rng)
    shutil.copy(tmp_path / "base.vdi", tmp_path / "a-copy.vdi")
    with pytest.raises(ImageFormatError, match=r"which of a-copy\.vdi and base\.vdi"):
        content_of(tmp_path / "child.vdi")
    with pytest.raises(UsageError, match="does not say which of"):
        tapcore.create_image(f"vdi:{tmp_path / 'c'}", None, parent="vdi:base.vdi")
    with tapcore.open(f"vdi:{tmp_path / 'a-copy.vdi'}", readonly=False) as disk:
        disk.pwrite(0, b"changed")
    assert content_of(tmp_path / "child.vdi") == below


def test_a_parent_that_was_changed_is_refused(tmp_path: Path, rng: random.Random) -> None:
    parent_and_child(tmp_path, rng)
    before = header_of(tmp_path / "base.vdi")
    with tapcore.open(f"vdi:{tmp_path / 'base.vdi'}", readonly=False) as disk:
        disk.pread(0, length=4096)
    assert header_of(tmp_path / "base.vdi") == before
    with tapcore.open(f"vdi:{tmp_path / 'base.vdi'}", readonly=False) as disk:
        disk.pwrite(0, b"changed")
    after = header_of(tmp_path / "base.vdi")
    assert (before[0], before[1] == after[1]) == (after[0], False)
    with pytest.raises(TapError, match="its parent was changed after it was made"):
        content_of(tmp_path / "child.vdi")
    assert (
        main(["rebase", "-u", "-b", str(tmp_path / "base.vdi"), str(tmp_path / "child.vdi")]) == 0
    )
    assert content_of(tmp_path / "child.vdi")[:7] == b"changed"


def test_a_commit(tmp_path: Path, rng: random.Random) -> None:
    """The child is empty then, and takes its parent; other children do not."""
    want = bytearray(parent_and_child(tmp_path, rng))
    tapcore.create_image(f"vdi:{tmp_path / 'other.vdi'}", None, parent="vdi:base.vdi")
    with tapcore.open(f"vdi:{tmp_path / 'child.vdi'}", readonly=False) as disk:
        disk.pwrite(MIB + 5, b"mine")
        disk.zero(2 * MIB, length=MIB)
    want[MIB + 5 : MIB + 9] = b"mine"
    want[2 * MIB : 3 * MIB] = bytes(MIB)
    assert main(["commit", str(tmp_path / "child.vdi")]) == 0
    assert content_of(tmp_path / "base.vdi") == want
    assert content_of(tmp_path / "child.vdi") == want
    assert set(entries_of((tmp_path / "child.vdi").read_bytes())) == {0xFFFFFFFF}
    assert (tmp_path / "child.vdi").stat().st_size == 2 * MIB
    with pytest.raises(TapError, match="its parent was changed"):
        content_of(tmp_path / "other.vdi")
    with tapcore.open(f"vdi:{tmp_path / 'child.vdi'}", readonly=False) as disk:
        disk.pwrite(0, b"again")
    assert content_of(tmp_path / "child.vdi")[:5] == b"again"


def test_what_cannot_be_a_parent(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    (tmp_path / "deep").mkdir()
    tapcore.create_image(f"vdi:{tmp_path / 'base.vdi'}", SIZE)
    tapcore.create_image(f"vdi:{tmp_path / 'deep/base.vdi'}", SIZE)
    child = tmp_path / "child.vdi"
    with pytest.raises(UsageError, match="must be a VDI"):
        tapcore.create_image(f"vdi:{child}", None, parent="aio:base.raw")
    with pytest.raises(UsageError, match="does not say where its parent is"):
        tapcore.create_image(f"vdi:{child}", None, parent="vdi:deep/base.vdi")
    options = {"subformat": "fixed"}
    with pytest.raises(UsageError, match="a fixed VDI cannot have a parent"):
        tapcore.create_image(f"vdi:{child}", None, parent="vdi:base.vdi", options=options)
    assert not child.exists()


def test_an_image_of_another_kind_keeps_it(tmp_path: Path, rng: random.Random) -> None:
    parent_and_child(tmp_path, rng)
    with tapcore.open(f"vdi:{tmp_path / 'base.vdi'}", readonly=False) as disk:
        leaf = disk.state.disks
        assert leaf is not None
        with pytest.raises(NotSupportedError, match="cannot have a parent"):
            leaf.drv.td_set_parent(leaf, tapcore.DiskId("child.vdi", "vdi"))


def test_inspect_says_that_there_is_a_parent(tmp_path: Path, rng: random.Random) -> None:
    parent_and_child(tmp_path, rng)
    found = inspect_image(f"vdi:{tmp_path / 'child.vdi'}")
    assert [each.code for each in found.findings] == ["parent-not-recorded"]
    assert str(header_of(tmp_path / "base.vdi")[0]) in found.findings[0].message


def test_a_child_without_an_id_of_its_parent(tmp_path: Path, rng: random.Random) -> None:
    parent_and_child(tmp_path, rng)
    with open(tmp_path / "child.vdi", "r+b") as file:
        file.seek(PARENT_AT)
        file.write(bytes(16))
    with pytest.raises(ImageFormatError, match="does not say which"):
        content_of(tmp_path / "child.vdi")


def test_a_parent_whose_last_change_is_not_recorded(tmp_path: Path, rng: random.Random) -> None:
    below = parent_and_child(tmp_path, rng)
    with open(tmp_path / "child.vdi", "r+b") as file:
        file.seek(PARENT_AT + 16)
        file.write(bytes(16))
    with open(tmp_path / "base.vdi", "r+b") as file:
        file.seek(MODIFIED_AT)
        file.write(b"x" * 16)
    assert content_of(tmp_path / "child.vdi") == below


def test_convert_flattens_a_chain(tmp_path: Path, rng: random.Random) -> None:
    below = parent_and_child(tmp_path, rng)
    with tapcore.open(f"vdi:{tmp_path / 'child.vdi'}", readonly=False) as disk:
        disk.pwrite(1000, b"mine")
    flat = tmp_path / "flat.vdi"
    tapcore.convert_image(f"vdi:{tmp_path / 'child.vdi'}", f"vdi:{flat}")
    assert content_of(flat) == below[:1000] + b"mine" + below[1004:]
    assert f'"virtual-size": {SIZE}' in run("qemu-img", "info", "--output=json", flat)
