"""Files as VMware and VirtualBox leave them, whole, moved, renamed, and in pieces."""

import json
import logging
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tapcore
from peers import peer
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image
from vmdkwriters import cowd, descriptor, hosted, kdmv_header, sesparse

GRAIN = 128
CAPACITY = 16 * GRAIN
NONE = tapcore.ReferencePolicy(none=True)


def reads(image: Path) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


# ---- VirtualBox keeps the true size in the descriptor ------------------------------------------


def virtualbox(folder: Path, content: bytes, name: str = "vb.vmdk", **entries: str) -> Path:
    image = folder / name
    line = [f'RW {len(content) // 512} SPARSE "{name}"']
    rounded = content + bytes(-len(content) % (GRAIN * 512))
    image.write_bytes(hosted(rounded, text=descriptor("monolithicSparse", line, **entries)))
    return image


@pytest.mark.parametrize("sectors", [CAPACITY - GRAIN + 1, CAPACITY - 48, CAPACITY - 1, CAPACITY])
def test_the_true_size_is_the_one_in_the_extent_line(
    tmp_path: Path, rng: random.Random, sectors: int
) -> None:
    content = rng.randbytes(sectors * 512)
    image = virtualbox(tmp_path, content)
    assert reads(image) == content
    assert image_info(f"vmdk:{image}")[0].virtual_size == len(content)
    assert inspect_image(f"vmdk:{image}", parents=NONE).virtual_size == len(content)
    before = image.read_bytes()
    for repair in ("", "leaks", "all"):
        found = check_image(f"vmdk:{image}", repair=repair)
        assert not found.corruptions + found.leaks + found.corruptions_fixed, found.messages
        assert image.read_bytes() == before
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(len(content) - 700, b"e" * 700)
        with pytest.raises((tapcore.TapError, ValueError)):
            disk.pwrite(len(content), b"x")
    assert reads(image) == content[:-700] + b"e" * 700


def test_growing_such_a_disk_shows_nothing_that_lay_behind_its_end(
    tmp_path: Path, rng: random.Random
) -> None:
    content = rng.randbytes((CAPACITY - 48) * 512)
    image = virtualbox(tmp_path, content + b"\xee" * 48 * 512)
    image.write_bytes(image.read_bytes().replace(b"RW 2048 ", b"RW 2000 "))
    assert reads(image) == content
    for size in (CAPACITY - 40, CAPACITY, CAPACITY + 1):
        resize_image(f"vmdk:{image}", str(size * 512))
        assert reads(image) == content.ljust(size * 512, b"\0")
        assert not check_image(f"vmdk:{image}").corruptions
        command = [peer("qemu-img"), "info", "--output=json", str(image)]
        said = subprocess.run(command, capture_output=True, check=True).stdout
        assert json.loads(said)["virtual-size"] == size * 512


def test_a_child_of_such_a_disk_is_as_long(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes((CAPACITY - 48) * 512)
    virtualbox(tmp_path, content)
    child = tmp_path / "child.vmdk"
    tapcore.create_image(f"vmdk:{child}", None, parent="vmdk:vb.vmdk")
    with tapcore.open(f"vmdk:{child}", readonly=False) as disk:
        assert disk.size == len(content)
        disk.pwrite(len(content) - 100, b"c" * 100)
    assert reads(child) == content[:-100] + b"c" * 100


def test_a_child_of_virtualbox_is_no_disk_of_its_own(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """It records its parent by an id alone; VirtualBox finds that in its own settings."""
    content = rng.randbytes(CAPACITY * 512)
    base = virtualbox(tmp_path, content, "base.vmdk")
    uuid = '"6a1b3ef2-9f6d-4f43-8a0f-6f2f7d3b5a10"'
    child = virtualbox(tmp_path, bytes(CAPACITY * 512), **{"ddb.uuid.parent": uuid})
    with pytest.raises(tapcore.TapError, match=r"does not say where it is.*rebase --unsafe"):
        reads(child)
    [facts] = image_info(f"vmdk:{child}")
    assert (facts.virtual_size, facts.parent) == (CAPACITY * 512, None)
    assert f"{child}: cannot be read: has a parent, but does not say where it is" in caplog.text
    rebase_image(f"vmdk:{child}", "vmdk:base.vmdk", unsafe=True)
    assert reads(child) == content
    rebase_image(f"vmdk:{child}", "")
    base.unlink()
    assert reads(child) == content
    none = '"00000000-0000-0000-0000-000000000000"'
    alone = virtualbox(tmp_path, content, "alone.vmdk", **{"ddb.uuid.parent": none})
    assert reads(alone) == content


# ---- a descriptor and flat content in one file ---------------------------------------------------


def flat_inside(folder: Path, content: bytes, at: int = GRAIN, **fields: int) -> Path:
    image = folder / "inside.vmdk"
    line = f'RW {len(content) // 512} FLAT "inside.vmdk" {at}'
    head = kdmv_header(**{"flags": 1, "descriptorOffset": 1, "descriptorSize": 4} | fields)
    text = descriptor("monolithicFlat", [line]).ljust(2048, b"\0")
    image.write_bytes((head + text).ljust(GRAIN * 512, b"\0") + content)
    return image


def test_flat_content_behind_its_own_descriptor(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(100 * 512)
    image = flat_inside(tmp_path, content)
    assert reads(image) == content
    assert check_image(f"vmdk:{image}").corruptions == 0
    seen = inspect_image(f"vmdk:{image}", parents=NONE)
    assert not seen.dangerous
    assert not seen.references, "it names no other file"
    assert image_info(f"vmdk:{image}")[0].disk_size >= len(content)
    link = tmp_path / "link.vmdk"
    link.symlink_to(image)
    assert reads(link) == content
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(10, b"new")
    content = content[:10] + b"new" + content[13:]
    assert reads(image) == content
    resize_image(f"vmdk:{image}", "+512")
    assert reads(image) == content + bytes(512)
    assert image.read_bytes()[:4] == b"KDMV"


def test_flat_content_must_not_lie_over_its_descriptor(tmp_path: Path) -> None:
    image = flat_inside(tmp_path, bytes(512), at=3)
    with pytest.raises(tapcore.ImageFormatError, match="overlaps its own descriptor"):
        reads(image)


def test_flat_content_in_a_renamed_file_is_not_taken_from_another(tmp_path: Path) -> None:
    image = flat_inside(tmp_path, b"i" * 512)
    image.rename(tmp_path / "other.vmdk")
    with pytest.raises(tapcore.TapError, match=r"inside\.vmdk' does not exist"):
        reads(tmp_path / "other.vmdk")
    assert inspect_image(f"vmdk:{tmp_path}/other.vmdk", parents=NONE).dangerous


# ---- parents that have moved ---------------------------------------------------------------------

HINTS = {
    "absolute": "/vmfs/volumes/5f0c-11/vm/base.vmdk",
    "Windows": r"C:\VMs\base.vmdk",
    "Windows, relative": r"..\vm\base.vmdk",
    "gone": "gone.vmdk",
    "none": "",
}


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("kind", ["monolithicSparse", "vmfsSparse", "seSparse"])
def test_a_moved_parent_is_recorded_anew(
    tmp_path: Path, rng: random.Random, kind: str, hint: str
) -> None:
    content = rng.randbytes(CAPACITY * 512)
    virtualbox(tmp_path, content, "base.vmdk")
    entries = {"parentCID": "12345678"}
    if HINTS[hint]:
        entries["parentFileNameHint"] = f'"{HINTS[hint]}"'
    own = b"own" + bytes(GRAIN * 512 * 3 - 3)
    changed = own.ljust(len(content), b"\0")
    child = tmp_path / "child.vmdk"
    if kind == "monolithicSparse":
        virtualbox(tmp_path, changed, "child.vmdk", **entries)
    else:
        extent = cowd(changed) if kind == "vmfsSparse" else sesparse(changed)
        (tmp_path / "child-delta.vmdk").write_bytes(extent)
        line = [f'RW {CAPACITY} {kind.upper()} "child-delta.vmdk"']
        child.write_bytes(descriptor(kind, line, **entries))
    with pytest.raises(tapcore.TapError, match="`tapdisk rebase --unsafe -b PARENT`"):
        reads(child)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path != child}
    rebase_image(f"vmdk:{child}", "vmdk:base.vmdk", unsafe=True)
    got = reads(child)
    assert got[:3] == b"own"
    assert got[GRAIN * 512 :] == content[GRAIN * 512 :]
    assert image_info(f"vmdk:{child}", chain=True)[1].image == str(tmp_path / "base.vmdk")
    assert before == {path: path.read_bytes() for path in before}
    rebase_image(f"vmdk:{child}", "", unsafe=True)
    assert reads(child) == changed


def test_only_disks_with_holes_get_a_parent(tmp_path: Path) -> None:
    virtualbox(tmp_path, bytes(512), "base.vmdk")
    (tmp_path / "x.vmdk").write_bytes(bytes(512))
    image = tmp_path / "flat.vmdk"
    image.write_bytes(descriptor("monolithicFlat", ['RW 1 FLAT "x.vmdk" 0']))
    with pytest.raises(tapcore.NotSupportedError, match="cannot have a parent"):
        rebase_image(f"vmdk:{image}", "vmdk:base.vmdk", unsafe=True)


# ---- pieces of disks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("disk-s001.vmdk", "'disk.vmdk'"),
        ("a b-s012.vmdk", "'a b.vmdk'"),
        ("vm-000001-delta.vmdk", "'vm-000001.vmdk'"),
        ("vm-000001-sesparse.vmdk", "'vm-000001.vmdk'"),
        ("strange", "'disk.vmdk'"),
    ],
)
def test_an_extent_alone_is_said_to_be_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, whole: str
) -> None:
    image = tmp_path / name
    room: dict[str, Any] = {"descriptorOffset": 1, "descriptorSize": 20}
    for content in (
        hosted(b"x" * 4096),
        hosted(b"x" * 4096, text=bytes(1), **room),  # as QEMU makes them
        cowd(b"x" * 4096),
        sesparse(b"x" * 4096),
    ):
        image.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert reads(image) == b"x" * 4096
        assert len(caplog.records) == 1
        assert "one extent of a disk" in caplog.text
        assert whole in caplog.text
        notes = [each.message for each in inspect_image(f"vmdk:{image}").findings]
        assert any("one extent of a disk" in note and whole in note for note in notes)


def test_a_disk_with_its_descriptor_is_no_piece(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "disk-s001.vmdk").write_bytes(hosted(b"x" * 4096))
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("custom", ['RW 8 SPARSE "disk-s001.vmdk"']))
    with caplog.at_level(logging.WARNING):
        assert reads(image) == b"x" * 4096
    assert not caplog.records


@pytest.mark.parametrize("kind", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicFlat"])
def test_info_of_a_split_disk_counts_its_extents(
    tmp_path: Path, rng: random.Random, kind: str
) -> None:
    image = tmp_path / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", 5 << 30, options={"subformat": kind})
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for at in (0, 3 << 30):
            disk.pwrite(at, rng.randbytes(1 << 20))
    files = list(tmp_path.iterdir())
    used = sum(path.stat().st_blocks * 512 for path in files)
    assert used > 2 << 20
    (seen,) = image_info(f"vmdk:{image}")
    assert seen.disk_size == used
    assert seen.format["grain_size"] == (65536 if "Sparse" in kind else None)
    assert not seen.notes
    gone = tmp_path / seen.format["extents"][0]["filename"]
    used -= gone.stat().st_blocks * 512
    gone.unlink()
    (seen,) = image_info(f"vmdk:{image}")
    assert seen.disk_size == used
    assert [note for note in seen.notes if gone.name in note and "does not exist" in note]
    if len(files) > 2:
        assert seen.format["grain_size"] == (65536 if "Sparse" in kind else None)


def test_info_does_not_look_at_extents_that_the_policy_forbids(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "x.vmdk").write_bytes(os.urandom(1 << 20))
    image = home / "disk.vmdk"
    image.write_bytes(descriptor("monolithicFlat", ['RW 1 FLAT "../x.vmdk" 0']))
    (seen,) = image_info(f"vmdk:{image}")
    assert seen.disk_size == image.stat().st_blocks * 512
    assert any("outside its directory" in note for note in seen.notes)


# ---- what contradicts itself ---------------------------------------------------------------------


@pytest.mark.parametrize("lines", [["RW 8 SPARSE @"], ["RW 9999 SPARSE @"], ["RW 1 SPARSE @"] * 2])
def test_a_size_that_contradicts_the_header_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: list[str]
) -> None:
    content = b"x" * CAPACITY * 512
    image = tmp_path / "disk.vmdk"
    text = descriptor("monolithicSparse", [line.replace("@", '"disk.vmdk"') for line in lines])
    image.write_bytes(hosted(content, text=text))
    with caplog.at_level(logging.WARNING):
        assert reads(image) == content
    assert "and the header 2048" in caplog.text
    assert check_image(f"vmdk:{image}").corruptions == 1


@pytest.mark.parametrize("again", ["version=1", 'createType="vmfs"', "# x\nversion = 1\nCID=1"])
def test_two_descriptors_in_one_are_refused(tmp_path: Path, again: str) -> None:
    (tmp_path / "x.vmdk").write_bytes(bytes(512))
    image = tmp_path / "disk.vmdk"
    good = descriptor("monolithicFlat", ['RW 1 FLAT "x.vmdk" 0'])
    image.write_bytes(good + again.encode() + b"\n")
    with pytest.raises(tapcore.ImageFormatError, match="two descriptors: line 1"):
        reads(image)


def test_grains_compressed_by_nothing_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(hosted(b"x" * 4096, flags=0x10003))
    with pytest.raises(tapcore.ImageFormatError, match="compressed, and not by what"):
        reads(image)


@pytest.mark.parametrize("cid", ["", "CID=\n", "CID=xyz\n", "CID=123456789\n"])
def test_a_disk_without_a_content_id_gets_one_with_the_first_write(
    tmp_path: Path, cid: str
) -> None:
    (tmp_path / "x.vmdk").write_bytes(bytes(512))
    image = tmp_path / "disk.vmdk"
    good = descriptor("monolithicFlat", ['RW 1 FLAT "x.vmdk" 0'])
    image.write_bytes(good.replace(b"CID=12345678\n", cid.encode(), 1))
    assert image_info(f"vmdk:{image}")[0].format["cid"] is None
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"new")
    assert reads(image)[:3] == b"new"
    assert len(str(image_info(f"vmdk:{image}")[0].format["cid"])) == 8


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        (r"\\.\PhysicalDrive0", False),
        (r"..\secret.vmdk", False),
        (r"\secret.vmdk", False),
        (r"C:\secret.vmdk", False),
        (r"sub\x.vmdk", True),
    ],
)
def test_paths_of_windows_are_judged_as_windows_follows_them(
    tmp_path: Path, name: str, fine: bool
) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("monolithicFlat", [f'RW 1 FLAT "{name}" 0']))
    policy = tapcore.ReferencePolicy((str(tmp_path),))
    assert inspect_image(f"vmdk:{image}", parents=policy).dangerous is not fine
