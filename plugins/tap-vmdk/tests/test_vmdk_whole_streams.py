"""Streams that are whole: check finds nothing in them, whoever wrote them."""

import os
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tapcore
from peers import peer
from tapcore.tools.check import check_image
from tapcore.tools.convert import convert_image
from vmdkwriters import descriptor, front_stream, stream

SIZE = 33 << 20


def content_of(rng: random.Random) -> bytes:
    """Some grains of each of two tables."""
    content = bytearray(SIZE)
    for at in (0, 65536 * 3, 65536 * 511, 65536 * 512, SIZE - 65536):
        content[at : at + 40000] = rng.randbytes(30000) + bytes(10000)
    return bytes(content)


def text() -> bytes:
    return descriptor("streamOptimized", [f'RDONLY {SIZE // 512} SPARSE "s.vmdk"'])


def leaks(image: Path) -> int:
    found = check_image(f"vmdk:{image}")
    assert not found.corruptions + found.check_errors, found.messages
    return found.leaks


FRONT: dict[str, dict[str, Any]] = {
    "an end mark": {},
    "a footer": {"footer": True},
    "a footer and tables of its own": {"footer": True, "again": True},
    "marks of progress": {"progress": 4},
    "all of it": {"footer": True, "again": True, "progress": 1},
}


@pytest.mark.parametrize("what", FRONT)
def test_a_whole_stream_with_its_directory_in_front(
    tmp_path: Path, rng: random.Random, what: str
) -> None:
    content, image = content_of(rng), tmp_path / "s.vmdk"
    image.write_bytes(front_stream(content, text=text(), **FRONT[what]))
    assert leaks(image) == 0
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == content


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(60 << 10)], ids=["no", "one", "many"])
@pytest.mark.parametrize("how", ["footer", "no footer marker", "directory named by the header"])
def test_a_whole_stream_with_its_directory_behind(
    tmp_path: Path, rng: random.Random, how: str, end: bytes
) -> None:
    content, image = content_of(rng), tmp_path / "s.vmdk"
    in_header = how.startswith("directory")
    raw = stream(
        content, text=text(), end=end, footer_marker=how == "footer", gd_in_header=in_header
    )
    image.write_bytes(raw + end if in_header else raw)
    assert leaks(image) == 0


def test_grains_without_markers_are_not_called_leaks(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "s.vmdk"
    image.write_bytes(stream(content_of(rng), text=text(), markers=False))
    assert leaks(image) == 0


@pytest.mark.parametrize("front", [False, True])
def test_what_nothing_refers_to_is_dead_space_still(
    tmp_path: Path, rng: random.Random, front: bool
) -> None:
    """One grain less in the tables: its space is found, and nothing else."""
    content, image = content_of(rng), tmp_path / "s.vmdk"
    raw = bytearray((front_stream if front else stream)(content, text=text()))
    entry = struct.pack("<I", 128)
    at = raw.index(entry, 22 * 512)
    while raw[at + 12 : at + 16] == bytes(4):  # the table's first entry; the fourth is not empty
        at = raw.index(entry, at + 1)
    raw[at : at + 4] = bytes(4)
    image.write_bytes(raw)
    assert leaks(image) == 1
    raw[128 * 512 + 8 : 128 * 512 + 12] = b"\xff" * 4  # not even its length can be told
    image.write_bytes(raw)
    assert leaks(image) == 1


def test_our_own_streams_are_whole_until_they_are_written_again(
    tmp_path: Path, rng: random.Random
) -> None:
    content, image, source = content_of(rng), tmp_path / "s.vmdk", tmp_path / "raw"
    source.write_bytes(content)
    convert_image(f"aio:{source}", f"vmdk:{image}", options={"subformat": "streamOptimized"})
    assert leaks(image) == 0
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(65536))
    assert leaks(image) == 1


# ---- a stream names its own file ---------------------------------------------------------------


def named_by(image: Path) -> str:
    (line,) = [
        each for each in image.read_bytes()[512 : 21 * 512].split(b"\n") if b"SPARSE" in each
    ]
    return os.fsdecode(line.split(b'"')[1])


@pytest.mark.parametrize("name", ["s.vmdk", "zażółć.vmdk", "no suffix"])
def test_a_stream_names_its_own_file(tmp_path: Path, name: str) -> None:
    image, source = tmp_path / name, tmp_path / "raw"
    source.write_bytes(os.urandom(1 << 20))
    options = {"subformat": "streamOptimized"}
    tapcore.create_image(f"vmdk:{image}", 1 << 20, options=options)
    assert named_by(image) == name
    convert_image(f"aio:{source}", f"vmdk:{image}", options=options, force=True)
    assert named_by(image) == name
    assert [path.name for path in tmp_path.iterdir() if path != source] == [name]


def test_a_stream_whose_name_cannot_be_written_has_vmwares(tmp_path: Path) -> None:
    image = tmp_path / 'a"b.vmdk'
    tapcore.create_image(f"vmdk:{image}", 1 << 20, options={"subformat": "streamOptimized"})
    assert named_by(image) == "generated-stream.vmdk"


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_sleuth_kit_opens_what_we_write(tmp_path: Path, rng: random.Random, subformat: str) -> None:
    content, image, source = content_of(rng), tmp_path / "s.vmdk", tmp_path / "raw"
    source.write_bytes(content)
    convert_image(f"aio:{source}", f"vmdk:{image}", options={"subformat": subformat})
    done = subprocess.run(
        [peer("img_stat"), "-i", "vmdk", str(image)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"Size of data in bytes:\t{SIZE}" in done.stdout
    got = subprocess.run(
        [peer("img_cat"), "-i", "vmdk", str(image)], capture_output=True, check=True
    ).stdout
    assert got == content
