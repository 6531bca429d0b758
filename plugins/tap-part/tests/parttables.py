"""Partition tables made by hand: right ones, and wrong ones."""

import struct
import uuid
import zlib
from pathlib import Path

LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")


def mbr(*rows: tuple[int, int, int] | None, flag: int = 0, start: int = 0) -> bytes:
    """A sector with a table: (type, first sector, sectors) of up to four rows."""
    sector = bytearray(512)
    for n, row in enumerate(rows):
        if row is not None:
            struct.pack_into("<B3xB3xII", sector, 446 + 16 * n, flag, *row)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


class Gpt:
    """A disk image with a GPT, to be damaged before it is written.

    Args:
        size: bytes of the disk.
        unit: bytes of a sector.
        rows: (first sector, last sector, name).
    """

    def __init__(self, size: int, unit: int, *rows: tuple[int, int, str], entry: int = 128) -> None:
        self.unit, self.size = unit, size
        self.last = size // unit - 1
        self.entry = entry
        self.rows = bytearray(128 * entry)
        self.sectors = -(-len(self.rows) // unit)
        for n, (first, last, name) in enumerate(rows):
            self.put(n, first, last, name)
        self.protective = mbr((0xEE, 1, min(self.last, 0xFFFFFFFF)))
        self.wrong: dict[str, int] = {}

    def put(self, n: int, first: int, last: int, name: str = "") -> None:
        """A row."""
        row = struct.pack(
            "<16s16sQQQ72s",
            LINUX.bytes_le,
            uuid.UUID(int=n + 1).bytes_le,
            first,
            last,
            0,
            name.encode("utf-16-le"),
        )
        self.rows[n * self.entry : n * self.entry + len(row)] = row

    def header(self, place: int, other: int, table: int, *, rows: bytes | None = None) -> bytes:
        """A header with its checksums."""
        said = {
            "place": place,
            "other": other,
            "first": 2 + self.sectors,
            "last": self.last - 1 - self.sectors,
            "table": table,
            "count": 128,
            "size": self.entry,
            "checksum": zlib.crc32(self.rows if rows is None else rows),
            **self.wrong,
        }
        content = bytearray(
            struct.pack(
                "<8sIIIIQQQQ16sQIII",
                b"EFI PART",
                0x10000,
                92,
                0,
                0,
                said["place"],
                said["other"],
                said["first"],
                said["last"],
                uuid.UUID(int=77).bytes_le,
                said["table"],
                said["count"],
                said["size"],
                said["checksum"],
            )
        )
        struct.pack_into("<I", content, 16, zlib.crc32(content))
        return bytes(content).ljust(self.unit, b"\0")

    def write(self, path: Path, *, first: bool = True, second: bool = True) -> None:
        """As a file; with neither, one or both of the headers in their places."""
        with open(path, "wb") as file:
            file.truncate(self.size)
            file.write(self.protective)
            file.seek(2 * self.unit)
            file.write(self.rows)
            if first:
                file.seek(self.unit)
                file.write(self.header(1, self.last, 2))
            at = self.last - self.sectors
            file.seek(at * self.unit)
            file.write(self.rows)
            if second:
                file.seek(self.last * self.unit)
                file.write(self.header(self.last, 1, at))
