"""Compressed disks made by other programs, and what they hold."""

import gzip
import lzma
import random
import shlex
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backports import zstd

import tapcore
from peers import peer
from tap_zraw.zstd.seektable import seek_table

KIB: Final = 1 << 10
MIB: Final = 1 << 20


def some_content(rng: random.Random, size: int) -> bytes:
    """Random bytes, text and zeroes."""
    pieces = bytearray()
    while len(pieces) < size:
        length = rng.randint(1, 100_000)
        text = (b"line %d\n" % rng.randint(0, 9)) * (length // 7 + 1)
        pieces += rng.choice((rng.randbytes(length), bytes(length), text[:length]))
    return bytes(pieces[:size])


def content_of(image: Path | str) -> bytes:
    """The whole disk as it is read here."""
    with tapcore.open(f"zraw:{image}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


def unpacked(tool: str, image: Path) -> bytes:
    """The same by `zstd`, `xz` or `gzip`."""
    return subprocess.run(
        [peer(tool), "-dc", image], check=True, capture_output=True, timeout=60
    ).stdout


def packed(command: str, content: bytes) -> bytes:
    """What a program makes of content on its standard input."""
    tool, *words = shlex.split(command)
    done = subprocess.run(
        [peer(tool), *words], input=content, check=True, capture_output=True, timeout=60
    )
    return done.stdout


def frames(content: bytes, *lengths: int, **parameters: int) -> list[bytes]:
    """Content in frames, of which each holds so many bytes; the last one the rest."""
    options = {int(zstd.CompressionParameter[name]): value for name, value in parameters.items()}
    found, at = [], 0
    for length in lengths:
        found.append(zstd.compress(content[at : at + length], options=options))
        at += length
    return [*found, zstd.compress(content[at:], options=options)]


def seekable(packed: list[bytes], contents: list[int]) -> bytes:
    """Frames with their seek table."""
    table = seek_table(zip(map(len, packed), contents, strict=True))
    return b"".join(packed) + table


def in_frames(content: bytes) -> bytes:
    """Seekable, in frames that begin anywhere."""
    lengths = [700, 5001, 100_000]
    parts = frames(content, *lengths)
    sizes, left = [], len(content)
    for length in (*lengths, left):
        sizes.append(min(length, left))
        left -= sizes[-1]
    return seekable(parts, sizes)


def in_members(content: bytes) -> bytes:
    """As bgzip does it: members of 64 KiB at most, which say how long they are."""
    out = bytearray()
    for at in range(0, len(content) + 1, 65_280):
        part = content[at : at + 65_280]
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = deflate.compress(part) + deflate.flush()
        out += struct.pack("<4sIBB H2sH", b"\x1f\x8b\x08\x04", 0, 0, 255, 6, b"BC", 2)
        out += struct.pack("<H", 18 + len(body) + 8 - 1)
        out += body + struct.pack("<II", zlib.crc32(part), len(part))
    return bytes(out)


KINDS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "seekable.img.zst": in_frames,
    "frames.img.zst": lambda content: b"".join(frames(content, 700, 5001, 100_000)),
    "skipped.img.zst": lambda content: (
        struct.pack("<II", 0x184D2A53, 5) + b"hello" + b"".join(frames(content, 700))
    ),
    "xz.img.xz": lzma.compress,
    "gzip.img.gz": gzip.compress,
    "bgzip.img.gz": in_members,
}
"""Made in this process, by what a file of that kind is called."""
