"""Other readers, and an independent look at the structures of an image."""

import itertools
import random
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyvhdi
from dissect.hypervisor.disk.vhdx import VHDX

import tapcore
from peers import peer

KIB = 1 << 10
MIB = 1 << 20
STORED = (6, 7)


def run(tool: str, *words: object, fails: bool = False) -> str:
    """Output of a tool, which succeeds or not."""
    done = subprocess.run(
        [peer(tool), *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert bool(done.returncode) == fails, f"{tool} {words}: {done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if fails else "")


def qemu_io(image: Path, commands: Iterable[str]) -> None:
    """`qemu-io` on an image; each command has to succeed."""
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", *words, "-f", "vhdx", image)
    assert "error" not in said.lower(), said
    assert "failed" not in said.lower(), said


def qemu_content(image: Path) -> bytes:
    """The whole disk as QEMU reads it."""
    raw = image.with_name(image.name + ".by-qemu")
    run("qemu-img", "convert", "-f", "vhdx", image, "-O", "raw", raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def dissect_content(image: Path) -> bytes:
    """The whole disk as dissect.hypervisor reads it, over its parents."""
    vhdx = leaf = VHDX(image)
    content: bytes = leaf.read(leaf.size)
    while vhdx is not None:
        vhdx.fh.close()
        vhdx = vhdx.parent
    return content


def libvhdi_content(path: Path, *parents: Path) -> bytes:
    """The whole disk as libvhdi reads it, over its parents."""
    files = [pyvhdi.file() for _ in (path, *parents)]
    for file, name in zip(files, (path, *parents), strict=True):
        file.open(str(name))
    for file, below in itertools.pairwise(files):
        file.set_parent(below)
    content: bytes = files[0].read_buffer_at_offset(files[0].get_media_size(), 0)
    for file in files:
        file.close()
    return content


def content_of(image: Path | str, **options: Any) -> bytes:
    """The whole disk as it is read here."""
    with tapcore.open(f"vhdx:{image}", readonly=True, **options) as disk:
        return disk.pread(0, length=disk.size)


def make(path: Path, size: int, parent: str = "", **options: str) -> None:
    """An image in small blocks."""
    options = {"block_size": "1M"} | options
    tapcore.create_image(f"vhdx:{path}", size, parent=parent, options=options)


def some_content(rng: random.Random, size: int) -> bytes:
    """Sectors of random bytes, and about as many of zeroes."""
    pieces = bytearray()
    while len(pieces) < size:
        length = 512 * rng.randint(1, 200)
        pieces += rng.randbytes(length) if rng.random() < 0.5 else bytes(length)
    return bytes(pieces[:size])


def _castagnoli() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CASTAGNOLI = _castagnoli()


def plain_crc32c(content: bytes) -> int:
    """The checksum, byte by byte."""
    state = 0xFFFFFFFF
    for byte in content:
        state = CASTAGNOLI[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ 0xFFFFFFFF


def sealed(structure: bytes) -> bytes:
    """A structure with the checksum that it should have."""
    bare = structure[:4] + bytes(4) + structure[8:]
    return bare[:4] + struct.pack("<I", plain_crc32c(bare)) + bare[8:]


def regions_of(content: bytes) -> dict[bytes, tuple[int, int]]:
    """Offset and length of each region."""
    (count,) = struct.unpack_from("<I", content, 192 * KIB + 8)
    found = {}
    for number in range(count):
        id, offset, length, _ = struct.unpack_from("<16sQII", content, 192 * KIB + 16 + 32 * number)
        found[id[:4]] = (offset, length)
    return found


def bat_of(content: bytes) -> tuple[int, int]:
    """Offset and length of the block table."""
    return regions_of(content)[bytes.fromhex("6677c22d")]


def metadata_of(content: bytes) -> int:
    """Where the metadata begin."""
    return regions_of(content)[bytes.fromhex("06a27c8b")][0]


def header_of(content: bytes) -> tuple[int, bytes]:
    """Offset and bytes of the current header."""
    headers = [(at, content[at : at + 4096]) for at in (64 * KIB, 128 * KIB)]
    good = [each for each in headers if sealed(each[1]) == each[1] and each[1][:4] == b"head"]
    return max(good, key=lambda each: struct.unpack_from("<Q", each[1], 8))


def poke(path: Path, at: int, content: bytes) -> None:
    """Write into a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


def set_entry(path: Path, number: int, entry: int) -> None:
    """Change an entry of the block table."""
    poke(path, bat_of(path.read_bytes())[0] + 8 * number, entry.to_bytes(8, "little"))


def store_in_part(path: Path, block: int, stored: list[bool], content: bytes, size: int) -> None:
    """Let a block of 1 MiB have some of its sectors, by hand; the others hold garbage.

    Args:
        path: of a child without content, whose disk is smaller than a chunk.
        block: its number.
        stored: whether each of the block's sectors is.
        content: of the block.
        size: of a sector, bytes.
    """
    whole = path.read_bytes()
    bat, _ = bat_of(whole)
    ratio = (size << 23) // MIB
    (bitmap,) = struct.unpack_from("<Q", whole, bat + 8 * ratio)
    if not bitmap:
        bitmap = len(whole) | 6
        set_entry(path, ratio, bitmap)
        poke(path, len(whole), bytes(MIB))
        whole = path.read_bytes()
    bits = bytearray(len(stored) // 8)
    for number, there in enumerate(stored):
        bits[number >> 3] |= there << (number & 7)
    poke(path, (bitmap >> 20 << 20) + block * len(bits), bytes(bits))
    garbage = bytearray(b"?" * MIB)
    for number, there in enumerate(stored):
        if there:
            part = slice(number * size, (number + 1) * size)
            garbage[part] = content[part]
    poke(path, len(whole), bytes(garbage))
    set_entry(path, block, len(whole) | 7)


def problems(content: bytes, *, closed: bool) -> list[str]:
    """What is wrong with an image whose log, if there is one, was replayed.

    Args:
        content: of the file.
        closed: nothing was under way: the log is empty, and no place is lost.
    """
    found = []
    heads = [content[at : at + 4096] for at in (64 * KIB, 128 * KIB)]
    if closed and any(sealed(each) != each for each in heads):
        found.append("a header is damaged")
    _, header = header_of(content)
    if closed and any(header[48:64]):
        found.append("the log is not empty")
    for at in (192 * KIB, 256 * KIB):
        table = content[at : at + 64 * KIB]
        if sealed(table) != table:
            found.append(f"the region table at {at} is damaged")
    length, offset = struct.unpack_from("<IQ", header, 68)
    places = [(0, MIB), (offset, offset + length)]
    regions = regions_of(content)
    places += [(at, at + size) for at, size in regions.values()]
    (block,) = struct.unpack_from("<I", content, metadata_of(content) + 64 * KIB)
    at, size = bat_of(content)
    for entry in struct.unpack_from(f"<{size // 8}Q", content, at):
        if entry & 7 in STORED:
            places.append((entry >> 20 << 20, (entry >> 20 << 20) + block))
        elif entry & 0xFFFF8:
            found.append(f"an entry has bits that must be zero ({entry:#x})")
    places.sort()
    found += [f"{a} and {b} overlap" for a, b in itertools.pairwise(places) if a[1] > b[0]]
    found += [f"{place} lies past the end" for place in places if place[1] > len(content)]
    if closed:
        found += [f"a gap behind {a}" for a, b in itertools.pairwise(places) if a[1] < b[0]]
        if places[-1][1] < len(content):
            found.append("a gap at the end")
    return found
