"""QEMU's tools as the other side, and an independent look at the structures of an image."""

import itertools
import os
import random
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tapcore
from peers import peer
from tap_vhd.create import child, dynamic, write_image
from tapcore import DiskId

KIB = 1 << 10
MIB = 1 << 20
FOOTER = 512


def run(tool: str, *words: object) -> str:
    """Standard output of a tool that succeeds."""
    done = subprocess.run(
        [peer(tool), *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{tool} {words}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_io(image: Path, commands: Iterable[str]) -> None:
    """`qemu-io` on an image; each command has to succeed."""
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", *words, "-f", "vpc", image)
    assert "error" not in said.lower(), said
    assert "failed" not in said.lower(), said


def qemu_content(image: Path) -> bytes:
    """The whole disk as QEMU reads it."""
    raw = image.with_name(image.name + ".by-qemu")
    run("qemu-img", "convert", "-f", "vpc", image, "-O", "raw", raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def content_of(image: Path | str, **options: Any) -> bytes:
    """The whole disk as it is read here."""
    with tapcore.open(f"vhd:{image}", readonly=True, **options) as disk:
        return disk.pread(0, length=disk.size)


def make(path: Path, size: int, block_size: int, parent: str = "") -> None:
    """An image with blocks of any size, smaller ones than `create` makes."""
    if parent:
        write_image(str(path), *child(str(path), size, DiskId(parent, "vhd"), block_size))
    else:
        write_image(str(path), *dynamic(size, block_size))


def some_content(rng: random.Random, size: int) -> bytes:
    """Sectors of random bytes, and about as many of zeroes."""
    pieces = bytearray()
    while len(pieces) < size:
        length = 512 * rng.randint(1, 200)
        pieces += rng.randbytes(length) if rng.random() < 0.5 else bytes(length)
    return bytes(pieces[:size])


def sum_is_right(structure: bytes, at: int) -> bool:
    """Whether a checksum is the complement of the sum of all other bytes."""
    (stored,) = struct.unpack_from(">I", structure, at)
    return bool(stored == ~(sum(structure) - sum(structure[at : at + 4])) & 0xFFFFFFFF)


def problems(content: bytes, *, closed: bool) -> list[str]:
    """What is wrong with an image that has blocks.

    Args:
        content: of the file.
        closed: nothing was under way: the footer is at the end.
    """
    found = []
    footer = content[:FOOTER]
    if footer[:8] != b"conectix" or not sum_is_right(footer, 64):
        found.append("the copy of the footer is damaged")
    if closed and content[-FOOTER:] != footer:
        found.append("the footer is not at the end")
    if not closed and content[-FOOTER:] != footer and b"conectix" in content[-FOOTER:]:
        found.append("what ends the file is nearly a footer")
    (header_at,) = struct.unpack_from(">Q", footer, 16)
    header = content[header_at : header_at + 1024]
    if header[:8] != b"cxsparse" or not sum_is_right(header, 36):
        found.append("the dynamic header is damaged")
    (table_at,) = struct.unpack_from(">Q", header, 16)
    entries, block_size = struct.unpack_from(">II", header, 28)
    bitmap = -(-block_size // 4096 // 512) * 512
    places = [(0, 512), (header_at, header_at + 1024), (table_at, table_at + 4 * entries)]
    for entry in struct.unpack_from(f">{entries}I", content, table_at):
        if entry != 0xFFFFFFFF:
            places.append((entry * 512, entry * 512 + bitmap + block_size))
    places.sort()
    found += [f"{a} and {b} overlap" for a, b in itertools.pairwise(places) if a[1] > b[0]]
    end = len(content) - FOOTER if closed else len(content)
    found += [f"{place} lies past the end" for place in places if place[1] > end]
    return found


def set_time(path: Path, seconds: int) -> None:
    """When a file was changed last."""
    os.utime(path, (seconds, seconds))
