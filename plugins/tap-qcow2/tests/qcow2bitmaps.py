"""Persistent bitmaps of an image, as QEMU tells of them and as tapcore does."""

import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tapcore
from peers import peer
from qcow2tools import qemu_img
from qcow2walk import BITMAP, walk

Ranges = list[tuple[int, int]]

IN_USE, AUTO, EXTRA_COMPATIBLE = 1, 2, 4


# ---- what QEMU says --------------------------------------------------------------------------


def dirty_by_qemu(image: Path, name: str) -> Ranges:
    """What a bitmap calls dirty, as qemu-nbd exports it."""
    server = ["--", "[", peer("qemu-nbd"), "-r", "-f", "qcow2", "-B", name, str(image), "]"]
    words = [peer("nbdinfo"), "--json", f"--map=qemu:dirty-bitmap:{name}", *server]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return joined((each["offset"], each["length"]) for each in found if each["type"] & 1)


def joined(ranges: Iterator[tuple[int, int]]) -> Ranges:
    """Neighbours in one."""
    found: Ranges = []
    for start, length in ranges:
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return found


def flags_by_qemu(image: Path) -> dict[str, set[str]]:
    """The flags of every bitmap, as `qemu-img info` shows them."""
    said = json.loads(qemu_img("info", "--output=json", "-f", "qcow2", image))
    bitmaps = said["format-specific"]["data"].get("bitmaps", [])
    return {each["name"]: set(each["flags"]) for each in bitmaps}


def add(image: Path, name: str, granularity: int = 65536, *flags: str) -> None:
    """`qemu-img bitmap --add`."""
    qemu_img("bitmap", "--add", "-g", granularity, *flags, image, name)


# ---- and what is said here ---------------------------------------------------------------------


def dirty(image: Path, name: str) -> Ranges:
    """The same here."""
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        found = disk.bitmap_ranges(name)
    assert found == joined(iter(found)), "neighbours are not joined"
    return found


def listed(image: Path) -> dict[str, tapcore.Bitmap]:
    """The bitmaps by name."""
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        return {bitmap.name: bitmap for bitmap in disk.bitmaps()}


def assert_same(image: Path, *names: str) -> None:
    """QEMU and we read the same."""
    for name in names:
        assert dirty(image, name) == dirty_by_qemu(image, name), name


class Entries:
    """A directory in an image's content, to be damaged."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.content = bytearray(image.read_bytes())
        found = walk(bytes(self.content))
        _, self.extension, _ = next(e for e in found.extensions if e[0] == 0x23852875)
        self.count, self.size, self.offset = struct.unpack_from(
            ">I4xQQ", self.content, self.extension
        )
        self.cluster = found.cluster

    def places(self) -> list[int]:
        """Offset of each entry in the file."""
        found, at = [], self.offset
        for _ in range(self.count):
            found.append(at)
            *_, name, extra = BITMAP.unpack_from(self.content, at)
            at += BITMAP.size + name + extra
            at += -at % 8
        return found

    def fields(self, number: int = 0) -> list[int]:
        """Table offset, table size, flags, type, granularity bits, name size, extra size."""
        return list(BITMAP.unpack_from(self.content, self.places()[number]))

    def set(self, number: int = 0, **changes: int) -> None:
        """Change an entry's fields."""
        names = ["table", "entries", "flags", "kind", "bits", "name", "extra"]
        fields = self.fields(number)
        for name, value in changes.items():
            fields[names.index(name)] = value
        BITMAP.pack_into(self.content, self.places()[number], *fields)

    def save(self) -> None:
        """Write the file."""
        self.image.write_bytes(self.content)


def structures(image: Path, name: str) -> list[tuple[int, bytes]]:
    """Directory entry, table and bits of one bitmap: where they lie, and what they hold."""
    entries = Entries(image)
    content = bytes(entries.content)
    for place, fields in zip(
        entries.places(), (entries.fields(n) for n in range(entries.count)), strict=True
    ):
        table, length, *_, name_size, extra = fields
        start = place + BITMAP.size + extra
        if content[start : start + name_size] != name.encode():
            continue
        found = [(place, content[place : start + name_size])]
        found.append((table, content[table : table + length * 8]))
        for (word,) in struct.iter_unpack(">Q", found[-1][1]):
            if word & ~511:
                found.append((word, content[word : word + entries.cluster]))
        return found
    raise AssertionError(f"no bitmap {name}")
