"""Small writers of VMDK files, from the documented layouts alone: nothing of the driver is used.

Each lays grains out as it is told, so that odd and damaged files can be made on purpose.
"""

import struct
import zlib
from collections.abc import Mapping

GRAIN = 128 * 512
GD_AT_END = (1 << 64) - 1


def sectors(content: bytes) -> bytes:
    """Padded to whole sectors."""
    return content + bytes(-len(content) % 512)


def kdmv_header(**fields: int) -> bytes:
    """A header of hosted sparse files; fields by the names of VMware's note."""
    values = {
        "version": 1,
        "flags": 3,
        "capacity": 0,
        "grainSize": 128,
        "descriptorOffset": 0,
        "descriptorSize": 0,
        "numGTEsPerGT": 512,
        "rgdOffset": 0,
        "gdOffset": 0,
        "overHead": 128,
        "uncleanShutdown": 0,
        "compressAlgorithm": 0,
    } | fields
    head = b"KDMV" + struct.pack(
        "<IIQQQQIQQQB",
        *(values[name] for name in list(values)[:11]),
    )
    return sectors(head + b"\n \r\n" + struct.pack("<H", values["compressAlgorithm"]))


def descriptor(kind: str, lines: list[str], **entries: str) -> bytes:
    """A descriptor as text."""
    parent = entries.pop("parentCID", "ffffffff")
    more = [f"{key}={value}" for key, value in entries.items()]
    return "\n".join(
        [
            "# Disk DescriptorFile",
            "version=1",
            "CID=12345678",
            f"parentCID={parent}",
            f'createType="{kind}"',
            *more,
            "# Extent description",
            *lines,
            "# The Disk Data Base",
            'ddb.adapterType = "ide"',
            "",
        ]
    ).encode()


def split(content: bytes, size: int) -> dict[int, bytes]:
    """The pieces of a size that are not zeroes, by number, the last one padded."""
    pieces = {n: content[n * size : (n + 1) * size] for n in range(-(-len(content) // size))}
    held = {n: piece for n, piece in pieces.items() if piece.count(0) < len(piece)}
    return {n: piece.ljust(size, b"\0") for n, piece in held.items()}


def hosted(
    content: bytes,
    *,
    text: bytes = b"",
    zeroed: tuple[int, ...] = (),
    damage_gd: bool = False,
    damage_entry: bool = False,
    damage_table: int | None = None,
    **fields: int,
) -> bytes:
    """A sparse file with both directories.

    Args:
        content: of the disk.
        text: descriptor to be embedded.
        zeroed: grains whose entry is 1.
        damage_gd: the header's directory lies outside the file.
        damage_entry: the first directory's first entry points outside the file.
        damage_table: an entry of the first table of the first directory that points outside.
        fields: of the header, to be different.
    """
    grains = split(content, GRAIN)
    total = -(-len(content) // GRAIN)
    tables = -(-total // 512)
    gd_sectors = -(-tables * 4 // 512)
    rgd = 1 + (20 if text else 0)
    gd = rgd + gd_sectors + 4 * tables
    overhead = -(-(gd + gd_sectors + 4 * tables) // 128) * 128
    entries = [0] * (512 * tables)
    data = b""
    for number, grain in sorted(grains.items(), key=lambda pair: -pair[0]):  # the last one first
        entries[number] = overhead + len(data) // 512
        data += grain
    for number in zeroed:
        entries[number] = 1
    head = bytearray(overhead * 512)
    values = {
        "capacity": len(content) // 512,
        "rgdOffset": rgd,
        "gdOffset": gd if not damage_gd else 1 << 30,
        "overHead": overhead,
        "descriptorOffset": 1 if text else 0,
        "descriptorSize": 20 if text else 0,
        "flags": 3 | (4 if zeroed else 0),
        "version": 2 if zeroed else 1,
    }
    head[:512] = kdmv_header(**values | fields)
    head[512 : 512 + len(text)] = text
    raw = struct.pack(f"<{len(entries)}I", *entries)
    for place in (rgd, gd):
        first = place + gd_sectors
        directory = [first + 4 * n for n in range(tables)]
        table = bytearray(raw)
        if place == gd and damage_entry:
            directory[0] = 1 << 28
        if place == gd and damage_table is not None:
            table[4 * damage_table : 4 * damage_table + 4] = b"\xff\xff\xff\x7f"
        at = place * 512
        head[at : at + 4 * tables] = struct.pack(f"<{tables}I", *directory)
        head[first * 512 : first * 512 + len(raw)] = table
    return bytes(head) + data


def empty(
    size: int,
    *,
    name: str,
    grain: int = 8,
    entries: int = 64,
    zeroed: bool = False,
    parent: str = "",
) -> bytes:
    """A sparse file with both directories and no content, of grains and tables of any size.

    Args:
        size: of the disk, bytes.
        name: of the file itself.
        grain: sectors.
        entries: in a table.
        zeroed: entries of 1 are allowed.
        parent: name of the parent, whose CID is 12345678, as in `descriptor`.
    """
    more = {"parentCID": "12345678", "parentFileNameHint": f'"{parent}"'} if parent else {}
    line = f'RW {size // 512} SPARSE "{name}"'
    text = descriptor("monolithicSparse", [line], **more)
    tables = -(-size // (512 * grain * entries))
    gd_sectors, table_sectors = -(-tables * 4 // 512), -(-entries * 4 // 512)
    rgd, gd = 21, 21 + gd_sectors + tables * table_sectors
    overhead = -(-(gd + gd_sectors + tables * table_sectors) // grain) * grain
    head = bytearray(overhead * 512)
    head[:512] = kdmv_header(
        version=2 if zeroed else 1,
        flags=7 if zeroed else 3,
        capacity=size // 512,
        grainSize=grain,
        descriptorOffset=1,
        descriptorSize=20,
        numGTEsPerGT=entries,
        rgdOffset=rgd,
        gdOffset=gd,
        overHead=overhead,
    )
    head[512 : 512 + len(text)] = text
    for place in (rgd, gd):
        named = [place + gd_sectors + n * table_sectors for n in range(tables)]
        head[place * 512 : place * 512 + 4 * tables] = struct.pack(f"<{tables}I", *named)
    return bytes(head)


def stream(
    content: bytes,
    *,
    text: bytes,
    markers: bool = True,
    gd_in_header: bool = False,
    end: bytes = bytes(512),
    footer_marker: bool = True,
    version: int = 3,
) -> bytes:
    """A stream-optimized file.

    Args:
        content: of the disk.
        text: descriptor.
        markers: grains have their sector and size before them.
        gd_in_header: the header says where the directory is; there is no footer.
        end: what follows the footer.
        footer_marker: there is one.
        version: of the header.
    """
    total = -(-len(content) // GRAIN)
    tables = -(-total // 512)
    flags = 0x10001 | (0x20000 if markers else 0)
    fields = {
        "version": version,
        "flags": flags,
        "capacity": len(content) // 512,
        "descriptorOffset": 1,
        "descriptorSize": 20,
        "compressAlgorithm": 1,
        "gdOffset": GD_AT_END,
    }
    out = bytearray((kdmv_header(**fields) + text).ljust(128 * 512, b"\0"))
    directory = []
    grains = split(content, GRAIN)
    for table in range(tables):
        entries = [0] * 512
        for n in range(512):
            grain = grains.get(table * 512 + n)
            if grain is None:
                continue
            entries[n] = len(out) // 512
            packed = zlib.compress(grain)
            head = struct.pack("<QI", (table * 512 + n) * 128, len(packed)) if markers else b""
            out += sectors(head + packed)
        if any(entries):
            out += struct.pack("<QII", 4, 0, 1).ljust(512, b"\0")
            directory.append(len(out) // 512)
            out += struct.pack("<512I", *entries)
        else:
            directory.append(0)
    gd = sectors(struct.pack(f"<{tables}I", *directory))
    out += struct.pack("<QII", len(gd) // 512, 0, 2).ljust(512, b"\0")
    place = len(out) // 512
    out += gd
    if gd_in_header:
        out[:512] = kdmv_header(**fields | {"gdOffset": place})
        return bytes(out)
    if footer_marker:
        out += struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
    return bytes(out) + kdmv_header(**fields | {"gdOffset": place}) + end


def front_stream(
    content: bytes, *, text: bytes, footer: bool = False, again: bool = False, progress: int = 0
) -> bytes:
    """A stream with its directory and tables in front of its grains, and an end mark at its end.

    Args:
        content: of the disk.
        text: descriptor.
        footer: there is one before the end mark, too.
        again: the footer has a directory, and tables, of its own.
        progress: marks of progress after each grain.
    """
    total = -(-len(content) // GRAIN)
    tables = -(-total // 512)
    gd_sectors = -(-tables * 4 // 512)
    gd = 21
    overhead = -(-(gd + gd_sectors + 4 * tables) // 128) * 128
    fields = {
        "version": 3,
        "flags": 0x30001,
        "capacity": len(content) // 512,
        "descriptorOffset": 1,
        "descriptorSize": 20,
        "compressAlgorithm": 1,
        "overHead": overhead,
    }
    out = bytearray((kdmv_header(**fields, gdOffset=gd) + text).ljust(overhead * 512, b"\0"))
    entries = [0] * (512 * tables)
    for number, grain in split(content, GRAIN).items():
        entries[number] = len(out) // 512
        packed = zlib.compress(grain)
        out += sectors(struct.pack("<QI", number * 128, len(packed)) + packed)
        mark = struct.pack("<QIIQ", 0, 0, 4, number * 128).ljust(512, b"\0")
        out += mark * progress
    raw = struct.pack(f"<{len(entries)}I", *entries)
    first = gd + gd_sectors
    places = [first + 4 * n for n in range(tables)]
    out[gd * 512 : gd * 512 + 4 * tables] = struct.pack(f"<{tables}I", *places)
    out[first * 512 : first * 512 + len(raw)] = raw
    if again:
        for n in range(tables):
            out += struct.pack("<QII", 4, 0, 1).ljust(512, b"\0")
            places[n] = len(out) // 512
            out += raw[n * 2048 : (n + 1) * 2048]
        out += struct.pack("<QII", gd_sectors, 0, 2).ljust(512, b"\0")
        gd = len(out) // 512
        out += sectors(struct.pack(f"<{tables}I", *places))
    if footer:
        out += struct.pack("<QII", 1, 0, 3).ljust(512, b"\0") + kdmv_header(**fields, gdOffset=gd)
    return bytes(out) + bytes(512)


def cowd(content: bytes, *, grain: int = 1, skip_tables: bool = True) -> bytes:
    """A COWD file (vmfsSparse).

    Args:
        content: of the disk.
        grain: sectors in a grain.
        skip_tables: a table of holes is not there at all.
    """
    size = grain * 512
    total = -(-len(content) // size)
    tables = -(-total // 4096)
    head = b"COWD" + struct.pack("<IIIIIII", 1, 3, len(content) // 512, grain, 4, tables, 0)
    out = bytearray(head.ljust(2048, b"\0"))
    gd_at = len(out)
    out += sectors(bytes(4 * tables))
    grains = split(content, size)
    for table in range(tables):
        mine = {n: grains[n] for n in grains if n // 4096 == table}
        if not mine and skip_tables:
            continue
        place = len(out)
        struct.pack_into("<I", out, gd_at + 4 * table, place // 512)
        out += bytes(4096 * 4)
        for number, piece in mine.items():
            struct.pack_into("<I", out, place + 4 * (number % 4096), len(out) // 512)
            out += piece
    return bytes(out)


def sesparse(
    content: bytes,
    *,
    zero: Mapping[int, int] | None = None,
    replay: int = 0,
    flags: int = 0,
) -> bytes:
    """An SESparse file in grains of 4 KiB.

    Args:
        content: of the disk.
        zero: grains that are marked as zeroes, by number: 1 (unmapped) or 2 (zero).
        replay: the volatile header's wish to have its journal replayed.
        flags: of the constant header.
    """
    size = 8 * 512
    total = -(-len(content) // size)
    tables = -(-total // 4096)
    gd_sectors = -(-tables * 8 // 512)
    gd, gts = 16, 16 + gd_sectors
    data = gts + 64 * tables
    grains = split(content, size)
    used = sorted({n // 4096 for n in grains} | {n // 4096 for n in zero or {}}, reverse=True)
    words = [0] * 26
    words[0], words[1], words[2] = 0xCAFEBABE, 0x200000001, len(content) // 512
    words[3], words[4], words[5] = 8, 64, flags
    words[10], words[11] = 1, 1
    words[16], words[17], words[18], words[19] = gd, gd_sectors, gts, 64 * tables
    words[24], words[25] = data, 8 * len(grains)
    out = bytearray(data * 512)
    out[:208] = struct.pack("<26Q", *words)
    out[512 : 512 + 32] = struct.pack("<4Q", 0xCAFECAFE, 0, 0, replay)
    for number, table in enumerate(used):
        struct.pack_into("<Q", out, gd * 512 + 8 * table, 0x1000000000000000 | number)
    where = {table: number for number, table in enumerate(used)}
    for number, kind in (zero or {}).items():
        at = (gts + 64 * where[number // 4096]) * 512 + 8 * (number % 4096)
        struct.pack_into("<Q", out, at, kind << 60)
    for index, number in enumerate(sorted(grains)):
        at = (gts + 64 * where[number // 4096]) * 512 + 8 * (number % 4096)
        entry = 0x3 << 60 | (index & 0xFFF) << 48 | index >> 12
        struct.pack_into("<Q", out, at, entry)
        out += grains[number]
    return bytes(out)
