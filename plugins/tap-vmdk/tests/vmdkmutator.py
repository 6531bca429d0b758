"""Sparse VMDKs of every kind, small, with their metadata damaged at random: for the repair's tests.

The images are laid out by this module alone, so that each place of the metadata is known. What is
damaged are fields, entries, whole tables and the ends of files, as broken disks, transfers and
people with ill will do it.
"""

import random
import struct
import zlib
from collections.abc import Callable

import attrs

from vmdkwriters import GD_AT_END, descriptor, kdmv_header

KINDS = (
    "monolithicSparse",
    "zeroed",
    "alone",  # no redundant directory
    "child",
    "zeroedChild",
    "extent",  # of a disk whose descriptor is a file
    "streamOptimized",
)
_HEADER = (  # offset, bytes
    (4, 4),
    (8, 4),
    (12, 8),
    (20, 8),
    (28, 8),
    (36, 8),
    (44, 4),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 1),
    (73, 4),
    (77, 2),
)


@attrs.define
class Layout:
    """A made image, and where its metadata lies (bytes).

    Attributes:
        raw: the file.
        kind: of `KINDS`.
        grain: bytes.
        directories: where each begins.
        tables: where each table begins, of both directories.
        entries: in a table.
    """

    raw: bytearray
    kind: str
    grain: int
    directories: list[int]
    tables: list[int]
    entries: int

    @property
    def words(self) -> list[int]:
        """The offsets of all entries of directories and tables, as far as the file was not cut."""
        count = len(self.tables) // len(self.directories)
        places = [at + 4 * n for at in self.directories for n in range(count)]
        places += [at + 4 * n for at in self.tables for n in range(self.entries)]
        return [at for at in places if at + 4 <= len(self.raw)]


def make(kind: str, rng: random.Random, parent_cid: int = 0) -> Layout:
    """An image in order, with some content.

    Args:
        kind: of `KINDS`.
        rng: its content and its geometry come from here.
        parent_cid: of the parent, for a child.
    """
    grain, entries = rng.choice(((8, 16), (16, 32), (8, 128)))
    sectors = rng.choice((1024, 1000, 777))
    total = -(-sectors // grain)
    tables = -(-total // entries)
    used = {n for n in range(total) if rng.random() < rng.choice((0.1, 0.4))}
    access = "RDONLY" if kind == "streamOptimized" else "RW"
    parent = {"parentCID": f"{parent_cid:08x}", "parentFileNameHint": '"base.vmdk"'}
    text = descriptor(
        "streamOptimized" if kind == "streamOptimized" else "monolithicSparse",
        [f'{access} {sectors} SPARSE "disk.vmdk"'],
        **(parent if "hild" in kind else {}),
    )
    fields = {"capacity": sectors, "grainSize": grain, "numGTEsPerGT": entries}
    if kind != "extent":
        fields |= {"descriptorOffset": 1, "descriptorSize": 20}
    if kind == "streamOptimized":
        return _stream(rng, text, fields, used, tables)
    return _plain(kind, rng, text, fields, used, tables)


def _content(rng: random.Random, size: int) -> bytes:
    """Of a grain; some of it looks like entries."""
    what = rng.random()
    if what < 0.3:
        return struct.pack(f"<{size // 4}I", *(rng.randrange(400) for _ in range(size // 4)))
    if what < 0.4:
        return bytes(size)
    return rng.randbytes(size)


def _plain(
    kind: str,
    rng: random.Random,
    text: bytes,
    fields: dict[str, int],
    used: set[int],
    tables: int,
) -> Layout:
    grain, entries = fields["grainSize"], fields["numGTEsPerGT"]
    copies = 1 if kind == "alone" else 2
    table_sectors = -(-4 * entries // 512)
    gd_sectors = -(-4 * tables // 512)
    at = 21
    directories, places = [], []
    for _ in range(copies):
        directories.append(at * 512)
        places += [(at + gd_sectors + n * table_sectors) * 512 for n in range(tables)]
        at += gd_sectors + tables * table_sectors
    overhead = -(-at // grain) * grain
    zeroed = kind.startswith("zeroed")
    flags = 1 | (2 if copies > 1 else 0) | (4 if zeroed else 0)
    fields |= {"flags": flags, "version": 2 if zeroed else 1, "overHead": overhead}
    fields |= {"gdOffset": directories[-1] // 512}
    fields |= {"rgdOffset": directories[0] // 512 if copies > 1 else 0}
    raw = bytearray(overhead * 512)
    raw[:512] = kdmv_header(**fields)
    if kind != "extent":
        raw[512 : 512 + len(text)] = text
    words = [0] * (tables * entries)
    for number in rng.sample(sorted(used), len(used)):
        words[number] = len(raw) // 512
        raw += _content(rng, grain * 512)
    if zeroed:
        for number in range(-(-fields["capacity"] // grain)):
            if not words[number] and rng.random() < 0.2:
                words[number] = 1
    for number, place in enumerate(places):
        index = number % tables
        struct.pack_into("<I", raw, directories[number // tables] + 4 * index, place // 512)
        part = words[index * entries : (index + 1) * entries]
        struct.pack_into(f"<{entries}I", raw, place, *part)
    return Layout(raw, kind, grain * 512, directories, places, entries)


def _stream(
    rng: random.Random, text: bytes, fields: dict[str, int], used: set[int], tables: int
) -> Layout:
    grain, entries = fields["grainSize"], fields["numGTEsPerGT"]
    fields |= {"flags": 0x30001, "version": 3, "compressAlgorithm": 1, "gdOffset": GD_AT_END}
    raw = bytearray((kdmv_header(**fields) + text).ljust(128 * 512, b"\0"))
    directory, places = [0] * tables, []
    for index in range(tables):
        words = [0] * entries
        for n in range(entries):
            if index * entries + n in used:
                words[n] = len(raw) // 512
                packed = zlib.compress(_content(rng, grain * 512))
                head = struct.pack("<QI", (index * entries + n) * grain, len(packed))
                raw += (head + packed).ljust(-(-(12 + len(packed)) // 512) * 512, b"\0")
        if any(words):
            size = -(-4 * entries // 512)
            raw += struct.pack("<QII", size, 0, 1).ljust(512, b"\0")
            directory[index] = len(raw) // 512
            places.append(len(raw))
            raw += struct.pack(f"<{entries}I", *words).ljust(size * 512, b"\0")
    raw += struct.pack("<QII", 1, 0, 2).ljust(512, b"\0")
    place = len(raw)
    raw += struct.pack(f"<{tables}I", *directory).ljust(512, b"\0")
    raw += struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    raw += kdmv_header(**fields | {"gdOffset": place // 512}) + bytes(512)
    return Layout(raw, "streamOptimized", grain * 512, [place], places, entries)


# ---- damage --------------------------------------------------------------------------------------


def damage(image: Layout, rng: random.Random) -> None:
    """Change an image's metadata in one to four ways."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        rng.choice(_DAMAGES)(image, rng)


def _value(image: Layout, rng: random.Random, old: int) -> int:
    """What an entry, or the place of something, might become."""
    end = len(image.raw) // 512
    inside = rng.randrange(end + 1)
    tables = [at // 512 for at in image.directories + image.tables]
    return rng.choice(
        (
            0,
            1,
            2,
            old ^ 1 << rng.randrange(32),
            inside,
            inside // (image.grain // 512) * (image.grain // 512),
            rng.choice(tables or [1]),
            rng.choice(tables or [1]) + rng.choice((-1, 1)),
            end - 1,
            end,
            end + rng.randrange(1, 2000),
            0x7FFFFFFF,
            0xFFFFFFFF,
        )
    ) % (1 << 32)


def _entry(image: Layout, rng: random.Random) -> None:
    words = image.words
    count = 2 * len(image.tables)
    at = rng.choice(words[:count] if rng.random() < 0.5 else words)
    (old,) = struct.unpack_from("<I", image.raw, at)
    struct.pack_into("<I", image.raw, at, _value(image, rng, old))


def _field(image: Layout, rng: random.Random) -> None:
    at, size = rng.choice(_HEADER)
    if image.kind == "streamOptimized" and rng.random() < 0.5:
        at += len(image.raw) - 1024  # the footer
    old = int.from_bytes(image.raw[at : at + size], "little")
    most = (1 << (8 * size)) - 1
    values = (_value(image, rng, old), old + 1, old - 1, old * 2, old // 2, most, most // 2, 1)
    new = rng.choice((*values, old ^ 1 << rng.randrange(8 * size))) & most
    image.raw[at : at + size] = new.to_bytes(size, "little")


def _swap(image: Layout, rng: random.Random) -> None:
    one, other = rng.choice(image.words), rng.choice(image.words)
    raw = image.raw
    raw[one : one + 4], raw[other : other + 4] = raw[other : other + 4], raw[one : one + 4]


def _duplicate(image: Layout, rng: random.Random) -> None:
    one, other = rng.choice(image.words), rng.choice(image.words)
    image.raw[other : other + 4] = image.raw[one : one + 4]


def _wipe_table(image: Layout, rng: random.Random) -> None:
    at = rng.choice(image.tables or image.directories)
    size = rng.choice((16, 4 * image.entries))
    content = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    image.raw[at : at + size] = content


def _flip(image: Layout, rng: random.Random) -> None:
    at = rng.choice(image.words) + rng.randrange(4)
    image.raw[at] ^= 1 << rng.randrange(8)


def _cut(image: Layout, rng: random.Random) -> None:
    least = max([*image.directories, *image.tables, 21 * 512])
    if image.kind != "streamOptimized":
        del image.raw[rng.randrange(min(least, len(image.raw) - 1), len(image.raw)) :]


def _grow(image: Layout, rng: random.Random) -> None:
    image.raw += rng.choice((bytes, rng.randbytes))(rng.choice((1, 512, 4096, 70000)))


def _move(image: Layout, rng: random.Random) -> None:
    """One directory, as the header names it, to somewhere else."""
    at = rng.choice((48, 56))
    struct.pack_into("<Q", image.raw, at, _value(image, rng, 0))


def _text(image: Layout, rng: random.Random) -> None:
    at = 512 + rng.randrange(400)
    image.raw[at] = rng.choice((0, 10, 32, 34, 48, 57, rng.randrange(256)))


_DAMAGES: tuple[Callable[[Layout, random.Random], None], ...] = (
    _entry,
    _entry,
    _entry,
    _field,
    _field,
    _swap,
    _duplicate,
    _wipe_table,
    _flip,
    _cut,
    _grow,
    _move,
    _text,
)
