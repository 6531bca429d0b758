"""Which footer is believed, how large the disk is, and what is refused."""

import contextlib
import io
import json
import random
from pathlib import Path

import attrs
import pytest
import pyvhdi
from dissect.hypervisor.disk.vhd import VHD
from hypothesis import given, settings
from hypothesis import strategies as st

import tapcore
from tap_vhd.bits import all_set, is_set, same_until, with_ones
from tap_vhd.footer import FIXED, LARGEST_GEOMETRY, Footer, geometry_of, unpack_footer
from tapcore import ImageFormatError, NotSupportedError, TapError
from tapcore.clusters import Coding
from tapcore.tools.inspect import inspect_image
from vhdtools import KIB, MIB, content_of, make, problems, qemu_content, run, some_content

SIZE = MIB + 1536


def image(path: Path, subformat: str = "dynamic") -> bytes:
    """A new image with content; returns the content."""
    content = some_content(random.Random(1), SIZE)
    tapcore.create_image(f"vhd:{path}", SIZE, options={"subformat": subformat})
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(0, content)
    return content


def change(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        file.write(content)


def change_footer(path: Path, *, front: bool = True, **fields: object) -> None:
    """Change what the footer says, with its checksum."""
    footer = attrs.evolve(unpack_footer(path.read_bytes()[-512:]), **fields)  # type: ignore[arg-type]
    change(path, -512, footer.pack())
    if front:
        change(path, 0, footer.pack())


# ---- the two of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "zeroes", "a byte"])
def test_the_copy_is_used_where_the_footer_is_damaged(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.vhd"
    content = image(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-512])
    else:
        change(path, -400 if damage == "a byte" else -512, bytes(512)[:1] or b"")
        change(path, -512, bytes(512) if damage == "zeroes" else b"conectix\1")
    before = path.read_bytes()
    assert content_of(path) == content
    assert "the copy at its front is used" in caplog.text
    assert path.read_bytes() == before
    assert "not-closed" in [each.code for each in inspect_image(f"vhd:{path}").findings]
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        assert disk.info()["footer"] == "copy at the front"
        disk.pwrite(0, b"new")
    assert not problems(path.read_bytes(), closed=True)
    assert content_of(path) == b"new" + content[3:]


def test_a_damaged_copy_is_said_and_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.vhd"
    content = image(path)
    change(path, 0, b"?")
    assert content_of(path) == content
    assert "the copy of the footer at its front is damaged" in caplog.text
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(0, content[:512])
    assert not problems(path.read_bytes(), closed=True)


def test_with_neither_it_is_no_vhd(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    image(path)
    change(path, 0, b"?")
    change(path, -512, b"?")
    with pytest.raises(ImageFormatError, match="is not a VHD image"):
        content_of(path)


def test_what_a_guest_wrote_at_its_front_is_not_believed(tmp_path: Path) -> None:
    """A fixed image's first sector is content; where it fits as well as the footer, none is."""
    path, other = tmp_path / "disk.vhd", tmp_path / "other.vhd"
    image(path, "fixed")
    image(other)
    head = other.read_bytes()[:512]
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(0, head[:60] + b"\0\0\0\2" + head[64:])  # no good checksum
    assert content_of(path)[:60] == head[:60]
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(0, head)
    with pytest.raises(ImageFormatError, match="two footers that contradict each other"):
        content_of(path)


def test_a_footer_of_511_bytes(tmp_path: Path) -> None:
    """As Virtual PC wrote it before 2004."""
    for subformat in ("fixed", "dynamic"):
        path = tmp_path / f"{subformat}.vhd"
        content = image(path, subformat)
        path.write_bytes(path.read_bytes()[:-1])
        assert content_of(path) == content
        with tapcore.open(f"vhd:{path}", readonly=False) as disk:
            assert disk.info()["footer"] == "at the end"
            disk.pwrite(SIZE - 512, b"e" * 512)
        assert content_of(path) == content[:-512] + b"e" * 512


def test_it_is_read_through_the_page_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk.vhd"
    content = image(path)
    assert content_of(path, cache="none") == content
    assert [each.message for each in caplog.records] == [
        f"{path}: a VHD is not laid out for O_DIRECT; using the page cache"
    ]


# ---- the size -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("creator", "geometry", "size"),
    [
        (b"vpc ", (10, 4, 17), 10 * 4 * 17 * 512),
        (b"qemu", (10, 4, 17), 10 * 4 * 17 * 512),
        (b"vpc ", (65535, 16, 255), SIZE),
        (b"vpc ", (0, 0, 0), SIZE),
        *((creator, (10, 4, 17), SIZE) for creator in (b"win ", b"qem2", b"d2v ", b"vs  ")),
        *((creator, (10, 4, 17), SIZE) for creator in (b"tap\0", b"CTXS", b"vbox", b"????")),
    ],
)
def test_the_size_depends_on_the_creator(
    creator: bytes, geometry: tuple[int, int, int], size: int, tmp_path: Path
) -> None:
    path = tmp_path / "disk.vhd"
    content = image(path)
    change_footer(path, creator=creator, geometry=geometry)
    assert content_of(path) == content[:size]
    assert inspect_image(f"vhd:{path}").virtual_size == size


CREATORS = {  # whether QEMU goes by the geometry; a newer one may know more of them
    b"vpc ": True,
    b"qemu": True,
    b"qem2": False,
    b"win ": False,
    b"d2v ": False,
    b"tap\0": False,
    b"CTXS": False,
    b"vs  ": True,
    b"vbox": True,
    b"????": True,
}


@pytest.mark.parametrize("creator", CREATORS)
def test_other_readers_go_by_what_the_table_says(creator: bytes, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    content = image(path)
    for geometry in ((10, 4, 17), (65535, 16, 255)):
        change_footer(path, creator=creator, geometry=geometry)
        by_geometry = CREATORS[creator] and geometry == (10, 4, 17)
        qemu = json.loads(run("qemu-img", "info", "-f", "vpc", "--output=json", path))
        assert qemu["virtual-size"] == (10 * 4 * 17 * 512 if by_geometry else SIZE)
        assert qemu_content(path) == content[: qemu["virtual-size"]]
        assert VHD(io.BytesIO(path.read_bytes())).size == SIZE
        file = pyvhdi.file()
        file.open(str(path))
        assert file.get_media_size() == SIZE
        file.close()
        found = inspect_image(f"vhd:{path}")
        said = [each.message for each in found.findings if each.code == "size-by-creator"]
        if by_geometry and found.virtual_size == SIZE:
            left_out = (SIZE >> 9) - 680
            assert said == [
                f"QEMU goes by the geometry, and leaves out the last {left_out} sectors"
            ]
        else:
            assert (said, found.virtual_size) == ([], qemu["virtual-size"])


@given(st.integers(1, LARGEST_GEOMETRY * 2))
def test_the_geometry_has_room_for_no_more_than_the_disk(sectors: int) -> None:
    cylinders, heads, per_track = geometry_of(sectors)
    assert 0 <= cylinders <= 65535
    assert 1 <= heads <= 16
    assert cylinders * heads * per_track <= sectors
    if sectors < LARGEST_GEOMETRY:
        assert sectors - cylinders * heads * per_track < heads * per_track + per_track


# ---- strangers ----------------------------------------------------------------------------------


def test_what_is_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    for fields, text in (
        ({"disk_type": 7}, "unknown type"),
        ({"creator": b"tap\0", "creator_version": 1}, "tapdisk 0.1"),
        ({"data_offset": 1 << 60}, "its dynamic header outside of the file"),
        ({"current_size": 1 << 62}, "a block table that is too small"),
    ):
        image(path)
        change_footer(path, **fields)
        with pytest.raises((ImageFormatError, NotSupportedError), match=text):
            content_of(path)
        path.unlink()


def test_blocks_that_overlap_are_read_but_not_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    make(path, MIB, 16 * KIB)
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(0, b"a" * 32 * KIB)
    content = path.read_bytes()
    change(path, 1536 + 4, content[1536 : 1536 + 4])
    before = path.read_bytes()
    assert content_of(path)[: 32 * KIB] == b"a" * 32 * KIB
    with (
        pytest.raises(TapError, match="overlap"),
        tapcore.open(f"vhd:{path}", readonly=False) as disk,
    ):
        disk.pwrite(0, b"b" * 512)
    assert path.read_bytes() == before


def test_a_block_past_the_end_is_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    make(path, MIB, 16 * KIB)
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(0, b"a" * 48 * KIB)
    change(path, 1536 + 4, b"\0\xff\0\0")
    assert [each.code for each in inspect_image(f"vhd:{path}").findings] == ["content-lost"]
    with tapcore.open(f"vhd:{path}", readonly=True) as disk:
        assert disk.pread(0, length=16 * KIB) == b"a" * 16 * KIB
        assert disk.pread(32 * KIB, length=16 * KIB) == b"a" * 16 * KIB
        with pytest.raises(TapError, match="past the end of the file"):
            disk.pread(16 * KIB, length=512)


@settings(max_examples=30)
@given(st.data())
def test_no_damage_makes_it_fall_over(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any field of the structures, with checksums that are right."""
    path = tmp_path_factory.mktemp("bad") / "disk.vhd"
    make(path, MIB, 64 * KIB)
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.pwrite(100 * KIB, b"a" * 100 * KIB)
    content = bytearray(path.read_bytes())
    structures = [(0, 85, 64), (512, 768, 548), (1536, 64, 0)]
    start, length, sum_at = data.draw(st.sampled_from(structures))
    at = start + data.draw(st.integers(0, length - 8))
    content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    if sum_at:
        end = 512 if start == 0 else 1536
        total = sum(content[start:end]) - sum(content[sum_at : sum_at + 4])
        content[sum_at : sum_at + 4] = (~total & 0xFFFFFFFF).to_bytes(4, "big")
    if start == 0:
        content[-512:] = content[:512]
    path.write_bytes(content)
    for readonly in (True, False):
        with (
            contextlib.suppress(TapError),
            tapcore.open(f"vhd:{path}", readonly=readonly) as disk,
        ):
            end = min(disk.size, 2 * MIB)
            disk.pread(0, length=end)
            if not readonly:
                disk.pwrite(0, bytes(1024)[:end])
        with contextlib.suppress(TapError):
            inspect_image(f"vhd:{path}")


# ---- bitmaps -----------------------------------------------------------------------------------


@given(st.binary(min_size=4, max_size=64), st.data())
def test_bits_are_those_of_a_list(content: bytes, data: st.DataObject) -> None:
    coding = Coding("B")
    bits = coding.decode(content)
    plain = [bool(byte >> 7 - number & 1) for byte in content for number in range(8)]
    first = data.draw(st.integers(0, len(plain) - 1))
    stop = data.draw(st.integers(first + 1, len(plain)))
    assert [is_set(bits, number) for number in range(len(plain))] == plain
    same = first
    while same < stop and plain[same] == plain[first]:
        same += 1
    assert same_until(bits, first, stop) == same
    assert all_set(bits, first, stop) == all(plain[first:stop])
    at, ones = with_ones(bits, first, stop)
    bits[at : at + len(ones)] = coding.decode(ones)
    plain[first:stop] = [True] * (stop - first)
    assert [is_set(bits, number) for number in range(len(plain))] == plain


def test_a_footer_is_what_was_packed() -> None:
    footer = Footer(
        disk_type=FIXED,
        current_size=1 << 40,
        original_size=512,
        geometry=(1, 2, 3),
        unique_id=bytes(range(16)),
        creator=b"abcd",
        creator_version=9,
        saved_state=1,
        reserved=b"r" * 427,
    )
    assert unpack_footer(footer.pack()) == footer
