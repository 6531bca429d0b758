"""Files from strangers cost little, and are never a traceback; what is wrong is said in words."""

import contextlib
import gzip
import lzma
import os
import random
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from cputime import LENIENT

import tapcore
from tap_zraw import forward
from tap_zraw.zstd import frames as frames_module
from tapcore import ImageFormatError, LostContentError, NotSupportedError, Salvage, TapError
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image
from zrawtools import KIB, KINDS, MIB, content_of, frames, seekable, some_content

CONTENT = some_content(random.Random(5), 300 * KIB)


def cpu_and_memory(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds of CPU that a call takes, and by how many MiB the process swells."""
    before, start = peak(), time.process_time()
    call()
    return time.process_time() - start, peak() - before


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return f"zraw:{path}"


def opened(image: str) -> None:
    with tapcore.open(image, readonly=True) as disk:
        disk.pread(0, length=min(disk.size, 4096))
        disk.pread(max(disk.size - 512, 0), length=min(disk.size, 512))


def table_of(*entries: tuple[int, int], count: int | None = None, has: int = 0) -> bytes:
    body = b"".join(struct.pack("<II", *entry) for entry in entries)
    body += struct.pack("<IBI", len(entries) if count is None else count, has, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(body)) + body


FRAME = zstd.compress(bytes(4096))


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b"", ImageFormatError, "is not compressed with zstd, xz or gzip"),
        (bytes(4096), ImageFormatError, "is not compressed with zstd, xz or gzip"),
        (FRAME[:-3], ImageFormatError, "is cut short: the frame at offset 0x0"),
        (FRAME + b"junk of another kind", ImageFormatError, "holds something else than zstd's"),
        (FRAME + FRAME[:4], ImageFormatError, "is cut short: the frame at offset 0x"),
        (FRAME + table_of((7, 4096)), ImageFormatError, "has a false seek table: its frames end"),
        (FRAME + table_of((len(FRAME), 4096), count=9), ImageFormatError, "has a false seek table"),
        (FRAME + table_of(count=1 << 31), NotSupportedError, "consists of more than 4194304"),
        (
            FRAME + table_of((len(FRAME), 4096), has=4),
            NotSupportedError,
            "has a seek table of a newer kind",
        ),
        (FRAME + table_of((len(FRAME), 512)), ImageFormatError, "has a false index"),
        (FRAME + table_of((len(FRAME), (1 << 25) - 1)), ImageFormatError, "has a false index"),
        (
            lzma.compress(CONTENT)[:-1],
            ImageFormatError,
            "is cut short, or damaged: it has no index",
        ),
        (lzma.compress(CONTENT)[12:], ImageFormatError, "is not compressed"),
        (gzip.compress(CONTENT)[:-9], ImageFormatError, "is cut short: its last member"),
        (gzip.compress(CONTENT) + b"\0junk", ImageFormatError, "holds something else behind gzip"),
        (KINDS["bgzip.img.gz"](CONTENT)[:-1], ImageFormatError, "is cut short"),
    ],
)
def test_what_cannot_be_is_said(
    content: bytes, error: type[TapError], text: str, tmp_path: Path
) -> None:
    with pytest.raises((error, LostContentError), match=text):
        opened(written(tmp_path / "disk.img.zst", content))


def frame_head(content: int, window_log: int = 10) -> bytes:
    """Magic, a size of eight bytes, and a window."""
    return frames_module.MAGIC + bytes((0xC0, window_log - 10 << 3)) + struct.pack("<Q", content)


def rle_blocks(count: int, *, last: bool) -> bytes:
    """So many blocks of 128 KiB of one byte each."""
    word = (128 * KIB) << 3 | 1 << 1
    blocks = (word.to_bytes(3, "little") + b"A") * (count - last)
    return blocks + ((word | 1).to_bytes(3, "little") + b"A" if last else b"")


def xz_bomb(size: int) -> bytes:
    """An index that says that a block of a few bytes holds much."""
    flags = b"\0\1"
    header = b"\xfd7zXZ\0" + flags + struct.pack("<I", zlib.crc32(flags))

    def number(value: int) -> bytes:
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes((*out, value))

    index = b"\0" + number(1) + number(24) + number(size)
    index += bytes(-len(index) % 4)
    index += struct.pack("<I", zlib.crc32(index))
    footer = struct.pack("<I", len(index) // 4 - 1) + flags
    footer = struct.pack("<I", zlib.crc32(footer)) + footer + b"YZ"
    return header + bytes(24) + index + footer


BOMBS: dict[str, Callable[[], bytes]] = {
    "a frame of 2^60 bytes": lambda: frame_head(1 << 60) + rle_blocks(1, last=True),
    "a frame of 2^63 bytes": lambda: frame_head(1 << 63) + rle_blocks(1, last=True),
    "a window of 2 GiB": lambda: frame_head(4096, 31) + rle_blocks(1, last=True),
    "a table of 4 GiB frames": lambda: FRAME + table_of((len(FRAME), (1 << 32) - 1)),
    "many such": lambda: FRAME * 1000 + table_of(*[(len(FRAME), (1 << 32) - 1)] * 1000),
    "frames of 32 MiB that are none": lambda: FRAME * 64 + table_of(*[(len(FRAME), 32 * MIB)] * 64),
    "frames within frames": lambda: table_of((1 << 31, 1)) + FRAME,
    "a block of 2^61 bytes": lambda: xz_bomb(1 << 61),
    "a block of 1 TiB": lambda: xz_bomb(1 << 40),
    "many empty frames": lambda: zstd.compress(b"") * 20_000 + FRAME,
    "many skippable ones": lambda: struct.pack("<II", 0x184D2A50, 0) * 20_000 + FRAME,
    "gzip of zeroes": lambda: gzip.compress(bytes(64 * MIB), 9),
    "xz of zeroes": lambda: lzma.compress(bytes(64 * MIB), preset=0),
    "ten thousand members": lambda: gzip.compress(b"") * 10_000,
    "padding": lambda: lzma.compress(CONTENT) + bytes(8 * MIB),
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs_take_little(what: str, tmp_path: Path) -> None:
    image = written(tmp_path / "disk.img.zst", BOMBS[what]())

    said = []

    def look() -> None:
        for call in (opened, inspect_image):
            try:
                call(image)
            except TapError as exc:
                said.append(str(exc))

    seconds, mib = cpu_and_memory(look)
    assert not any("\n" in text for text in said)
    assert seconds < LENIENT * 2, seconds
    assert mib < 200, mib


def test_a_frame_that_does_not_tell_its_size_is_unpacked_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "MOST_UNTOLD", 16 * MIB)
    monkeypatch.setattr("tap_zraw.zstd.opening.MOST_UNTOLD", 16 * MIB)
    head = frames_module.MAGIC + bytes((0, 7 << 3))  # no size, a window of 128 KiB
    good = head + rle_blocks(8, last=True)
    bomb = head + rle_blocks(1000, last=True)
    assert content_of(written(tmp_path / "a", good).removeprefix("zraw:")) == b"A" * MIB
    for content in (bomb, FRAME + bomb, gzip.compress(bytes(20 * MIB))):
        image = written(tmp_path / "disk.img.zst", content)
        with pytest.raises(NotSupportedError, match="does not say how large its disk is, and that"):
            opened(image)


def test_blocks_are_counted_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "MOST_BLOCKS", 100)
    image = written(tmp_path / "disk.img.zst", frame_head(1000) + bytes(3) * 101)
    with pytest.raises(NotSupportedError, match="and consists of more than 100 blocks"):
        opened(image)


def test_inspect_says_what_it_cannot_know(tmp_path: Path) -> None:
    for content in (
        gzip.compress(CONTENT),
        frames_module.MAGIC + b"\0\x38" + rle_blocks(8, last=True),
    ):
        found = inspect_image(written(tmp_path / "disk.img.zst", content))
        assert "size-untold" in [finding.code for finding in found.findings]


def test_damage_costs_its_own_frame_alone(tmp_path: Path) -> None:
    sizes = [100_001, 50_000, len(CONTENT) - 150_001]
    parts = frames(CONTENT, *sizes[:2], checksum_flag=1)
    bad = bytearray(parts[1])
    bad[-1] ^= 1
    image = written(tmp_path / "disk.raw.zst", seekable([parts[0], bytes(bad), parts[2]], sizes))
    with tapcore.open(image, readonly=True) as disk:
        assert disk.pread(0, length=99_840) == CONTENT[:99_840]
        with pytest.raises(LostContentError, match=r"damaged frame .* in the piece at offset 0x"):
            disk.pread(0, length=MIB // 8)
        assert disk.pread(150_016, length=1000) == CONTENT[150_016:151_016]
    result = check_image(image)
    assert (result.corruptions, result.total_clusters) == (1, 3)
    lost = Salvage()
    tapcore.convert_image(image, tmp_path / "copy.img", salvage=lost)
    copy = (tmp_path / "copy.img").read_bytes()
    assert copy[:99_840] == CONTENT[:99_840]
    assert copy[150_016:] == CONTENT[150_016:]
    assert lost.lost == 150_016 - 99_840


def test_what_was_cut_short_can_be_salvaged(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw.zst"
    image.write_bytes(KINDS["seekable.img.zst"](CONTENT)[:-200])
    with pytest.raises(ImageFormatError, match="is cut short"):
        tapcore.convert_image(image, tmp_path / "copy.img")
    lost = Salvage()
    tapcore.convert_image(image, tmp_path / "copy.img", salvage=lost)
    copy = (tmp_path / "copy.img").read_bytes()
    assert len(copy) >= 105_701
    assert CONTENT.startswith(copy.rstrip(b"\0"))


def test_a_temporary_file_that_is_full_makes_reads_slow_and_no_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tap_zraw.zstd.opening.LARGEST_PART", 1000)
    monkeypatch.setattr(forward, "PART", 50_000)
    monkeypatch.setattr("tap_zraw.zstd.opening.PART", 50_000)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tap_zraw.kept.os.pwrite", full)
    image = written(tmp_path / "disk.raw.zst", zstd.compress(CONTENT))
    with tapcore.open(image, readonly=True) as disk:
        for at in (200_000, 0, 250_000, 100_000):
            assert disk.pread(at, length=4096) == CONTENT[at : at + 4096]
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "no longer kept" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_never_a_traceback(kind: str, tmp_path: Path) -> None:
    rng = random.Random(f"11 {kind}")
    good = KINDS[kind](CONTENT[:120_000])
    for _ in range(12 * int(os.environ.get("TAPCORE_THOROUGH") or 1)):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            where = rng.choice((rng.randrange(64), -rng.randint(1, 64), rng.randrange(len(bad))))
            bad[where] = rng.randrange(256)
        image = written(tmp_path / kind, bytes(bad))
        with contextlib.suppress(TapError), tapcore.open(image, readonly=True) as disk:
            assert disk.size % 512 == 0  # what no checksum covers is read; nothing else happens
            disk.pread(0, length=min(disk.size, MIB))
            disk.pread(max(disk.size - MIB, 0), length=min(disk.size, MIB))
