"""Differencing images: whose sector it is, by hand, and which parent."""

import os
import random
import struct
from pathlib import Path

import attrs
import pytest

import tapcore
from tap_vhd.footer import DIFFERENCING, Footer, geometry_of, unpack_footer
from tap_vhd.footers import Footers, read_footers
from tap_vhd.header import HEADER, Header, Locator, read_header
from tap_vhd.parentnames import recorded_names
from tapcore import ImageFormatError, TapError, UsageError, for_windows, from_windows
from tapcore.tools.commit import commit_image
from tapcore.tools.inspect import inspect_image
from vhdtools import KIB, MIB, content_of, problems, run, set_time, some_content

SIZE = 2 * MIB + 512


def parent_and_child(folder: Path, rng: random.Random, subformat: str = "dynamic") -> bytes:
    """`base.vhd` with content, which is returned, and `child.vhd` on it."""
    content = some_content(rng, SIZE)
    options = {"subformat": subformat}
    tapcore.create_image(f"vhd:{folder / 'base.vhd'}", SIZE, options=options)
    with tapcore.open(f"vhd:{folder / 'base.vhd'}", readonly=False) as disk:
        disk.pwrite(0, content)
    tapcore.create_image(f"vhd:{folder / 'child.vhd'}", None, parent="vhd:base.vhd")
    return content


def header_of(path: Path) -> tuple[Footers, Header, bytes]:
    content = path.read_bytes()

    def read(at: int, length: int) -> bytes:
        return content[at : at + length]

    footers = read_footers(read, len(content))
    footer = footers.footer
    return footers, read_header(read, footer.data_offset, footer.sectors, len(content)), content


def test_a_child_made_by_hand(tmp_path: Path, rng: random.Random) -> None:
    """The bytes are those of the specification: a bit, from the highest, for each sector."""
    below = parent_and_child(tmp_path, rng)
    base = unpack_footer((tmp_path / "base.vhd").read_bytes()[-512:])
    block, name = 512 * KIB, ".\\base.vhd".encode("utf-16-le")
    footer = attrs.evolve(base, disk_type=DIFFERENCING, unique_id=b"c" * 16, data_offset=512)
    header = Header(
        table_offset=2048,
        entries=5,
        block_size=block,
        parent_id=base.unique_id,
        locators=(Locator(b"W2ru", 1536, len(name)),),
    )
    bitmap = bytes([0b10000001, 0, 0xFF]).ljust(512, b"\0")
    mine = rng.randbytes(block)
    image = footer.pack() + header.pack() + name.ljust(512, b"\0")
    image += struct.pack(">5I", 0xFFFFFFFF, 5, *[0xFFFFFFFF] * 3).ljust(512, b"\xff")
    path = tmp_path / "hand.vhd"
    path.write_bytes(image + bitmap + mine + footer.pack())
    want = bytearray(below)
    for sector in (0, 7, *range(16, 24)):
        at = block + sector * 512
        want[at : at + 512] = mine[sector * 512 : sector * 512 + 512]
    assert content_of(path) == want
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(block + 3 * 512, b"n" * 512)
        want[block + 3 * 512 : block + 4 * 512] = b"n" * 512
        assert disk.pread(0, length=SIZE) == want
    assert path.read_bytes()[2560:2563] == bytes([0b10010001, 0, 0xFF])
    assert content_of(path) == want
    assert not problems(path.read_bytes(), closed=True)


def test_a_chain_of_three(tmp_path: Path, rng: random.Random) -> None:
    want = bytearray(parent_and_child(tmp_path, rng, "fixed"))
    tapcore.create_image(f"vhd:{tmp_path / 'leaf.vhd'}", None, parent="vhd:child.vhd")
    for name in ("child", "leaf"):
        with tapcore.open(f"vhd:{tmp_path / name}.vhd", readonly=False) as disk:
            for _ in range(20):
                at = rng.randrange(SIZE - 9000)
                want[at : at + 9000] = rng.randbytes(9000)
                disk.pwrite(at, want[at : at + 9000])
        if name == "child":
            set_parent_time(tmp_path / "leaf.vhd", tmp_path / "child.vhd")
    assert content_of(tmp_path / "leaf.vhd") == want
    assert not problems((tmp_path / "leaf.vhd").read_bytes(), closed=True)


def set_parent_time(child: Path, parent: Path) -> None:
    """As if the parent had been changed when its child was made."""
    _, header, _ = header_of(child)
    set_time(parent, header.parent_time + 946684800)


def test_a_child_records_its_parent(tmp_path: Path, rng: random.Random) -> None:
    parent_and_child(tmp_path, rng)
    footers, header, content = header_of(tmp_path / "child.vhd")
    base = unpack_footer((tmp_path / "base.vhd").read_bytes()[-512:])
    assert footers.footer.disk_type == DIFFERENCING
    assert header.parent_id == base.unique_id
    assert header.parent_time == int((tmp_path / "base.vhd").stat().st_mtime) - 946684800
    assert HEADER.unpack_from(content, 512)[10].decode("utf-16-be").rstrip("\0") == "base.vhd"
    names = {
        each.platform: content[each.offset : each.offset + each.length].decode("utf-16-le")
        for each in header.locators
    }
    absolute = str(tmp_path / "base.vhd").replace("/", "\\")
    assert names == {b"W2ru": ".\\base.vhd", b"W2ku": absolute}
    inspected = inspect_image(f"vhd:{tmp_path / 'child.vhd'}")
    assert {name for _, name in inspected.references} == {
        "base.vhd",
        str(tmp_path / "base.vhd"),
    }


def test_a_name_with_a_colon_is_no_drive(tmp_path: Path) -> None:
    tapcore.create_image(f"vhd:{tmp_path / 'C:base.vhd'}", SIZE)
    tapcore.create_image(f"vhd:{tmp_path / 'child.vhd'}", None, parent="vhd:C:base.vhd")
    with tapcore.open(f"vhd:{tmp_path / 'child.vhd'}", readonly=True) as disk:
        leaf = disk.state.disks
        assert leaf is not None
        assert leaf.next is not None
        assert leaf.next.name == str(tmp_path / "C:base.vhd")


def test_another_parent_of_the_same_name_is_refused(tmp_path: Path, rng: random.Random) -> None:
    parent_and_child(tmp_path, rng)
    (tmp_path / "base.vhd").unlink()
    tapcore.create_image(f"vhd:{tmp_path / 'base.vhd'}", SIZE)
    with pytest.raises(TapError, match="its parent is another image"):
        content_of(tmp_path / "child.vhd")


def test_a_parent_that_has_changed_is_said(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    below = parent_and_child(tmp_path, rng)
    assert content_of(tmp_path / "child.vhd") == below
    assert not caplog.text
    set_time(tmp_path / "base.vhd", 1_500_000_000)
    assert content_of(tmp_path / "child.vhd") == below
    assert "its parent has been changed or copied since" in caplog.text


def test_what_cannot_be_a_parent(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    tapcore.create_image(f"vhd:{tmp_path / 'base.vhd'}", SIZE)
    child = tmp_path / "child.vhd"
    with pytest.raises(UsageError, match="must be a VHD"):
        tapcore.create_image(f"vhd:{child}", None, parent="aio:base.raw")
    options = {"subformat": "fixed"}
    with pytest.raises(UsageError, match="a fixed VHD cannot have a parent"):
        tapcore.create_image(f"vhd:{child}", None, parent="vhd:base.vhd", options=options)
    for odd in ("back\\slash.vhd", os.fsdecode(b"caf\xe9.vhd")):
        os.link(tmp_path / "base.vhd", tmp_path / odd)
        with pytest.raises(UsageError, match="cannot record the name"):
            tapcore.create_image(f"vhd:{child}", None, parent=f"vhd:{odd}")
    assert not child.exists()


@pytest.mark.parametrize(
    ("windows", "path"),
    [
        (".\\base.vhd", "base.vhd"),
        ("..\\up\\base.vhd", "../up/base.vhd"),
        (".\\.\\sub\\base.vhd", "sub/base.vhd"),
        ("\\vm\\base.vhd", "/vm/base.vhd"),
        ("C:\\vm\\base.vhd", "base.vhd"),
        ("\\\\server\\share\\base.vhd", "base.vhd"),
        ("base", "base"),
    ],
)
def test_names_of_windows(windows: str, path: str) -> None:
    assert from_windows(windows) == path


@pytest.mark.parametrize("name", ["base.vhd", "sub/base.vhd", "../base.vhd", "ä/€.vhd", "/a/b"])
def test_names_come_back(name: str) -> None:
    assert from_windows(for_windows(name, "VHD")) == name


@pytest.mark.parametrize(
    ("platform", "stored", "name"),
    [
        (b"W2ku", "C:\\vm\\b.vhd".encode("utf-16-le"), "b.vhd"),
        (b"MacX", b"file://localhost/vm/a%20b.vhd", "/vm/a b.vhd"),
        (b"Wi2r", b".\\b.vhd\0", "b.vhd"),
        (b"none", b"x", "in-header.vhd"),
    ],
)
def test_the_names_of_other_platforms(platform: bytes, stored: bytes, name: str) -> None:
    header = Header(
        table_offset=0,
        entries=0,
        block_size=4096,
        parent_name="in-header.vhd".encode("utf-16-be"),
        locators=(Locator(platform, 0, len(stored)),),
    )
    assert recorded_names(lambda at, length: stored[at : at + length], header)[0] == name


def test_a_child_without_a_name_of_its_parent(tmp_path: Path) -> None:
    footer = Footer(
        disk_type=DIFFERENCING,
        current_size=MIB,
        original_size=MIB,
        geometry=geometry_of(2048),
        unique_id=bytes(16),
        data_offset=512,
        creator=b"win ",
        creator_version=0,
    )
    header = Header(table_offset=1536, entries=1, block_size=2 * MIB)
    path = tmp_path / "lost.vhd"
    path.write_bytes(footer.pack() + header.pack() + b"\xff" * 512 + footer.pack())
    with pytest.raises(ImageFormatError, match="does not say where it is"):
        content_of(path)
    assert "parent-not-recorded" in [each.code for each in inspect_image(f"vhd:{path}").findings]


def test_convert_flattens_a_chain(tmp_path: Path, rng: random.Random) -> None:
    below = parent_and_child(tmp_path, rng)
    with tapcore.open(f"vhd:{tmp_path / 'child.vhd'}", readonly=False) as disk:
        disk.pwrite(1000, b"mine")
    flat = tmp_path / "flat.vhd"
    tapcore.convert_image(f"vhd:{tmp_path / 'child.vhd'}", f"vhd:{flat}")
    assert content_of(flat) == below[:1000] + b"mine" + below[1004:]
    assert '"virtual-size": 2097664' in run("qemu-img", "info", "--output=json", flat)


def raw_parent_and_child(folder: Path, rng: random.Random) -> bytes:
    """`base.vhd`, a raw disk with content, and `child.vhd`, as XenServer makes one on it."""
    content = parent_and_child(folder, rng)
    child = folder / "child.vhd"
    footers, header, old = header_of(child)
    at, packed = footers.footer.data_offset, attrs.evolve(header, parent_id=bytes(16)).pack()
    child.write_bytes(old[:at] + packed + old[at + len(packed) :])
    (folder / "base.vhd").write_bytes(content)
    return content


def test_the_parent_is_raw_where_its_id_is_none(tmp_path: Path, rng: random.Random) -> None:
    """As `vhd-util snapshot -m` records it, and its `check` takes it."""
    content = raw_parent_and_child(tmp_path, rng)
    child = tmp_path / "child.vhd"
    assert content_of(child) == content
    with tapcore.open(f"vhd:{child}", readonly=False) as disk:
        disk.pwrite(1000, b"mine")
    want = content[:1000] + b"mine" + content[1004:]
    assert content_of(child) == want
    assert (tmp_path / "base.vhd").read_bytes() == content
    commit_image(f"vhd:{child}")
    assert (tmp_path / "base.vhd").read_bytes() == want == content_of(child)
    assert not problems(child.read_bytes(), closed=True)


def test_what_is_a_vhd_is_no_raw_parent(tmp_path: Path, rng: random.Random) -> None:
    """Its structures would be read as content."""
    raw_parent_and_child(tmp_path, rng)
    (tmp_path / "base.vhd").unlink()
    tapcore.create_image(f"vhd:{tmp_path / 'base.vhd'}", SIZE, options={"subformat": "fixed"})
    with pytest.raises(ImageFormatError, match="its parent is a raw disk, but that is a VHD"):
        content_of(tmp_path / "child.vhd")
