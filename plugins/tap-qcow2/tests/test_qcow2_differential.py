"""tapcore and QEMU work on the same image in turn, and agree with a model, and with each other.

After every close `qemu-img check` finds neither leaks nor errors, both read what was written, and
both say the same of where it lies.
"""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from qcow2tools import (
    MIB,
    assert_clean,
    content_by_qemu,
    convert,
    create,
    qemu_img,
    qemu_io,
    source_content,
)
from tapcore.tools.map import map_disk

SECTOR = 512


@attrs.define(slots=False)
class Pair:
    """An image and what it should hold.

    Attributes:
        image: the file.
        model: content of the disk.
        below: content of the parent, padded to the disk; None without one.
        unsure: sectors that were discarded: what they may hold.
    """

    image: Path
    rng: random.Random
    model: bytearray
    below: bytes | None = None
    unsure: dict[int, set[bytes]] = attrs.field(factory=dict)

    # ---- both sides -------------------------------------------------------------------------

    def round(self, operations: int, *, mine: bool) -> None:
        """Some operations by one side, closed, and looked at."""
        if mine:
            with tapcore.open(f"qcow2:{self.image}", readonly=False) as disk:
                self._mine(disk, operations)
        else:
            qemu_io(self.image, *(self._theirs() for _ in range(operations)))
        self.check()

    def _range(self, unit: int) -> tuple[int, int]:
        size = len(self.model)
        unit = self.rng.choice((unit, unit, SECTOR, 4096, 65536))
        at = self.rng.randrange(size // unit + 1) * unit
        at = min(at, size - SECTOR)
        most = max(self.rng.choice((unit, 8 * unit, 200 << 10)) // unit, 1)
        return at, min(self.rng.randint(1, most) * unit, size - at)

    def _mine(self, disk: tapcore.Disk, operations: int) -> None:
        for _ in range(operations):
            what = self.rng.choice(("write", "write", "bytes", "zero", "keep", "discard", "sync"))
            at, length = self._range(SECTOR)
            if what == "write":
                content = self.rng.randbytes(length)
                disk.pwrite(at, content, fua=self.rng.random() < 0.1)
                self._wrote(at, content)
            elif what == "bytes":
                at += self.rng.randrange(SECTOR)
                content = self.rng.randbytes(min(self.rng.randint(1, 3000), len(self.model) - at))
                self._settle(disk, at, len(content))
                disk.pwrite(at, content)
                self._wrote(at, content)
            elif what == "discard":
                disk.discard(at, length=length)
                self._discarded(at, length)
            elif what == "sync":
                disk.sync()
            else:
                disk.zero(at, length=length, unmap=what == "zero")
                self._wrote(at, bytes(length))

    def _theirs(self) -> str:
        what = self.rng.choice(("write", "write", "write -z", "write -z -u", "discard", "flush"))
        if what == "flush":
            return what
        at, length = self._range(SECTOR)
        if what == "discard":
            self._discarded(at, length)
        elif what == "write":
            byte = self.rng.randint(1, 255)
            self._wrote(at, bytes([byte]) * length)
            what = f"write -P {byte}"
        else:
            self._wrote(at, bytes(length))
        return f"{what} {at} {length}"

    # ---- the model --------------------------------------------------------------------------

    def _wrote(self, at: int, content: bytes) -> None:
        self.model[at : at + len(content)] = content
        for sector in range(at // SECTOR, -(-(at + len(content)) // SECTOR)):
            self.unsure.pop(sector, None)

    def _settle(self, disk: tapcore.Disk, at: int, length: int) -> None:
        """A part of a sector is going to be written: know the rest of it."""
        for sector in range(at // SECTOR, -(-(at + length) // SECTOR)):
            if sector in self.unsure:
                self._decide(sector, disk.pread(sector * SECTOR, length=SECTOR))

    def _discarded(self, at: int, length: int) -> None:
        for sector in range(at // SECTOR, (at + length) // SECTOR):
            start = sector * SECTOR
            allowed = self.unsure.setdefault(sector, set())
            allowed |= {bytes(self.model[start : start + SECTOR]), bytes(SECTOR)}
            if self.below is not None:
                allowed.add(self.below[start : start + SECTOR])

    def _decide(self, sector: int, content: bytes) -> None:
        assert content in self.unsure.pop(sector), f"discarded sector {sector}: {content[:8].hex()}"
        self.model[sector * SECTOR : (sector + 1) * SECTOR] = content

    # ---- judgement --------------------------------------------------------------------------

    def check(self) -> None:
        """The image is closed: consistent, and the same for both sides."""
        assert_clean(self.image)
        content = content_by_qemu(self.image)
        for sector in list(self.unsure):
            self._decide(sector, content[sector * SECTOR : (sector + 1) * SECTOR])
        self._compare(content, "QEMU")
        with tapcore.open(f"qcow2:{self.image}", readonly=True) as disk:
            self._compare(disk.pread(0, length=disk.size), "tapcore")
            mine = [item.as_dict(str(self.image)) for item in map_disk(disk)]
        theirs = json.loads(qemu_img("map", "--output=json", "-f", "qcow2", self.image))
        assert comparable(mine) == comparable(theirs)

    def _compare(self, content: bytes, who: str) -> None:
        assert len(content) == len(self.model)
        if content == self.model:
            return
        at = next(
            n
            for n in range(0, len(content), SECTOR)
            if content[n : n + SECTOR] != self.model[n : n + SECTOR]
        )
        got, want = content[at : at + 8].hex(), self.model[at : at + 8].hex()
        raise AssertionError(f"{who} reads {got} in sector {at // SECTOR} instead of {want}")


def comparable(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A map as it can be compared.

    QEMU tells the place of unallocated subclusters in a cluster that has one, where there is
    nothing to be found; and if much of the image file is holes, it tells which parts of data
    clusters are (data that is zero). Both split runs that are one run here.
    """
    found: list[dict[str, Any]] = []
    for item in items:
        kept = {key: item[key] for key in ("start", "length", "depth", "present", "zero", "data")}
        if item["present"] and "offset" in item:
            kept["offset"] = item["offset"]
        if item["data"]:
            kept["zero"] = False
        if found and _goes_on(found[-1], kept):
            found[-1]["length"] += kept["length"]
        else:
            found.append(kept)
    return found


def _goes_on(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if any(one[key] != other[key] for key in ("depth", "present", "zero", "data")):
        return False
    if "offset" in one and "offset" in other:
        return bool(one["offset"] + one["length"] == other["offset"])
    return "offset" not in one and "offset" not in other


# ---- kinds of images ---------------------------------------------------------------------------

SIZE = 3 * MIB + 5 * SECTOR

Maker = Callable[[Path, random.Random], Pair]


def plain(**options: Any) -> Maker:
    """A new image; `size` among the options is the disk's."""
    size = int(str(options.pop("size", SIZE)))

    def make(folder: Path, rng: random.Random) -> Pair:
        image = create(folder / "disk.qcow2", size, **options)
        return Pair(image, rng, bytearray(size))

    return make


def converted(**options: Any) -> Maker:
    """An image full of compressed clusters."""

    def make(folder: Path, rng: random.Random) -> Pair:
        raw = folder / "source.raw"
        raw.write_bytes(source_content(rng, SIZE))
        image = convert(raw, folder / "disk.qcow2", compress=True, **options)
        return Pair(image, rng, bytearray(raw.read_bytes()))

    return make


def child(form: str, parent_size: int, parent_options: Mapping[str, Any], **more: Any) -> Maker:
    """An image over a parent of a format and of another size."""

    def make(folder: Path, rng: random.Random) -> Pair:
        content = source_content(rng, parent_size)
        raw = folder / "source.raw"
        raw.write_bytes(content)
        parent = folder / f"parent.{form}"
        words = [f"-o{name}={value}" for name, value in parent_options.items()]
        qemu_img("convert", "-f", "raw", "-O", form, *words, raw, parent)
        image = create(folder / "disk.qcow2", SIZE, parent=parent.name, form=form, **more)
        below = content[:SIZE].ljust(SIZE, b"\0")
        return Pair(image, rng, bytearray(below), below)

    return make


KINDS: dict[str, Maker] = {
    "default": plain(),
    "512": plain(cluster_size=512),
    "1024-refcount-1": plain(cluster_size=1024, refcount_bits=1),
    "512-refcount-64": plain(cluster_size=512, refcount_bits=64),
    "4096-refcount-2": plain(cluster_size=4096, refcount_bits=2),
    "4096-refcount-4": plain(cluster_size=4096, refcount_bits=4),
    "2M": plain(cluster_size=2 * MIB, size=9 * MIB),
    "v2": plain(compat="0.10"),
    "v2-4096": plain(compat="0.10", cluster_size=4096),
    "lazy": plain(lazy_refcounts="on", cluster_size=8192),
    "extended": plain(extended_l2="on"),
    "extended-16384": plain(extended_l2="on", cluster_size=16384),
    "extended-2M": plain(extended_l2="on", cluster_size=2 * MIB, size=9 * MIB),
    "preallocated": plain(preallocation="metadata"),
    "preallocated-full": plain(preallocation="full", cluster_size=4096),
    "data-file": plain(data_file="disk.data"),
    "data-file-4096": plain(data_file="disk.data", cluster_size=4096),
    "data-file-raw": plain(data_file="disk.data", data_file_raw="on"),
    "data-file-extended": plain(data_file="disk.data", extended_l2="on", cluster_size=16384),
    "zlib": converted(),
    "zlib-512": converted(cluster_size=512),
    "zstd-4096": converted(compression_type="zstd", cluster_size=4096),
    "zlib-extended": converted(extended_l2="on", cluster_size=16384),
    "over-longer-raw": child("raw", SIZE + MIB, {}),
    "over-shorter-raw": child("raw", SIZE - MIB - 512, {}, cluster_size=4096),
    "over-shorter-raw-v2": child("raw", SIZE - MIB - 512, {}, compat="0.10", cluster_size=4096),
    "over-shorter-qcow2": child("qcow2", SIZE - MIB, {"cluster_size": 512}),
    "over-vmdk": child("vmdk", SIZE - 2 * MIB, {}, cluster_size=8192),
    "over-split-vmdk": child("vmdk", SIZE + MIB, {"subformat": "twoGbMaxExtentSparse"}),
    "over-compressed-vmdk": child("vmdk", SIZE, {"subformat": "streamOptimized"}),
    "over-qcow1": child("qcow", SIZE - 512, {}, cluster_size=512),
    "over-qcow2-of-2M": child("qcow2", SIZE, {"cluster_size": 2 * MIB}, cluster_size=512),
    "extended-over-qcow2": child("qcow2", SIZE - 512, {"cluster_size": 4096}, extended_l2="on"),
    "lazy-over-extended": child("qcow2", SIZE, {"extended_l2": "on"}, lazy_refcounts="on"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_in_turn(kind: str, tmp_path: Path, rng: random.Random) -> None:
    pair = KINDS[kind](tmp_path, rng)
    for number in range(3):
        pair.round(rng.choice((1, 6, 14)), mine=number % 2 == 0)


@pytest.mark.parametrize("kind", ["default", "512", "extended-16384"])
def test_a_chain_of_children_written_in_turn(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """A child on the image of each round; the last shows what all together show."""
    pair = KINDS[kind](tmp_path, rng)
    for number in range(4):
        pair.round(8, mine=number % 2 == 0)
        below = bytes(pair.model)
        image = tmp_path / f"child{number}.qcow2"
        options = rng.choice(CHILDREN)
        create(image, len(below), parent=pair.image.name, **options)
        pair = Pair(image, rng, bytearray(below), below)
    pair.round(8, mine=True)


@pytest.mark.parametrize("kind", ["default", "512", "v2-4096", "extended-16384", "zlib"])
def test_resized_in_turn(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """Grown past the end of its L1 table and cut again; what we grow by is zeroes."""
    pair = KINDS[kind](tmp_path, rng)
    for number in range(6):
        mine = number % 2 == 0
        old = len(pair.model)
        new = rng.choice(
            (old + 512 * rng.randint(1, 5000), max(old - 512 * rng.randint(1, 5000), 512))
        )
        if mine:
            with tapcore.open(f"qcow2:{pair.image}", readonly=False) as disk:
                disk.resize(new)
                assert disk.size == new
        else:
            qemu_img("resize", "-q", "-f", "qcow2", "--shrink", pair.image, new)
        pair.model = pair.model[:new] + bytes(max(new - old, 0))
        if not mine:  # QEMU leaves what lay in the rest of the last cluster before it was cut
            end = min(-(-old // 65536) * 65536, new)
            pair.model[old:end] = content_by_qemu(pair.image)[old:end]
        pair.check()
        pair.round(5, mine=rng.random() < 0.5)


@pytest.mark.parametrize(
    "kind",
    ["default", "512", "4096-refcount-4", "v2-4096", "lazy", "extended-16384", "zlib-512"],
)
def test_snapshots_in_turn(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """Made, applied and deleted by both sides; each shows what the disk held."""
    pair = KINDS[kind](tmp_path, rng)
    kept: dict[str, bytes] = {}
    for number in range(4 if kind == "zlib-512" else 7):  # which are slow to write
        mine = rng.random() < 0.5
        what = rng.choice(("create", "create", "apply", "delete"))
        if what == "create" and len(kept) < 2:
            kept[f"s{number}"] = bytes(pair.model)
            _snapshot(pair.image, what, f"s{number}", mine=mine)
        elif kept and what != "create":
            name = rng.choice(list(kept))
            _snapshot(pair.image, what, name, mine=mine)
            if what == "apply":
                pair.model[:] = kept[name]
            else:
                del kept[name]
        pair.check()
        pair.round(4, mine=rng.random() < 0.5)
    for name, content in kept.items():
        assert content_by_qemu(pair.image, snapshot=name) == content
        with tapcore.open(f"qcow2:{pair.image}", readonly=True, snapshot=name) as disk:
            assert disk.pread(0, length=disk.size) == content
            assert [snapshot.name for snapshot in disk.snapshots()] == list(kept)
    for name in kept:
        _snapshot(pair.image, "delete", name, mine=rng.random() < 0.5)
    pair.check()


def _snapshot(image: Path, what: str, name: str, *, mine: bool) -> None:
    if mine:
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            dd = disk.state.disks
            getattr(dd.drv, f"td_snapshot_{what}")(dd, name)
    else:
        flag = {"create": "-c", "apply": "-a", "delete": "-d"}[what]
        qemu_img("snapshot", flag, name, image)


CHILDREN: tuple[dict[str, Any], ...] = (
    {},
    {"cluster_size": 4096},
    {"extended_l2": "on"},
    {"compat": "0.10"},
)
HUGE: dict[str, tuple[int, dict[str, Any]]] = {
    "17T": (17 << 40, {}),
    "1T-of-2048": (1 << 40, {"cluster_size": 2048}),
    "16T-extended": ((16 << 40) + 512, {"extended_l2": "on", "cluster_size": 2 * MIB}),
    "32P-of-2M": (1 << 55, {"cluster_size": 2 * MIB}),
    "6T-v2": (6 << 40, {"compat": "0.10", "cluster_size": 131072}),
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_disks_in_turn(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """Anywhere, and at the very end; each side reads what the other has written."""
    size, options = HUGE[kind]
    image = create(tmp_path / "disk.qcow2", size, **options)
    places: dict[int, int] = {}
    for number in range(2):
        new = [size - 4096 * (number + 1), *(rng.randrange(size) & -4096 for _ in range(4))]
        patterns = {at: rng.randint(1, 255) for at in new}
        places |= patterns
        if number % 2:
            qemu_io(image, *(f"write -P {byte} {at} 4096" for at, byte in patterns.items()))
        else:
            with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
                for at, byte in patterns.items():
                    disk.pwrite(at, bytes([byte]) * 4096)
        assert_clean(image)
        qemu_io(image, *(f"read -P {byte} {at} 4096" for at, byte in places.items()))
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            for at, byte in places.items():
                assert disk.pread(at, length=4096) == bytes([byte]) * 4096
    middle = 200 << 30
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.zero(0, length=middle)
        disk.discard(middle, length=size - middle)
    assert_clean(image)
    qemu_io(image, f"read -P 0 {middle - MIB} 1M", f"read -P 0 {size - 512} 512")
