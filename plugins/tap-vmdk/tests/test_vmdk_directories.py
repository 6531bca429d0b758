"""Grain directories and tables where none can be: nothing reads as holes without a word by that."""

import logging
import random
import struct
from itertools import pairwise
from pathlib import Path

import pytest

import tapcore
from tapcore.tools.check import check_image
from vmdkwriters import GRAIN, descriptor, empty, hosted, stream

SECTORS = 6 * GRAIN // 512
TEXT = descriptor("monolithicSparse", [f'RW {SECTORS} SPARSE "disk.vmdk"'])
STREAM_TEXT = descriptor("streamOptimized", [f'RDONLY {SECTORS} SPARSE "disk.vmdk"'])
DIRECTORY = 56
"""Of `gdOffset` in the header."""
REDUNDANT = 48
"""Of `rgdOffset`."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.vmdk"


@pytest.fixture
def content(rng: random.Random) -> bytes:
    return rng.randbytes(SECTORS * 512)


def reads(image: Path, *, salvage: bool = False) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True, salvage=salvage) as disk:
        return disk.pread(0, length=disk.size)


def alone(content: bytes, text: bytes = TEXT) -> bytearray:
    """A sparse file without a redundant directory."""
    return bytearray(hosted(content, text=text, flags=1, rgdOffset=0))


@pytest.mark.parametrize("place", [0, 1])
def test_the_only_directory_over_the_header_or_the_descriptor(
    image: Path, content: bytes, place: int
) -> None:
    raw = alone(content)
    struct.pack_into("<Q", raw, DIRECTORY, place)
    image.write_bytes(raw)
    why = "grain directory that lies (over other metadata|outside the file)"
    for use in (reads, lambda each: check_image(f"vmdk:{each}", repair="all")):
        with pytest.raises(tapcore.ImageFormatError, match=why):
            use(image)
    assert image.read_bytes() == raw


@pytest.mark.parametrize("place", [1, 10, 20, 21, 60, 127])
@pytest.mark.parametrize("in_header", [False, True])
def test_a_stream_whose_directory_is_said_to_be_where_none_is(
    image: Path, content: bytes, place: int, in_header: bool
) -> None:
    raw = bytearray(stream(content, text=STREAM_TEXT, gd_in_header=in_header))
    footer = 0 if in_header else len(raw) - 1024
    struct.pack_into("<Q", raw, footer + DIRECTORY, place)
    image.write_bytes(raw)
    with pytest.raises(tapcore.ImageFormatError, match="grain directory"):
        reads(image)
    assert reads(image, salvage=True) == content


def test_a_stream_whose_directory_is_said_to_be_its_end_mark(image: Path, content: bytes) -> None:
    raw = bytearray(stream(content, text=STREAM_TEXT))
    struct.pack_into("<Q", raw, len(raw) - 1024 + DIRECTORY, len(raw) // 512 - 1)
    image.write_bytes(raw)
    with pytest.raises(tapcore.ImageFormatError, match="empty grain directory") as caught:
        reads(image)
    assert "convert --salvage" in str(caught.value)
    assert reads(image, salvage=True) == content


def test_a_first_directory_among_zeroes_gives_way_to_the_redundant_one(
    image: Path, content: bytes
) -> None:
    raw = bytearray(hosted(content, text=TEXT))
    struct.pack_into("<Q", raw, DIRECTORY, len(raw) // 512)
    image.write_bytes(raw + bytes(GRAIN))
    assert reads(image) == content
    with pytest.raises(tapcore.ImageFormatError, match="check --repair all"):
        tapcore.open(f"vmdk:{image}", readonly=False)
    found = check_image(f"vmdk:{image}")
    assert any("holds nothing, and the redundant" in each for each in found.messages)
    found = check_image(f"vmdk:{image}", repair="all")
    assert (found.corruptions, found.corruptions_fixed) == (0, 1)
    assert reads(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"new")
    assert reads(image) == b"new" + content[3:]


@pytest.mark.parametrize("place", [2, 10, 20, None])
@pytest.mark.parametrize("split", [False, True])
def test_an_empty_directory_is_told_of_and_what_it_may_hide_is_kept(
    image: Path, content: bytes, caplog: pytest.LogCaptureFixture, split: bool, place: int | None
) -> None:
    raw = alone(content)
    struct.pack_into("<Q", raw, DIRECTORY, place or len(raw) // 512)
    file = image
    if split:
        line = f'RW {SECTORS} SPARSE "disk-s001.vmdk"'
        image.write_bytes(descriptor("twoGbMaxExtentSparse", [line]))
        file = image.with_name("disk-s001.vmdk")
    file.write_bytes(raw + bytes(GRAIN))
    with caplog.at_level(logging.WARNING):
        assert reads(image) == bytes(len(content))
    assert "its grain directory names no table, and there is data in the file" in caplog.text
    for repair in ("leaks", "all"):
        found = check_image(f"vmdk:{image}", repair=repair)
        assert found.leaks
        assert any("names no table" in each for each in found.messages)
        assert file.read_bytes() == raw + bytes(GRAIN)


@pytest.mark.parametrize("kind", ["monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"])
def test_an_empty_disk_is_no_matter_for_words(
    image: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    tapcore.create_image(f"vmdk:{image}", 1 << 20, options={"subformat": kind})
    with caplog.at_level(logging.WARNING):
        assert reads(image) == bytes(1 << 20)
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            disk.pwrite(0, b"x" * GRAIN)
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            disk.discard(0, length=1 << 20)
        assert reads(image) == bytes(1 << 20)
        found = check_image(f"vmdk:{image}")
    assert not caplog.records
    assert (found.corruptions, found.messages) == (0, [])


@pytest.mark.parametrize("place", [1, 2, 10, 18, 20])
def test_a_table_over_the_descriptor_is_none(image: Path, content: bytes, place: int) -> None:
    raw = bytearray(hosted(content, text=TEXT))
    directory = struct.unpack_from("<Q", raw, DIRECTORY)[0] * 512
    struct.pack_into("<I", raw, directory, place)
    image.write_bytes(raw)
    assert reads(image) == content
    found = check_image(f"vmdk:{image}")
    assert "entry 0 of the grain directory points at the header or the descriptor" in found.messages
    found = check_image(f"vmdk:{image}", repair="all")
    assert found.corruptions == 0
    assert reads(image) == content


def test_the_only_table_over_the_descriptor_is_an_error(image: Path, content: bytes) -> None:
    raw = alone(content)
    directory = struct.unpack_from("<Q", raw, DIRECTORY)[0] * 512
    struct.pack_into("<I", raw, directory, 10)
    image.write_bytes(raw)
    with pytest.raises(tapcore.TapError, match="damaged entry 0"):
        reads(image)


@pytest.mark.parametrize(("copies", "which"), [(1, DIRECTORY), (2, DIRECTORY), (2, REDUNDANT)])
def test_nothing_new_gets_the_place_of_a_table_that_was_cut_off(
    image: Path, rng: random.Random, copies: int, which: int
) -> None:
    """It would be taken for that table, and name whatever its words say."""
    size = 1024 * GRAIN
    text = descriptor("monolithicSparse", [f'RW {size // 512} SPARSE "disk.vmdk"'])
    kept = rng.randbytes(GRAIN)
    content = bytes(size - GRAIN) + kept
    raw = alone(content, text) if copies == 1 else bytearray(hosted(content, text=text))
    directory = struct.unpack_from("<Q", raw, which)[0] * 512
    struct.pack_into("<I", raw, directory + 4, len(raw) // 512 + 3 * 128 + 5)
    image.write_bytes(raw)
    words = struct.pack("<I", 256) * (GRAIN // 4)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, words * 3)
        with pytest.raises(tapcore.TapError, match="check --repair all"):
            disk.pwrite(3 * GRAIN, words)
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        if copies == 1:
            with pytest.raises(tapcore.TapError, match="damaged entry 1"):
                disk.pread(size - GRAIN, length=GRAIN)
        else:
            assert disk.pread(size - GRAIN, length=GRAIN) == kept
    check_image(f"vmdk:{image}", repair="all")
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, words * 8)
        assert disk.pread(size - GRAIN, length=GRAIN) == (kept if copies == 2 else bytes(GRAIN))


def tables_of(
    raw: bytes | bytearray, which: int, tables: int, size: int = 2048
) -> list[tuple[int, bytes]]:
    """Where a directory says that the tables are (bytes), and what is there."""
    directory = struct.unpack_from("<Q", raw, which)[0] * 512
    places = [place * 512 for place in struct.unpack_from(f"<{tables}I", raw, directory)]
    return [(place, bytes(raw[place : place + size])) for place in places]


@pytest.mark.parametrize(
    ("copies", "wrong"),
    [(1, [DIRECTORY]), (2, [DIRECTORY]), (2, [REDUNDANT]), (2, [DIRECTORY, REDUNDANT])],
    ids=["the only one", "the first", "the redundant one", "both"],
)
def test_what_is_no_table_for_sure_is_not_changed_in_its_place(
    image: Path, rng: random.Random, copies: int, wrong: list[int]
) -> None:
    """A directory names other content, which begins with zeroes as a table of holes does."""
    size = 300 * GRAIN
    text = descriptor("monolithicSparse", [f'RW {size // 512} SPARSE "disk.vmdk"'])
    others = [bytes(2048) + rng.randbytes(GRAIN - 2048) for _ in range(2)]
    content = bytes(size - GRAIN) + rng.randbytes(GRAIN)
    raw = alone(content, text) if copies == 1 else bytearray(hosted(content, text=text))
    places = [len(raw), len(raw) + GRAIN]
    raw += b"".join(others)
    for which, place in zip(wrong, places, strict=False):
        directory = struct.unpack_from("<Q", raw, which)[0] * 512
        struct.pack_into("<I", raw, directory, place // 512)
    image.write_bytes(raw)
    new = rng.randbytes(GRAIN)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(7 * GRAIN, new)
    written = image.read_bytes()
    assert written[places[0] : places[0] + 2 * GRAIN] == b"".join(others)
    assert reads(image)[7 * GRAIN : 8 * GRAIN] == new
    (first,) = tables_of(written, DIRECTORY, 1)
    if copies == 2:
        (second,) = tables_of(written, REDUNDANT, 1)
        assert first[1] == second[1]
        assert abs(first[0] - second[0]) >= 2048


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(
    "twice", [[DIRECTORY], [REDUNDANT], [DIRECTORY, REDUNDANT]], ids=["first", "other", "both"]
)
def test_a_table_that_two_entries_name_is_not_changed_in_its_place(
    image: Path, rng: random.Random, twice: list[int], empty: bool
) -> None:
    """What is written by way of one must not show by way of the other."""
    size = 1024 * GRAIN
    text = descriptor("monolithicSparse", [f'RW {size // 512} SPARSE "disk.vmdk"'])
    content = bytes(GRAIN) + (bytes(GRAIN) if empty else rng.randbytes(GRAIN))
    raw = bytearray(hosted(content.ljust(size, b"\0"), text=text))
    for which in twice:
        directory = struct.unpack_from("<Q", raw, which)[0] * 512
        struct.pack_into("<I", raw, directory + 4, *struct.unpack_from("<I", raw, directory))
    image.write_bytes(raw)
    before = [tables_of(raw, each, 2)[0] for each in (DIRECTORY, REDUNDANT)]
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite((512 + 7) * GRAIN, b"new")
    written = image.read_bytes()
    for place, table in before:
        assert written[place : place + 2048] == table
    got = reads(image)
    assert got[: 8 * GRAIN] == content.ljust(8 * GRAIN, b"\0")
    assert got[(512 + 7) * GRAIN :][:3] == b"new"


def test_both_directories_and_their_tables_stay_equal(image: Path, rng: random.Random) -> None:
    """Also where a table was dropped from memory, and is read again before it is changed anew."""
    tapcore.create_image(f"vmdk:{image}", 5 * 512 * GRAIN)
    for _ in range(2):
        with tapcore.open(f"vmdk:{image}", readonly=False, metadata_cache=0) as disk:
            for grain in (140, 0, 7, 300):
                for table in range(5):
                    disk.pwrite((table * 512 + grain) * GRAIN, b"x")
                    disk.sync()
    raw = image.read_bytes()
    first, second = tables_of(raw, DIRECTORY, 5), tables_of(raw, REDUNDANT, 5)
    assert [table for _, table in first] == [table for _, table in second]
    assert all(
        sum(1 for entry in struct.unpack("<512I", table) if entry) == 4 for _, table in first
    )
    places = sorted(place for place, _ in first + second)
    assert all(other - place >= 2048 for place, other in pairwise(places))


@pytest.mark.parametrize("at", [-127, 0, 3], ids=["its last sector", "all", "its first sector"])
def test_nothing_is_written_over_a_table_that_an_entry_points_at(
    image: Path, rng: random.Random, at: int
) -> None:
    """The table lies behind the grains, as one that was made later does."""
    size = 1024 * GRAIN
    text = descriptor("monolithicSparse", [f'RW {size // 512} SPARSE "disk.vmdk"'])
    kept = rng.randbytes(GRAIN)
    raw = alone(bytes(size - GRAIN) + kept, text)
    directory = struct.unpack_from("<Q", raw, DIRECTORY)[0] * 512
    (first, _), (_, second) = tables_of(raw, DIRECTORY, 2)
    place = len(raw) + GRAIN
    raw += bytes(GRAIN) + second + bytes(2 * GRAIN - len(second))
    struct.pack_into("<I", raw, directory + 4, place // 512)
    struct.pack_into("<I", raw, first + 12, place // 512 + at)
    image.write_bytes(raw)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for start, length in ((3 * GRAIN, GRAIN), (3 * GRAIN + max(-at, 0) * 512, 512)):
            with pytest.raises(tapcore.TapError, match="check --repair all"):
                disk.pwrite(start, b"n" * length)
            with pytest.raises(tapcore.TapError, match="check --repair all"):
                disk.zero(start, length=length)
        disk.pwrite((512 + 9) * GRAIN, b"new")
    got = reads(image)
    assert got[-GRAIN:] == kept
    assert got[(512 + 9) * GRAIN :][:3] == b"new"


def test_new_grains_lie_behind_all_that_is_kept_for_metadata(image: Path, content: bytes) -> None:
    raw = hosted(bytes(len(content)), text=TEXT, overHead=1024)
    image.write_bytes(raw)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, content)
    (_, table), *_ = tables_of(image.read_bytes(), DIRECTORY, 1)
    assert min(filter(None, struct.unpack("<512I", table))) == 1024
    assert reads(image) == content


def test_new_grains_lie_behind_a_table_with_which_the_file_ends(
    image: Path, rng: random.Random
) -> None:
    """In the middle of what would be a grain."""
    size = 1024 * GRAIN
    text = descriptor("monolithicSparse", [f'RW {size // 512} SPARSE "disk.vmdk"'])
    kept = rng.randbytes(GRAIN)
    raw = alone(bytes(size - GRAIN) + kept, text)
    directory = struct.unpack_from("<Q", raw, DIRECTORY)[0] * 512
    _, (_, second) = tables_of(raw, DIRECTORY, 2)
    struct.pack_into("<I", raw, directory + 4, len(raw) // 512)
    image.write_bytes(raw + second)
    new = rng.randbytes(3 * GRAIN)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, new)
    assert image.read_bytes()[len(raw) : len(raw) + len(second)] == second
    got = reads(image)
    assert (got[: 3 * GRAIN], got[-GRAIN:]) == (new, kept)


def test_a_new_table_and_its_copy_have_room_where_grains_are_small(
    image: Path, rng: random.Random
) -> None:
    """Either is as long as a grain."""
    size = 3 << 22
    raw = bytearray(empty(size, name="disk.vmdk", grain=8, entries=1024))
    for which in (DIRECTORY, REDUNDANT):
        struct.pack_into("<3I", raw, struct.unpack_from("<Q", raw, which)[0] * 512, 0, 0, 0)
    image.write_bytes(raw)
    want = bytearray(size)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for start in (0, 1 << 22, 2 << 22):
            want[start : start + 20000] = new = rng.randbytes(20000)
            disk.pwrite(start, new)
    assert reads(image) == want
    written = image.read_bytes()
    first, second = (tables_of(written, each, 3, 4096) for each in (DIRECTORY, REDUNDANT))
    assert [table for _, table in first] == [table for _, table in second]


@pytest.mark.parametrize("shared", [False, True])
def test_grains_in_pages_of_tables_go_through_the_page_cache(
    image: Path, rng: random.Random, caplog: pytest.LogCaptureFixture, shared: bool
) -> None:
    """With O_DIRECT what is written beside a table could be lost, or a flush fail."""
    content = rng.randbytes(3 * GRAIN)
    text = descriptor("monolithicSparse", [f'RW {3 * GRAIN // 512} SPARSE "disk.vmdk"'])
    raw = bytearray(hosted(content, text=text))
    if shared:
        struct.pack_into("<Q", raw, 64, 125)  # overHead
    image.write_bytes(raw)
    with tapcore.open(f"vmdk:{image}", readonly=False, cache="none") as disk:
        assert disk.state.disks.options.cache == ("writeback" if shared else "none")
        disk.pwrite(GRAIN, b"x" * 512)
        assert disk.pread(GRAIN, length=512) == b"x" * 512
    assert [each.getMessage() for each in caplog.records] == [
        f"{image}: has grains in pages that tables lie in; using the page cache"
    ] * shared
