"""Damaged qcow2 images: good ones with some of everything, and what is changed in them."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from qcow2tools import convert, qemu_img, qemu_io
from qcow2walk import COMPRESSED, COPIED, Walk, walk

LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "512": {"cluster_size": 512},
    "4096-refcount-64": {"cluster_size": 4096, "refcount_bits": 64},
    "512-refcount-1": {"cluster_size": 512, "refcount_bits": 1},
    "v2": {"compat": "0.10", "cluster_size": 1024},
    "extended": {"extended_l2": "on", "cluster_size": 16384},
    "zstd": {"compression_type": "zstd", "cluster_size": 4096},
    "lazy": {"lazy_refcounts": "on", "cluster_size": 4096},
    "luks": {"encrypt_format": "luks", "cluster_size": 4096},
}


def make(folder: Path, options: dict[str, Any]) -> Path:
    """A small image with some of everything: plain, compressed, zero, snapshots, bitmaps."""
    rng = random.Random(1)
    raw = folder / "source.raw"
    raw.write_bytes(b"text " * 20_000 + rng.randbytes(60_000) + bytes(100_000) + b"end " * 9_000)
    if "encrypt_format" in options:
        return convert(raw, folder / "disk.qcow2", **options)
    image = convert(raw, folder / "disk.qcow2", compress=True, **options)
    qemu_io(image, "write -P 5 60k 40k", "write -z 200k 30k", "write -P 6 250k 512")
    if options.get("refcount_bits") != 1:
        qemu_img("snapshot", "-c", "one", image)
        qemu_io(image, "write -P 7 64k 8k")
        qemu_img("snapshot", "-c", "two", image)
        qemu_io(image, "write -P 8 0 4k")
    if options.get("compat") != "0.10":
        qemu_img("bitmap", "--add", "-g", 512, image, "marks")
        qemu_io(image, "write -P 9 128k 20k")
    return image


def good_words(content: bytes) -> Walk:
    """A good image, walked."""
    found = walk(content)
    assert not found.problems
    return found


def compressed_bomb(good: Walk, stream: bytes) -> bytes:
    """An image whose first compressed cluster is another stream, at the file's end."""
    offset = good.end
    content = bytearray(good.content.ljust(offset, b"\0")) + stream.ljust(good.cluster * 2, b"\0")
    shift = 62 - (good.bits - 8)
    sectors = (len(stream) + 511) // 512 - 1
    entry = COMPRESSED | offset | min(sectors, (1 << good.bits - 8) - 1) << shift
    table = next(place for place in good.places if place.name.startswith("L2 table"))
    content[table.offset : table.offset + 8] = struct.pack(">Q", entry)
    return bytes(content)


# ---- damage -------------------------------------------------------------------------------------

HEADER_FIELDS = {
    "version": (4, 4),
    "backing_file_offset": (8, 8),
    "backing_file_size": (16, 4),
    "cluster_bits": (20, 4),
    "size": (24, 8),
    "crypt_method": (32, 4),
    "l1_size": (36, 4),
    "l1_table_offset": (40, 8),
    "refcount_table_offset": (48, 8),
    "refcount_table_clusters": (56, 4),
    "nb_snapshots": (60, 4),
    "snapshots_offset": (64, 8),
    "incompatible_features": (72, 8),
    "compatible_features": (80, 8),
    "autoclear_features": (88, 8),
    "refcount_order": (96, 4),
    "header_length": (100, 4),
    "compression_type": (104, 1),
}


def with_field(content: bytes, name: str, value: int) -> bytes:
    """The image with a header field changed."""
    offset, width = HEADER_FIELDS[name]
    changed = (value & (1 << 8 * width) - 1).to_bytes(width, "big")
    return content[:offset] + changed + content[offset + width :]


def extreme_values(good: Walk, width: int) -> list[int]:
    """For a field of so many bytes: limits, signs, and places where something else lies."""
    bits = 8 * width
    values = [0, 1, (1 << bits) - 1, (1 << (bits - 1)) - 1, 1 << (bits - 1)]
    if width >= 4:
        values += [good.cluster, len(good.content), good.end, 0x7FFF_0000 & (1 << bits) - 1]
    if width == 8:
        values += [place.offset for place in good.places[:8]]
        values += [0x1234_5678_90AB_CDEF, (1 << 56) - 512, (1 << 63) - good.cluster, 513]
    return values


@attrs.define
class Damage:
    """A bad image, and what makes it bad."""

    what: str
    content: bytes


def damages(good: Walk, rng: random.Random, count: int) -> Iterator[Damage]:
    """Images that differ from a good one in one to three places, in all of its structures alike."""
    kinds = sorted({_kind(place.name) for place in good.places})
    for _ in range(count):
        content = bytearray(good.content)
        said = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            kind = rng.choice((*kinds, "header", "header field", "length"))
            if kind == "header field":
                said.append(_damage_field(good, content, rng))
            elif kind == "length":
                said.append(_damage_length(good, content, rng))
            else:
                place = rng.choice([p for p in good.places if _kind(p.name) == kind])
                said.append(_damage_place(good, content, place.offset, place.length, rng))
                said[-1] += f" ({place.name})"
        yield Damage(", ".join(said), bytes(content))


def _kind(name: str) -> str:
    return " ".join(word for word in name.split() if not word.isdigit())


def _damage_field(good: Walk, content: bytearray, rng: random.Random) -> str:
    name = rng.choice(list(HEADER_FIELDS))
    value = rng.choice(extreme_values(good, HEADER_FIELDS[name][1]))
    content[:] = with_field(bytes(content), name, value)
    return f"{name} = {value:#x}"


def _damage_length(good: Walk, content: bytearray, rng: random.Random) -> str:
    length = rng.choice((rng.randrange(len(content)), len(content) + good.cluster * 3 + 1))
    content.extend(bytes(max(length - len(content), 0)))
    del content[length:]
    return f"{length} bytes long"


def _damage_place(
    good: Walk, content: bytearray, offset: int, length: int, rng: random.Random
) -> str:
    """Change a word of a table; more often one that is not empty."""
    width = rng.choice((1, 2, 4, 8, 8, 8))
    end = min(offset + max(length, width), len(content))
    places = range(offset, end - width + 1, width)
    if not places:
        return "nothing"
    used = [at for at in rng.sample(places, min(len(places), 64)) if any(content[at : at + width])]
    at = rng.choice(used if used and rng.random() < 0.7 else places)
    content[at : at + width] = value = _word(good, content[at : at + width], rng)
    return f"{value.hex()} at {at:#x}"


def _word(good: Walk, old: bytes | bytearray, rng: random.Random) -> bytes:
    width = len(old)
    if rng.random() < 0.25:
        return bytes(old[:-1]) + bytes([old[-1] ^ 1 << rng.randrange(8)])
    if width < 8 or rng.random() < 0.4:
        value = rng.choice([*extreme_values(good, width), rng.getrandbits(8 * width)])
        return (value & (1 << 8 * width) - 1).to_bytes(width, "big")
    target = rng.choice((rng.choice(good.places).offset, rng.randrange(good.end)))
    target += rng.choice((0, 0, 0, good.cluster, 512, 1))
    flags = rng.choice((0, COPIED, COPIED, COPIED | 1, 1, COMPRESSED, COMPRESSED | 0x3F << 56))
    return (target | flags).to_bytes(8, "big")
