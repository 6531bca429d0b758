"""QEMU's tools as the other side, and an independent look at the tables of an image."""

import itertools
import json
import random
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from peers import peer

PASSPHRASE = b"correct horse"
SECRET = ("--object", f"secret,id=key,data={PASSPHRASE.decode()}")

KIB = 1 << 10
MIB = 1 << 20


def run(tool: str, *words: object, status: int = 0) -> str:
    """Standard output of a tool that ends with a status."""
    done = subprocess.run(
        [peer(tool), *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, f"{tool} {words}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_img(*words: object, status: int = 0) -> str:
    """`qemu-img`."""
    return run("qemu-img", *words, status=status)


def image_words(image: Path, *, encrypted: bool = False) -> list[object]:
    """How QEMU's tools are told to open an image."""
    if encrypted:
        options = f"driver=qcow,file.filename={image},encrypt.key-secret=key"
        return [*SECRET, "--image-opts", options]
    return ["-f", "qcow", image]


def qemu_io(image: Path, commands: Iterable[str], *, encrypted: bool = False) -> str:
    """`qemu-io` on an image; each command has to succeed."""
    words = [word for command in commands for word in ("-c", command)]
    said = run("qemu-io", *words, *image_words(image, encrypted=encrypted))
    assert "error" not in said.lower(), said
    assert "failed" not in said.lower(), said
    return said


def qemu_content(image: Path, *, encrypted: bool = False) -> bytes:
    """The whole disk as QEMU reads it."""
    raw = image.with_name(image.name + ".by-qemu")
    qemu_img("convert", *image_words(image, encrypted=encrypted), "-O", "raw", raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def convert_compressed(raw: Path, image: Path) -> None:
    """`qemu-img convert -c`; 7.2 ends with status 1 when it has done all of it well."""
    words = ["convert", "-c", "-f", "raw", "-O", "qcow", str(raw), str(image)]
    subprocess.run([peer("qemu-img"), *words], timeout=60, check=False)
    qemu_img("compare", "-f", "raw", "-F", "qcow", raw, image)


def qemu_map(image: Path) -> list[dict[str, Any]]:
    """`qemu-img map`."""
    found: list[dict[str, Any]] = json.loads(qemu_img("map", "--output=json", *image_words(image)))
    return found


def some_content(rng: random.Random, size: int) -> bytes:
    """Random bytes, text and holes, in pieces of any length."""
    content = bytearray()
    while len(content) < size:
        length = rng.choice((300, 512, 4 * KIB, 30 * KIB, rng.randint(1, 200 * KIB)))
        kind = rng.randrange(3)
        if kind == 0:
            content += rng.randbytes(length)
        elif kind == 1:
            content += bytes(length)
        else:
            content += (b"the quick brown fox %d " % rng.randrange(1000)) * (length // 20 + 1)
    return bytes(content[:size])


def new_image(
    path: Path, size: int, cluster_bits: int = 12, l2_bits: int = 9, *, parent: str = ""
) -> Path:
    """An empty image (size in bytes) of any geometry, written without the driver."""
    name = parent.encode()
    tables = -(-size >> cluster_bits + l2_bits)
    numbers = (1, 48 if name else 0, len(name), 0, size, cluster_bits, l2_bits, 0, 0, 512)
    head = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", *numbers) + name
    path.write_bytes(head.ljust(512, b"\0") + bytes(8 * tables))
    return path


# ---- the tables, looked at without the driver ------------------------------------------------


@attrs.define
class Walk:
    """What the tables of an image say.

    Attributes:
        problems: what cannot be right: places that overlap, or lie outside of the file.
        plain: clusters of the disk that are stored plain.
        compressed: and compressed.
        tables: L2 tables.
    """

    problems: list[str] = attrs.field(factory=list)
    plain: int = 0
    compressed: int = 0
    tables: int = 0


def walk(content: bytes) -> Walk:
    """Follow every entry of an image, given as the bytes of its file."""
    (
        magic, version, name_at, name_length, _, size, cluster_bits, l2_bits, _, _, l1_at,
    ) = struct.unpack_from(">4sIQIIQBBHIQ", content)  # fmt: skip
    assert (magic, version) == (b"QFI\xfb", 1)
    found, cluster = Walk(), 1 << cluster_bits
    count = (size + (1 << cluster_bits + l2_bits) - 1) >> cluster_bits + l2_bits
    places = [(0, 48, "the header"), (l1_at, l1_at + 8 * count, "the L1 table")]
    if name_at:
        places.append((name_at, name_at + name_length, "the name"))
    for index, l2_at in enumerate(struct.unpack_from(f">{count}Q", content, l1_at)):
        if not l2_at:
            continue
        found.tables += 1
        places.append((l2_at, l2_at + (8 << l2_bits), f"L2 table {index}"))
        if l2_at + (8 << l2_bits) > len(content):
            continue
        for number, entry in enumerate(struct.unpack_from(f">{1 << l2_bits}Q", content, l2_at)):
            what = f"cluster {(index << l2_bits) + number}"
            if entry >> 63:
                found.compressed += 1
                start = entry & ((1 << 63 - cluster_bits) - 1)
                length = entry >> 63 - cluster_bits & cluster - 1
                places.append((start, start + length, what))
            elif entry:
                found.plain += 1
                places.append((entry, entry + cluster, what))
                if entry % cluster:
                    found.problems.append(f"{what} is not aligned: {entry:#x}")
    places.sort()
    for (start, end, what), (after, _, other) in itertools.pairwise(places):
        if after < end:
            found.problems.append(f"{what} ({start:#x} to {end:#x}) overlaps {other} ({after:#x})")
    last_end, what = max((end, what) for _, end, what in places)
    if last_end > len(content):
        found.problems.append(f"{what} ends at {last_end:#x}, the file at {len(content):#x}")
    return found
