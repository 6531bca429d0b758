"""Other readers, and an independent look at the structures of an image."""

import io
import random
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dissect.hypervisor.disk.vdi import VDI

import tapcore
from peers import peer
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DYNAMIC

KIB = 1 << 10
MIB = 1 << 20
NONE = 0xFFFFFFFE  # and what is larger


def run(tool: str, *words: object, fails: bool = False) -> str:
    """Output of a tool, which succeeds or not."""
    done = subprocess.run(
        [peer(tool), *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert bool(done.returncode) == fails, f"{tool} {words}: {done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if fails else "")


def qemu_io(image: Path, commands: Iterable[str]) -> None:
    """`qemu-io` on an image; each command has to succeed."""
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", *words, "-f", "vdi", image)
    assert "error" not in said.lower(), said
    assert "failed" not in said.lower(), said


def qemu_content(image: Path) -> bytes:
    """The whole disk as QEMU reads it."""
    raw = image.with_name(image.name + ".by-qemu")
    run("qemu-img", "convert", "-f", "vdi", image, "-O", "raw", raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def dissect_content(image: Path, parent: bytes | None = None) -> bytes:
    """The whole disk as dissect.hypervisor reads it, over a parent's content.

    Block by block: of a longer read its version 3.21 takes all from where the first block lies.
    """
    with VDI(image, io.BytesIO(parent) if parent is not None else None) as vdi:
        stream = vdi.open()
        return b"".join(stream.read(vdi.block_size) for _ in range(0, vdi.size, vdi.block_size))


def content_of(image: Path | str, **options: Any) -> bytes:
    """The whole disk as it is read here."""
    with tapcore.open(f"vdi:{image}", readonly=True, **options) as disk:
        return disk.pread(0, length=disk.size)


def make(path: Path, size: int, block_size: int) -> None:
    """An image with blocks of any size, smaller ones than `create` makes."""
    write_image(str(path), new_header(size, block_size, DYNAMIC))


def some_content(rng: random.Random, size: int) -> bytes:
    """Sectors of random bytes, and about as many of zeroes."""
    pieces = bytearray()
    while len(pieces) < size:
        length = 512 * rng.randint(1, 200)
        pieces += rng.randbytes(length) if rng.random() < 0.5 else bytes(length)
    return bytes(pieces[:size])


def entries_of(content: bytes) -> tuple[int, ...]:
    """The block map of a file."""
    (map_at,) = struct.unpack_from("<I", content, 0x154)
    (blocks,) = struct.unpack_from("<I", content, 0x180)
    return struct.unpack_from(f"<{blocks}I", content, map_at)


def stored_of(content: bytes) -> int:
    """How many places the header counts."""
    (stored,) = struct.unpack_from("<I", content, 0x184)
    assert isinstance(stored, int)
    return stored


def set_entry(path: Path, block: int, entry: int) -> None:
    """Change an entry of the map."""
    with open(path, "r+b") as file:
        (map_at,) = struct.unpack_from("<I", file.read(0x200), 0x154)
        file.seek(map_at + 4 * block)
        file.write(struct.pack("<I", entry))


def set_stored(path: Path, stored: int) -> None:
    """Change what the header counts."""
    with open(path, "r+b") as file:
        file.seek(0x184)
        file.write(struct.pack("<I", stored))


def problems(content: bytes, *, closed: bool) -> list[str]:
    """What is wrong with an image, by VirtualBox's own rules.

    Args:
        content: of the file.
        closed: nothing was under way: no place is lost.
    """
    found = []
    data_at, block, extra = (
        struct.unpack_from("<I", content, at)[0] for at in (0x158, 0x178, 0x17C)
    )
    entries, stored = entries_of(content), stored_of(content)
    places = [entry for entry in entries if entry < NONE]
    if len(set(places)) < len(places):
        found.append("two blocks share a place")
    if any(place >= stored for place in places):
        found.append(f"a block lies behind the {stored} places that are given out")
    if stored > len(entries):
        found.append("more places are given out than there are blocks")
    if any(data_at + place * (block + extra) + extra >= len(content) for place in places):
        found.append("a block lies past the end")
    if closed and len(places) != stored:
        found.append(f"{stored} places are given out, and {len(places)} used")
    return found
