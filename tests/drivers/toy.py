"""A format that has everything: parents, options, snapshots, compression, bitmaps, a passphrase ...

The file is a 64 KiB header (JSON) and after it the disk's 4 KiB blocks, each at its place; the
header lists those that are stored, those that are stored "compressed" (which is only a mark), and
those that are zero here. A snapshot is a copy of the file beside it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

import tapcore
from tapcore import (
    BLK_NOT_ALLOCATED,
    TD_NO_PARENT,
    Bitmap,
    CheckResult,
    DiskDriver,
    DiskId,
    DiskInfo,
    Extent,
    Finding,
    FormatOption,
    ImageFormatError,
    Inspection,
    Measurement,
    Snapshot,
    UsageError,
    hookimpl,
    open_named_file,
)

HEAD = 64 << 10
BLOCK = 4096
SECTORS = BLOCK >> 9
CLUSTER = 4 * BLOCK


@attrs.define
class Toy:
    fd: int
    path: str
    head: dict[str, Any]
    writes: int = 0

    def save(self) -> None:
        if self.head.get("full"):
            raise OSError(28, "No space left on device")
        os.pwrite(self.fd, json.dumps(self.head).encode().ljust(HEAD), 0)

    def keep(self, blocks: Iterable[int], *lists: str) -> None:
        """These blocks are in these lists now, and in no other."""
        for name in ("blocks", "compressed", "zeroes"):
            held = set(self.head.setdefault(name, []))
            held = held | {*blocks} if name in lists else held - {*blocks}
            self.head[name] = sorted(held)
        self.save()


def read_head(fd: int) -> dict[str, Any]:
    try:
        head = json.loads(os.pread(fd, HEAD, 0))
        assert head["magic"] == "TOY"
    except (ValueError, KeyError, AssertionError):
        raise ImageFormatError("is not a toy image") from None
    return head  # type: ignore[no-any-return]


def head_of(path: str | Path) -> dict[str, Any]:
    """What an image's header says."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_head(fd)
    finally:
        os.close(fd)


def change_head(path: str | Path, **facts: object) -> None:
    """Write facts into an image's header."""
    head = head_of(path) | facts
    with open(path, "r+b") as file:
        file.write(json.dumps(head).encode().ljust(HEAD))


class ToyDriver:
    disk_info = DiskInfo(
        handle="toy",
        name="toy image",
        api=1,
        suffixes=(".toy",),
        create_options=(
            FormatOption("colour", "of the toy", ("red", "blue"), "red"),
            FormatOption("passphrase", "to be opened with"),
        ),
        amend_options=(FormatOption("colour", "of the toy", ("red", "blue")),),
    )

    def __init__(self) -> None:
        self.opened: list[tuple[str, int, tapcore.OpenOptions]] = []

    # ---- opening and making -------------------------------------------------------------------

    @hookimpl
    def td_probe(self, name: str, head: bytes, tail: bytes) -> bool:
        return head.startswith(b'{"magic": "TOY"')

    @hookimpl
    def td_create(
        self, name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
    ) -> None:
        head: dict[str, Any] = {
            "magic": "TOY",
            "size": size,
            "blocks": [],
            "options": dict(options),
        }
        if parent is not None:
            head |= {"parent": parent.name, "parent_handle": parent.drivertype}
        with open(name, "wb") as file:
            file.write(json.dumps(head).encode().ljust(HEAD))

    @hookimpl
    def td_open(self, dd: DiskDriver, name: str, flags: int) -> None:
        self.opened.append((name, flags, dd.options))
        if dd.options.snapshot:
            name = f"{name}.{self._find(head_of(name), dd.options.snapshot)['id']}"
        fd = os.open(name, os.O_RDONLY if flags & tapcore.TD_RDONLY else os.O_RDWR)
        try:
            dd.private = toy = Toy(fd, name, read_head(fd))
            self._unlock(dd, toy)
            if "data_file" in toy.head and not dd.options.metadata_only:
                open_named_file(dd, toy.head["data_file"], role="data file", flags=flags).close()
        except BaseException:
            os.close(fd)
            raise
        dd.size = toy.head["size"] >> 9
        dd.sector_size = BLOCK
        dd.cluster_size = CLUSTER

    @staticmethod
    def _unlock(dd: DiskDriver, toy: Toy) -> None:
        wanted = toy.head["options"].get("passphrase")
        if wanted is None or dd.options.metadata_only:
            return
        given = dd.options.keys.passphrase(dd.name)
        if given is None:
            raise UsageError("is encrypted; --key-file gives the passphrase")
        if given != wanted.encode():
            raise UsageError("the passphrase is wrong")

    @hookimpl
    def td_close(self, dd: DiskDriver) -> None:
        os.close(dd.private.fd)

    @hookimpl
    def td_get_parent_id(self, dd: DiskDriver, id: DiskId) -> int:
        if "parent" not in dd.private.head:
            return TD_NO_PARENT
        id.name = dd.private.head["parent"]
        id.drivertype = dd.private.head["parent_handle"]
        return 0

    @hookimpl
    def td_validate_parent(self, dd: DiskDriver, p: DiskDriver, flags: int) -> int:
        return 0

    @hookimpl
    def td_set_parent(self, dd: DiskDriver, parent: DiskId | None) -> None:
        toy = dd.private
        for name in ("parent", "parent_handle"):
            toy.head.pop(name, None)
        if parent is not None:
            toy.head |= {"parent": parent.name, "parent_handle": parent.drivertype}
        toy.save()

    # ---- requests -----------------------------------------------------------------------------

    @hookimpl
    def td_queue_read(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Any,
        id: int,
        prv: Any,
    ) -> int:
        toy, done = dd.private, 0
        blocks, zeroes = set(toy.head["blocks"]), set(toy.head.get("zeroes", ()))
        for at in range(sector, sector + nb_sectors, SECTORS):
            count = min(SECTORS, sector + nb_sectors - at)
            part = buf[(at - sector) << 9 : (at - sector + count) << 9]
            res = 0
            if at // SECTORS in blocks:
                os.preadv(toy.fd, [part], HEAD + (at << 9))
            elif at // SECTORS in zeroes:
                part[:] = bytes(len(part))
            else:
                res = BLK_NOT_ALLOCATED
            done += cb(dd, res, at, count, id, prv)
        return done

    @hookimpl
    def td_queue_write(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Any,
        id: int,
        prv: Any,
    ) -> int:
        return self._store(dd, sector, nb_sectors, buf, cb, id, prv, "blocks")

    @hookimpl
    def td_queue_write_compressed(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Any,
        id: int,
        prv: Any,
    ) -> int:
        assert sector % (CLUSTER >> 9) == 0
        return self._store(dd, sector, nb_sectors, buf, cb, id, prv, "blocks", "compressed")

    @staticmethod
    def _store(
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Any,
        id: int,
        prv: Any,
        *lists: str,
    ) -> int:
        toy = dd.private
        os.pwrite(toy.fd, buf, HEAD + (sector << 9))
        toy.writes += 1
        toy.keep(range(sector // SECTORS, -(-(sector + nb_sectors) // SECTORS)), *lists)
        return cb(dd, 0, sector, nb_sectors, id, prv)  # type: ignore[no-any-return]

    @hookimpl
    def td_queue_write_zeroes(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        may_unmap: bool,
        cb: Any,
        id: int,
        prv: Any,
    ) -> int:
        dd.private.keep(range(sector // SECTORS, -(-(sector + nb_sectors) // SECTORS)), "zeroes")
        return cb(dd, 0, sector, nb_sectors, id, prv)  # type: ignore[no-any-return]

    @hookimpl
    def td_extents(self, dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
        toy, at, end = dd.private, sector, sector + nb_sectors
        kinds = dict.fromkeys(toy.head.get("zeroes", ()), "zero")
        kinds |= dict.fromkeys(toy.head["blocks"], "data")
        kinds |= dict.fromkeys(toy.head.get("compressed", ()), "compressed")
        for block in sorted(kinds):
            lo, hi = max(block * SECTORS, at), min((block + 1) * SECTORS, end)
            if lo >= hi:
                continue
            if at < lo:
                yield Extent(at, lo - at, "unallocated")
            if kinds[block] == "data":
                yield Extent(lo, hi - lo, "data", toy.fd, toy.path, HEAD + (lo << 9))
            else:
                yield Extent(lo, hi - lo, kinds[block])  # type: ignore[arg-type]
            at = hi
        if at < end:
            yield Extent(at, end - at, "unallocated")

    # ---- the whole image ----------------------------------------------------------------------

    @hookimpl
    def td_info(self, dd: DiskDriver) -> dict[str, Any]:
        return {"colour": dd.private.head["options"].get("colour"), "label": "a\x1b[31mb"}

    @hookimpl
    def td_inspect(self, name: str, fd: int, size: int) -> Inspection:
        head = read_head(fd)
        references = (("parent", head["parent"]),) if "parent" in head else ()
        findings = (Finding("danger", "it bites"),) if head.get("bites") else ()
        return Inspection(head["size"], ("toy", "blocks"), references, findings)

    @hookimpl
    def td_check(self, dd: DiskDriver, repair: str) -> CheckResult:
        result = CheckResult(total_clusters=dd.size // SECTORS)
        result.allocated_clusters = len(dd.private.head["blocks"])
        stored = os.fstat(dd.private.fd).st_size - HEAD
        result.leaks = max(stored // BLOCK - max(dd.private.head["blocks"], default=-1) - 1, 0)
        if any(block * SECTORS >= dd.size for block in dd.private.head["blocks"]):
            result.corruptions = 1
            result.messages.append("a block lies past the end")
        if repair and result.leaks:
            os.ftruncate(dd.private.fd, HEAD + stored - result.leaks * BLOCK)
            result.leaks_fixed, result.leaks = result.leaks, 0
        return result

    @hookimpl
    def td_resize(self, dd: DiskDriver, size: int) -> None:
        toy = dd.private
        kept = range(-(-size // BLOCK))
        for name in ("blocks", "compressed", "zeroes"):
            toy.head[name] = [block for block in toy.head.get(name, ()) if block in kept]
        toy.head["size"] = size
        toy.save()
        dd.size = size >> 9

    @hookimpl
    def td_amend(self, dd: DiskDriver, options: Mapping[str, str]) -> None:
        dd.private.head["options"] |= options
        dd.private.save()

    @hookimpl
    def td_make_empty(self, dd: DiskDriver) -> None:
        dd.private.head |= {"blocks": [], "compressed": [], "zeroes": []}
        dd.private.save()

    # ---- snapshots and bitmaps ----------------------------------------------------------------

    @staticmethod
    def _find(head: dict[str, Any], name: str) -> dict[str, Any]:
        snapshots = head.get("snapshots", [])
        for field in ("id", "name"):
            for snapshot in snapshots:
                if snapshot[field] == name:
                    return snapshot  # type: ignore[no-any-return]
        raise UsageError(f"has no snapshot '{name}'")

    @hookimpl
    def td_snapshots(self, dd: DiskDriver) -> list[Snapshot]:
        return [Snapshot(**facts) for facts in dd.private.head.get("snapshots", [])]

    @hookimpl
    def td_snapshot_create(self, dd: DiskDriver, name: str) -> Snapshot:
        toy = dd.private
        snapshots = toy.head.setdefault("snapshots", [])
        number = max((int(s["id"]) for s in snapshots), default=0) + 1
        made: dict[str, Any] = {
            "id": str(number),
            "name": name,
            "date_sec": 1700000000,
            "disk_size": dd.size << 9,
        }
        shutil.copyfile(toy.path, f"{toy.path}.{number}")
        snapshots.append(made)
        toy.save()
        return Snapshot(**made)

    @hookimpl
    def td_snapshot_apply(self, dd: DiskDriver, name: str) -> None:
        toy = dd.private
        snapshots = toy.head["snapshots"]
        shutil.copyfile(f"{toy.path}.{self._find(toy.head, name)['id']}", toy.path)
        toy.head = read_head(toy.fd) | {"snapshots": snapshots}
        toy.save()
        dd.size = toy.head["size"] >> 9

    @hookimpl
    def td_snapshot_delete(self, dd: DiskDriver, name: str) -> None:
        toy = dd.private
        found = self._find(toy.head, name)
        toy.head["snapshots"].remove(found)
        toy.save()
        os.unlink(f"{toy.path}.{found['id']}")

    @hookimpl
    def td_bitmaps(self, dd: DiskDriver) -> list[Bitmap]:
        return [
            Bitmap(name, BLOCK, True, inconsistent=ranges is None)
            for name, ranges in dd.private.head.get("bitmaps", {}).items()
        ]

    @hookimpl
    def td_bitmap_ranges(self, dd: DiskDriver, name: str) -> Iterator[tuple[int, int]]:
        return (tuple(item) for item in dd.private.head["bitmaps"][name])

    # ---- without an image ---------------------------------------------------------------------

    @hookimpl
    def td_measure(
        self, size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
    ) -> Measurement:
        blocks = {
            block
            for start, length in data
            for block in range(start // BLOCK, -(-(start + length) // BLOCK))
        }
        return Measurement(HEAD + len(blocks) * BLOCK, HEAD + size)

    @hookimpl
    def td_stream(
        self,
        out: Callable[[Any], object],
        size: int,
        options: Mapping[str, str],
        pieces: Iterable[tuple[int, memoryview]],
    ) -> None:
        held = [(offset, bytes(content)) for offset, content in pieces]
        blocks = [
            block
            for offset, content in held
            for block in range(offset // BLOCK, -(-(offset + len(content)) // BLOCK))
        ]
        head: dict[str, Any] = {
            "magic": "TOY",
            "size": size,
            "blocks": blocks,
            "options": dict(options),
        }
        out(json.dumps(head).encode().ljust(HEAD))
        at = 0
        for offset, content in held:
            out(bytes(offset - at))
            out(content)
            at = offset + len(content)


# ---- for tests -------------------------------------------------------------------------------


def fill(image: str, *pieces: tuple[int, bytes]) -> None:
    """Write (offset, content) into an image."""
    with tapcore.open(image, readonly=False) as disk:
        for offset, data in pieces:
            disk.pwrite(offset, data)


def content(image: str) -> bytes:
    """All that an image reads as."""
    with tapcore.open(image, readonly=True) as disk:
        return disk.pread(0, length=disk.size)
