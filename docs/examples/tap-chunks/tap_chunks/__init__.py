"""Chunked sparse images: 64 KiB chunks, stored in the order in which they were first written.

The file consists of slots of 64 KiB. Slot 0 begins with the magic, the disk's size in bytes, and
the parent as "handle:name". The table follows in slot 1 and later: for each chunk the number of
its slot, or 0 for a hole. Numbers are little-endian.
"""

import struct
from collections.abc import Iterator, Mapping

import tapcore

CHUNK = 64 << 10
HEADER = struct.Struct("<8sQ1024s")
LARGEST = 1 << 40


def slots(size: int) -> int:
    return -(-size // CHUNK)


class Chunks(tapcore.SimpleDriver):
    handle, title, api = "chunks", "chunked sparse image, the simple way", 1
    suffixes, magic, block_size = (".chunks",), b"TAPCHKSI", CHUNK

    def open(self) -> None:
        _, self.size, parent = HEADER.unpack(self.read(0, HEADER.size))
        self.recorded: str = parent.rstrip(b"\0").decode(errors="replace")
        self.first = 1 + slots(4 * slots(self.size))  # slot after the table
        self.end = slots(self.file.size)
        self.unsaved: dict[int, int] = {}
        if not self.probe(self.read(0, 8)) or self.size % 512 or self.size > LARGEST:
            raise tapcore.ImageFormatError("is not a chunk image, or its header is damaged")
        count = slots(self.size)
        self.table = list(struct.unpack(f"<{count}I", self.read(CHUNK, 4 * count)))
        used = [slot for slot in self.table if slot]
        if len(set(used)) < len(used) or any(not self.first <= s < self.end for s in used):
            raise tapcore.ImageFormatError("has a damaged table")

    def pread(self, offset: int, length: int) -> bytes | None:
        slot = self.table[offset // CHUNK]
        return self.read(slot * CHUNK, length) if slot else None

    def pwrite(self, offset: int, data: memoryview) -> None:
        slot = self.table[offset // CHUNK] or self.end
        self.write(slot * CHUNK, bytes(data).ljust(CHUNK, b"\0"))
        if slot == self.end:
            self.table[offset // CHUNK] = self.unsaved[offset // CHUNK] = slot
            self.end += 1

    def flush(self) -> None:
        self.sync()  # the chunks first, then the entries that name them
        for chunk, slot in self.unsaved.items():
            self.write(CHUNK + 4 * chunk, slot.to_bytes(4, "little"))
        self.sync()
        self.unsaved.clear()

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, str]]:
        end = offset + length
        while offset < end:
            until = min(offset - offset % CHUNK + CHUNK, end)
            yield until - offset, "data" if self.table[offset // CHUNK] else "hole"
            offset = until

    def parent(self) -> str:
        return self.recorded

    @classmethod
    def create(cls, name: str, size: int | None, parent: str, options: Mapping[str, str]) -> None:
        if size is None or size > LARGEST or len(parent.encode()) > 1024:
            raise tapcore.UsageError("needs a size up to 1 TiB, and a shorter name of the parent")
        tapcore.create_host_file(name, (1 + slots(4 * slots(size))) * CHUNK)
        with open(name, "r+b") as file:
            file.write(HEADER.pack(cls.magic, size, parent.encode()))
