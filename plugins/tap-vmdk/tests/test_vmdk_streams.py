"""Streams as we write them: read from front to back as ESXi does, and by qemu-img."""

import random
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tapcore
from peers import peer
from tapcore.interface.registry import default_registry
from vmdkwriters import descriptor, stream

GRAIN = 128 * 512
UNKNOWN = "generated-stream.vmdk"
"""What a stream calls itself that cannot know its name."""


def content_of(rng: random.Random, size: int) -> bytes:
    content = bytearray(size)
    for _ in range(60):
        at = rng.randrange(size)
        count = min(rng.randint(1, 150_000), size - at)
        content[at : at + count] = (
            rng.randbytes(count) if rng.random() < 0.5 else rng.randbytes(16) * (count // 16 + 1)
        )[:count]
    return bytes(content)


def in_order(raw: bytes) -> tuple[bytes, bytes]:
    """The disk's content and the descriptor, from one pass over a stream.

    Also compares every table and the directory with what was seen on the way.
    """
    magic, version, flags, capacity, grain, at, size, entries, rgd, gd, overhead = (
        struct.unpack_from("<4sIIQQQQIQQQ", raw)
    )
    assert (magic, version, flags, grain, entries) == (b"KDMV", 3, 0x30001, 128, 512)
    assert (rgd, gd, raw[72:79]) == (0, (1 << 64) - 1, b"\0\n \r\n\x01\0")
    disk = bytearray(capacity * 512)
    grains: dict[int, int] = {}
    tables: dict[int, int] = {}
    place = overhead * 512
    last = -1
    kinds = []
    while True:
        value, length, kind = struct.unpack_from("<QII", raw, place)
        if length:
            assert value > last  # ascending
            last = value
            grains[value // 128] = place // 512
            piece = zlib.decompress(raw[place + 12 : place + 12 + length])
            assert len(piece) == GRAIN
            end = min((value + 128) * 512, len(disk))
            disk[value * 512 : end] = piece[: end - value * 512]
            place += -(-(12 + length) // 512) * 512
            continue
        kinds.append(kind)
        if kind == 0:
            assert raw[place:] == bytes(512)
            break
        body = raw[place + 512 : place + 512 + value * 512]
        if kind == 1:
            table = struct.unpack(f"<{len(body) // 4}I", body)
            index = next(grains_in(table, grains))
            tables[index] = place // 512 + 1
        elif kind == 2:
            directory = struct.unpack(f"<{len(body) // 4}I", body)
            found = {n: entry for n, entry in enumerate(directory) if entry}
            assert found == tables
            where = place // 512 + 1
        else:
            assert kind == 3
            footer = bytearray(raw[:512])
            footer[56:64] = struct.pack("<Q", where)
            assert body == footer
        place += 512 + value * 512
    assert kinds[-3:] == [2, 3, 0]
    return bytes(disk), raw[at * 512 : (at + size) * 512].rstrip(b"\0")


def grains_in(table: tuple[int, ...], grains: dict[int, int]) -> Iterator[int]:
    """The number of a table whose entries are the grains seen."""
    by_place = {place: number for number, place in grains.items()}
    numbers = {by_place[entry] - n for n, entry in enumerate(table) if entry}
    assert len(numbers) == 1
    yield numbers.pop() // 512


def as_qemu(image: Path) -> bytes:
    raw = image.with_suffix(".raw")
    subprocess.run(
        [peer("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", str(image), str(raw)], check=True
    )
    return raw.read_bytes()


def streamed(content: bytes, **options: str) -> bytes:
    """By td_stream, in pieces of up to 1 MiB, zeroes left out."""
    out: list[bytes] = []

    def pieces() -> Iterator[tuple[int, memoryview]]:
        buffer = bytearray(1 << 20)
        for at in range(0, len(content), len(buffer)):
            count = min(len(buffer), len(content) - at)
            if any(content[at : at + count]):
                buffer[:count] = content[at : at + count]
                yield at, memoryview(buffer)[:count]

    drv = default_registry().get("vmdk").drv
    assert drv is not None
    drv.td_stream(lambda piece: out.append(bytes(piece)), len(content), options, pieces())
    return b"".join(out)


def check_descriptor(text: bytes, sectors: int, name: str, **entries: str) -> None:
    found = dict(re.findall(rb'^([\w.]+) ?= ?"?([^"\n]*)"?$', text, re.M))
    assert found[b"createType"] == b"streamOptimized"
    assert found[b"parentCID"] == b"ffffffff"
    assert found[b"ddb.toolsVersion"] == b"2147483647"
    wanted = {"ddb.adapterType": "lsilogic", "ddb.virtualHWVersion": "4"} | entries
    for key, value in wanted.items():
        assert found[key.encode()] == value.encode()
    assert f'RDONLY {sectors} SPARSE "{name}"'.encode() in text


def test_written_front_to_back(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng, (70 << 20) + 512)
    raw = streamed(content, adapter_type="buslogic", hwversion="11")
    disk, text = in_order(raw)
    assert disk == content
    sectors = len(content) // 512
    adapter = {"ddb.adapterType": "buslogic", "ddb.virtualHWVersion": "11"}
    check_descriptor(text, sectors, UNKNOWN, **adapter)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    assert as_qemu(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=True) as ours:
        assert ours.pread(0, length=len(content)) == content


def test_an_empty_disk(tmp_path: Path) -> None:
    raw = streamed(bytes(1 << 20))
    disk, text = in_order(raw)
    assert disk == bytes(1 << 20)
    check_descriptor(text, 2048, UNKNOWN)
    image = tmp_path / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", 1 << 20, options={"subformat": "streamOptimized"})
    disk, text = in_order(image.read_bytes())
    assert disk == bytes(1 << 20)
    check_descriptor(text, 2048, image.name)


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(tapcore.NotSupportedError, match="only a streamOptimized"):
        streamed(bytes(1 << 20), subformat="monolithicFlat")


def test_an_error_of_the_reader_ends_it(rng: random.Random) -> None:
    drv = default_registry().get("vmdk").drv
    assert drv is not None

    def out(piece: object) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        drv.td_stream(out, 1 << 20, {}, iter([(0, memoryview(rng.randbytes(1 << 20)))]))


def test_convert_writes_the_same_layout(tmp_path: Path, rng: random.Random) -> None:
    """Through an image that can be written anywhere: it was written in order, once."""
    content = content_of(rng, (40 << 20) + 512)
    source, image = tmp_path / "raw", tmp_path / "disk.vmdk"
    source.write_bytes(content)
    tapcore.convert_image(
        f"aio:{source}", f"vmdk:{image}", options={"subformat": "streamOptimized"}, compressed=True
    )
    disk, text = in_order(image.read_bytes())
    assert disk == content
    check_descriptor(text, len(content) // 512, image.name)
    assert as_qemu(image) == content


@pytest.mark.parametrize("maker", ["qemu", "tapcore"])
def test_a_finished_stream_can_be_written_again(
    tmp_path: Path, rng: random.Random, maker: str
) -> None:
    content = bytearray(content_of(rng, 3 << 20))
    source, image = tmp_path / "raw", tmp_path / "disk.vmdk"
    source.write_bytes(content)
    if maker == "qemu":
        command = [peer("qemu-img"), "convert", "-O", "vmdk", "-o", "subformat=streamOptimized"]
        subprocess.run([*command, str(source), str(image)], check=True)
    else:
        image.write_bytes(streamed(bytes(content)))
    for _ in range(3):
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            for _ in range(4):
                at, piece = rng.randrange(len(content) - 5000), rng.randbytes(5000)
                disk.pwrite(at, piece)
                content[at : at + 5000] = piece
            disk.sync()
            disk.zero(GRAIN, length=2 * GRAIN)
            content[GRAIN : 3 * GRAIN] = bytes(2 * GRAIN)
        with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
            assert disk.pread(0, length=len(content)) == content
        assert as_qemu(image) == content


LINE = 'RDONLY 1536 SPARSE "disk.vmdk"'


def small(rng: random.Random, **how: Any) -> tuple[bytes, bytes]:
    """A disk's content, and a stream of it."""
    content = rng.randbytes(3 * GRAIN) + bytes(6 * GRAIN) + rng.randbytes(3 * GRAIN)
    return content, stream(content, text=descriptor("streamOptimized", [LINE]), **how)


@pytest.mark.parametrize("marked", [True, False])
def test_writing_takes_nothing_away_but_the_footer(
    tmp_path: Path, rng: random.Random, marked: bool
) -> None:
    """What was flushed before is there while the first flush has not come yet."""
    content, raw = small(rng, footer_marker=marked)
    image, copy = tmp_path / "disk.vmdk", tmp_path / "copy.vmdk"
    image.write_bytes(raw)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(5 * GRAIN, b"x" * 512)
        copy.write_bytes(image.read_bytes())
        with tapcore.open(f"vmdk:{copy}", readonly=True) as crashed:
            assert crashed.pread(0, length=len(content)) == content
    assert as_qemu(image)[: 5 * GRAIN] == content[: 5 * GRAIN]


@pytest.mark.parametrize("what", ["a table", "the directory", "something"])
def test_a_stream_with_something_behind_its_footer_is_not_written(
    tmp_path: Path, rng: random.Random, what: str
) -> None:
    content, raw = small(rng)
    moved = bytearray(raw)
    behind = len(raw) // 512 + 1
    (gd,) = struct.unpack_from("<Q", raw, len(raw) - 1024 + 56)
    (table,) = struct.unpack_from("<I", raw, gd * 512)
    moved += bytes(512)
    if what == "a table":
        moved += raw[table * 512 : (table + 4) * 512]
        struct.pack_into("<I", moved, gd * 512, behind)
    elif what == "the directory":
        moved += raw[gd * 512 : (gd + 1) * 512]
        struct.pack_into("<Q", moved, len(raw) - 1024 + 56, behind)
    else:
        moved += rng.randbytes(512)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(moved)
    with pytest.raises(tapcore.NotSupportedError, match="behind its footer"):
        tapcore.open(f"vmdk:{image}", readonly=False)
    assert image.read_bytes() == moved
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=len(content)) == content


def test_padding_behind_a_footer_may_go(tmp_path: Path, rng: random.Random) -> None:
    content, raw = small(rng)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw + bytes(9000))
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, content[:512])
    assert as_qemu(image) == content


@pytest.mark.parametrize("overhead", [1, 1 << 20, 1 << 50, (1 << 64) - 1])
@pytest.mark.parametrize("empty", [True, False])
def test_a_wrong_overhead_does_no_harm(
    tmp_path: Path, rng: random.Random, overhead: int, empty: bool
) -> None:
    """Nor does a directory that has lost its tables: what lies there is kept."""
    content, stored = small(rng)
    raw = bytearray(stored)
    struct.pack_into("<Q", raw, 64, overhead)
    if empty:
        (gd,) = struct.unpack_from("<Q", raw, len(raw) - 1024 + 56)
        raw[gd * 512 : (gd + 1) * 512] = bytes(512)
        content = bytes(len(content))
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(5 * GRAIN, b"x" * GRAIN)
    wanted = content[: 5 * GRAIN] + b"x" * GRAIN + content[6 * GRAIN :]
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=len(content)) == wanted
    written = image.read_bytes()
    assert len(written) < 2 * len(raw)
    assert written[128 * 512 : 129 * 512] == raw[128 * 512 : 129 * 512]


def test_a_new_stream_that_only_zeroes_were_written_to(tmp_path: Path) -> None:
    image, size = tmp_path / "disk.vmdk", 1 << 20
    tapcore.create_image(f"vmdk:{image}", size, options={"subformat": "streamOptimized"})
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, bytes(GRAIN))
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=size) == bytes(size)
    assert as_qemu(image) == bytes(size)
