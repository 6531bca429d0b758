"""Grain directories and tables where none can be: nothing reads as holes without a word by that."""

import logging
import random
import struct
from pathlib import Path

import pytest

import tapcore
from tapcore.tools.check import check_image
from vmdkwriters import GRAIN, descriptor, hosted, stream

SECTORS = 6 * GRAIN // 512
TEXT = descriptor("monolithicSparse", [f'RW {SECTORS} SPARSE "disk.vmdk"'])
STREAM_TEXT = descriptor("streamOptimized", [f'RDONLY {SECTORS} SPARSE "disk.vmdk"'])
DIRECTORY = 56
"""Of `gdOffset` in the header."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.vmdk"


@pytest.fixture
def content(rng: random.Random) -> bytes:
    return rng.randbytes(SECTORS * 512)


def reads(image: Path, *, salvage: bool = False) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True, salvage=salvage) as disk:
        return disk.pread(0, length=disk.size)


def alone(content: bytes) -> bytearray:
    """A sparse file without a redundant directory."""
    return bytearray(hosted(content, text=TEXT, flags=1, rgdOffset=0))


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
