"""A format with all that a map can say, as small as it can be: for tests of `tapcore.clusters`.

Sector 0 is the header. The directory follows at 4096: where each table lies. A table maps 8
clusters of 4 KiB, by two numbers each: a place and flags, or the place and length of a compressed
cluster; and 8 bits that say which sectors (or all together) are stored, 8 more which are zeroes.
Which clusters of the file are free is counted when it is opened, and they are used again.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from tapcore import (
    TD_NO_PARENT,
    DiskDriver,
    DiskId,
    DiskInfo,
    ImageFile,
    ImageFormatError,
    create_host_file,
    hookimpl,
)
from tapcore.clusters import (
    DATA,
    HOLE,
    NOWHERE,
    PACKED,
    ZERO,
    Coding,
    DeflatedClusters,
    Numbers,
    PackingMap,
    Picture,
    Place,
    Read,
    Run,
    Table,
    TableCache,
    WritableClusters,
    WritableTableMap,
    open_mapped,
    td_close,
    td_do_callbacks,
    td_extents,
    td_queue_discard,
    td_queue_flush,
    td_queue_read,
    td_queue_write,
    td_queue_write_compressed,
    td_queue_write_zeroes,
    td_submit,
)

MAGIC = b"TOYMAP01"
HEADER = struct.Struct("<8sQBB100s")
SIZE = 4096
SECTORS = SIZE // 512
CLUSTERS = 8  # of a table
TABLE = 16 * CLUSTERS
CODING = Coding("Q", "little")

IS_PACKED = 1 << 63
SHARED = 1
ALL = 0xFF


def packed_place(token: int) -> tuple[int, int]:
    """Host offset and length, bytes."""
    return token & (1 << 48) - 1, token >> 48 & 0x7FFF


class Xor:
    """No cipher, but each sector is another one."""

    def encrypt(self, first_sector: int, data: bytes | bytearray | memoryview) -> bytes:
        out = bytearray(data)
        for at in range(0, len(out), 512):
            key = (first_sector + at // 512) * 37 + 11 & 0xFF
            out[at : at + 512] = bytes(byte ^ key for byte in out[at : at + 512])
        return bytes(out)

    decrypt = encrypt


class ToyMap(WritableTableMap[Table], PackingMap):
    """An open image."""

    reuses_space: ClassVar[bool] = True
    zeroes_in_place: ClassVar[bool] = False

    def __init__(self, dd: DiskDriver[Any], file: ImageFile) -> None:
        _, size, by_sectors, cipher, parent = HEADER.unpack(file.read_metadata(0, HEADER.size))
        super().__init__(file, size // 512, SIZE)
        self.parent = parent.rstrip(b"\0").decode()
        self.dd = dd
        self.table_shift = 6
        self.table_bytes = TABLE
        self.unit_shift = 0 if by_sectors else 3
        if cipher:
            self.cipher, self.encrypted = Xor(), True
            self.cipher_by_place = cipher == 2
        self.unpacker = DeflatedClusters(file, SIZE, packed_place)
        count = -(-self.sectors // (SECTORS * CLUSTERS))
        directory = Table(-1, SIZE, CODING.decode(file.read_metadata(SIZE, 8 * count)), CODING)
        budget = dd.options.metadata_cache
        self.tables = TableCache(file, self.read_table, TABLE, budget, directory)
        self.given_up: list[int] = []
        self.damage: list[str] = []
        self.end = -(-file.size // SIZE) * SIZE
        content = os.pread(file.fd, file.size, 0)
        used = {0, *range(SIZE, SIZE + 8 * count, SIZE), *places_in_use(content)}
        self.free = set(range(0, self.end, SIZE)) - used
        self.clusters = WritableClusters(dd, self)

    # ---- reading ----------------------------------------------------------------------------

    def table_place(self, index: int) -> int:
        directory = self.tables.directory
        assert directory is not None
        place = directory.entries[index]
        if index not in self.tables and (place % SIZE or place >= max(self.file.size, 1)):
            raise ImageFormatError(f"has an impossible table ({place:#x})", errno=errno.EIO)
        return place

    def run(self, sector: int, stop: int) -> Run | None:
        assert stop <= self.sectors, "asked for what lies behind the disk's end"
        return super().run(sector, stop)

    def read_table(self, index: int, read: Read) -> Table | None:
        place = self.table_place(index)
        content = read(place, TABLE)
        return None if content is None else Table(index, place, CODING.decode(content), CODING)

    def run_in(self, table: Table, sector: int, stop: int) -> Run:
        run = self._run_in_cluster(table, sector, stop)
        while run.end < stop and run.kind != PACKED:
            try:
                more = self._run_in_cluster(table, run.end, stop)
            except ImageFormatError:
                break
            where = run.where if run.where == NOWHERE else run.where + run.nb_sectors * 512
            if (more.kind, more.where, more.own) != (run.kind, where, run.own):
                break
            run = run._replace(nb_sectors=run.nb_sectors + more.nb_sectors)
        return run

    def _run_in_cluster(self, table: Table, sector: int, stop: int) -> Run:
        place, bits = self._entry(table, sector)
        skip = sector % SECTORS
        stop = min(stop, sector - skip + SECTORS)
        if place & IS_PACKED:
            return Run(PACKED, sector, stop - sector, place)
        own, place = not place & SHARED, place & ~SHARED
        if place % SIZE or (bits & ALL & bits >> 8) or (bits & ALL and not place):
            raise ImageFormatError("has an impossible entry", errno=errno.EIO)
        kind, end = self._kind(bits, skip), sector + 1
        while end < stop and self._kind(bits, end % SECTORS) == kind:
            end += 1
        where = place + skip * 512 if place else NOWHERE
        return Run(kind, sector, end - sector, where, own)

    @staticmethod
    def _kind(bits: int, number: int) -> int:
        if bits >> number & 1:
            return DATA
        return ZERO if bits >> 8 + number & 1 else HOLE

    def _entry(self, table: Table, sector: int) -> tuple[int, int]:
        at = sector // SECTORS % CLUSTERS * 2
        return table.entries[at], table.entries[at + 1]

    def found_damage(self, reason: str) -> None:
        self.damage.append(reason)

    # ---- writing ----------------------------------------------------------------------------

    def is_new(self, sector: int, stop: int) -> bool:
        table = self.tables.young.get(sector >> self.table_shift)
        at, count = sector // SECTORS % CLUSTERS * 2, (stop - sector) // SECTORS
        if table is None or not self.unit_shift or at + 2 * count > len(table.entries):
            return False
        return not any(table.entries[at : at + 2 * count])

    def allocate(self, sector: int, count: int) -> Place:
        if self.free:
            first = min(self.free)
            got = 1
            while got < count and first + got * SIZE in self.free:
                got += 1
            self.free.difference_update(range(first, first + got * SIZE, SIZE))
            return Place(first, got)
        self.end += count * SIZE
        return Place(self.end - count * SIZE, count, blank=True)

    def give_back(self, where: int, count: int) -> None:
        self.free.update(range(where, where + count * SIZE, SIZE))

    def _table(self, sector: int) -> Table:
        index = sector >> self.table_shift
        directory = self.tables.directory
        assert directory is not None
        if directory.entries[index]:
            return self.tables.wait(index)
        table = Table(index, self.allocate(sector, 1).where, CODING.zeroes(2 * CLUSTERS), CODING)
        self.tables.add(table)
        directory.set(index, [table.offset])
        return table

    def _set(self, sector: int, place: int, bits: int) -> None:
        table = self._table(sector)
        old, _ = self._entry(table, sector)
        if old & IS_PACKED:
            old = packed_place(old)[0]
        if not old & SHARED and old and old != place & ~SHARED:
            self.given_up.append(old)
        self.tables.set(table, sector // SECTORS % CLUSTERS * 2, [place, bits])

    def link(self, sector: int, stop: int, where: int) -> None:
        while sector < stop:
            until = min((sector | SECTORS - 1) + 1, stop)
            _, bits = self._entry(self._table(sector), sector)
            mask = (1 << until - sector) - 1 << sector % SECTORS
            bits = (bits | mask) & ~(mask << 8)
            self._set(sector, where - sector % SECTORS * 512, bits)
            where += (until - sector) * 512
            sector = until

    def clear(self, run: Run, *, discard: bool, may_unmap: bool) -> int:
        whole = min(SECTORS, self.sectors - run.sector // SECTORS * SECTORS)
        if run.kind == PACKED and run.nb_sectors < whole:
            return -errno.EOPNOTSUPP
        if run.kind == HOLE and discard:
            return 0
        sector = run.sector
        while sector < run.end:
            until = min((sector | SECTORS - 1) + 1, run.end)
            self._clear(sector, until, may_unmap=may_unmap)
            sector = until
        return 0

    def _clear(self, sector: int, until: int, *, may_unmap: bool) -> None:
        """Of one cluster."""
        place, bits = self._entry(self._table(sector), sector)
        end = (sector | SECTORS - 1) + 1 if until == self.sectors else until
        mask = (1 << end - sector) - 1 << sector % SECTORS & ALL
        bits = bits & ~mask | mask << 8
        if place & IS_PACKED or (may_unmap and bits == ALL << 8):
            place = 0
        self._set(sector, place, bits & 0xFFFF)

    def pack(self, content: bytes | memoryview) -> bytes:
        packer = zlib.compressobj(wbits=-12)
        return packer.compress(content) + packer.flush()

    def allocate_packed(self, sector: int, length: int) -> int:
        return self.allocate(sector, 1).where

    def give_back_packed(self, where: int, length: int) -> None:
        self.give_back(where, 1)

    def link_packed(self, sector: int, where: int, length: int) -> int:
        token = IS_PACKED | length << 48 | where
        self._set(sector, token, 0)
        return token

    def picture(self) -> Picture:
        taken = self.tables.take()
        given, self.given_up = self.given_up, []

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 1)
            if failed:
                self.given_up = given + self.given_up

        return Picture(
            [taken.fresh, taken.changed],
            conclude,
            end=self.end,
            holes=[(place, SIZE) for place in given],
            free=partial(self.free.update, given) if given else None,
        )


def tables_of(content: bytes) -> Iterable[Numbers]:
    """The tables of an image, by its content."""
    size = HEADER.unpack_from(content)[1]
    count = -(-size // (SIZE * CLUSTERS))
    for offset in CODING.decode(content[SIZE : SIZE + 8 * count]):
        if offset:
            yield CODING.decode(content[offset : offset + TABLE].ljust(TABLE, b"\0"))


def places_in_use(content: bytes) -> list[int]:
    """Of tables and content, once for each reference but those to shared content."""
    size = HEADER.unpack_from(content)[1]
    count = -(-size // (SIZE * CLUSTERS))
    found = [offset for offset in CODING.decode(content[SIZE : SIZE + 8 * count]) if offset]
    for entries in tables_of(content):
        for place in filter(None, entries[::2]):
            found.append(packed_place(place)[0] if place & IS_PACKED else place & ~SHARED)
    return found


def inconsistent(content: bytes) -> list[str]:
    """What is wrong with an image, by its content."""
    places = places_in_use(content)
    twice = len(places) - len(set(places))
    odd = [each for each in places if each % SIZE or each < 2 * SIZE or each >= len(content)]
    return [f"{twice} places are used twice"] * bool(twice) + [f"odd places {odd}"] * bool(odd)


def share_all(path: str) -> None:
    """As a snapshot would: nothing that is stored plain is the disk's own any more."""
    with open(path, "r+b") as file:
        content = file.read()
        size = HEADER.unpack_from(content)[1]
        count = -(-size // (SIZE * CLUSTERS))
        for offset in filter(None, CODING.decode(content[SIZE : SIZE + 8 * count])):
            entries = CODING.decode(content[offset : offset + TABLE])
            for at in range(0, len(entries), 2):
                if entries[at] and not entries[at] & IS_PACKED:
                    entries[at] |= SHARED
            file.seek(offset)
            file.write(CODING.encode(entries))


class ToyMapDriver:
    """The driver; `-o units=sectors`, `-o cipher=disk`, `-o cipher=place`."""

    disk_info = DiskInfo(handle="toymap", name="all that a map can say", api=1)

    td_close = staticmethod(td_close)
    td_do_callbacks = staticmethod(td_do_callbacks)
    td_extents = staticmethod(td_extents)
    td_queue_discard = staticmethod(td_queue_discard)
    td_queue_flush = staticmethod(td_queue_flush)
    td_queue_read = staticmethod(td_queue_read)
    td_queue_write = staticmethod(td_queue_write)
    td_queue_write_compressed = staticmethod(td_queue_write_compressed)
    td_queue_write_zeroes = staticmethod(td_queue_write_zeroes)
    td_submit = staticmethod(td_submit)

    @hookimpl
    def td_open(self, dd: "DiskDriver[ToyMap]", name: str, flags: int) -> None:
        open_mapped(dd, name, flags, ToyMap)

    @hookimpl
    def td_create(
        self, name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
    ) -> None:
        assert size is not None
        create(name, size, parent, **options)

    @hookimpl
    def td_get_parent_id(self, dd: DiskDriver[Any], id: DiskId) -> int:
        if not dd.private.parent:
            return TD_NO_PARENT
        id.drivertype, _, id.name = dd.private.parent.partition(":")
        return 0

    @hookimpl
    def td_validate_parent(self, dd: DiskDriver[Any], p: DiskDriver, flags: int) -> int:
        return 0

    @hookimpl
    def td_probe(self, name: str, head: bytes, tail: bytes) -> bool:
        return head.startswith(MAGIC)


def create(
    name: str, size: int, parent: DiskId | None = None, *, units: str = "", cipher: str = ""
) -> None:
    """A new image of `size` bytes."""
    create_host_file(name, SIZE + -(-8 * -(-size // (SIZE * CLUSTERS)) // SIZE) * SIZE)
    kinds = ("", "disk", "place")
    with open(name, "r+b") as file:
        recorded = str(parent).encode() if parent else b""
        file.write(HEADER.pack(MAGIC, size, units == "sectors", kinds.index(cipher), recorded))
