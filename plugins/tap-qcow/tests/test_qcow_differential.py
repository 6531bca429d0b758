"""tapcore and QEMU work on the same images in turn, and always see the same disk."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from qcowtools import (
    KIB,
    MIB,
    PASSPHRASE,
    SECRET,
    convert_compressed,
    qemu_content,
    qemu_img,
    qemu_io,
    qemu_map,
    run,
    some_content,
    walk,
)
from tap_qcow import layout
from tap_qcow.create import l1_end, write_image
from tap_qcow.header import HEADER, Header
from tapcore.tools.map import map_disk

SIZE = 3 * MIB + 3 * 512


@attrs.define
class Pair:
    """One image, and the model of its disk.

    Attributes:
        image: its file.
        model: what it should hold.
        rng: decides.
        encrypted: with `PASSPHRASE`.
        unit: QEMU writes whole ones of it (bytes); it does not copy from a parent.
    """

    image: Path
    model: bytearray
    rng: random.Random
    encrypted: bool = False
    unit: int = 512

    def open(self, *, readonly: bool = False) -> tapcore.Disk:
        keys = PASSPHRASE if self.encrypted else None
        return tapcore.open(f"qcow:{self.image}", readonly=readonly, keys=keys)

    def turns(self, count: int = 4) -> None:
        """Both work, one after the other; after each, both look."""
        for turn in range(count):
            if turn % 2:
                self._theirs()
            else:
                self._mine()
            self.check()

    def _place(self, unit: int, most: int) -> tuple[int, int]:
        size = len(self.model)
        at = self.rng.randrange(size) // unit * unit
        length = self.rng.choice((unit, 8 * unit, self.rng.randint(1, most)))
        return at, min(-(-length // unit) * unit, size - at)

    def _mine(self) -> None:
        with self.open() as disk:
            for _ in range(20):
                at, length = self._place(self.rng.choice((1, 512, 4096)), 200 * KIB)
                what = self.rng.choice(("write", "write", "write", "zero", "sync"))
                if what == "write":
                    content = self.rng.randbytes(length)
                    disk.pwrite(at, content)
                    self.model[at : at + length] = content
                elif what == "zero":
                    disk.zero(at, length=length, unmap=self.rng.random() < 0.5)
                    self.model[at : at + length] = bytes(length)
                else:
                    disk.sync()

    def _theirs(self) -> None:
        commands = []
        for _ in range(15):  # QEMU syncs its tables for each new cluster
            at, length = self._place(self.unit, 30 * KIB)
            byte = self.rng.randrange(256)
            commands.append(f"write -P {byte} {at} {length}")
            self.model[at : at + length] = bytes([byte]) * length
        qemu_io(self.image, commands, encrypted=self.encrypted)

    def check(self) -> None:
        """The image is closed; both read what the model holds, and the tables make sense."""
        assert walk(self.image.read_bytes()).problems == []
        assert qemu_content(self.image, encrypted=self.encrypted) == self.model
        with self.open(readonly=True) as disk:
            assert disk.pread(0, length=disk.size) == self.model
            mine = [item.as_dict(str(self.image)) for item in map_disk(disk)]
        if not self.encrypted:
            assert comparable(mine) == comparable(qemu_map(self.image))


def comparable(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A map with neighbours joined.

    QEMU says of data of a raw parent where there are holes only if much of the file is; that a
    cluster which tapcore has zeroed is a hole of the file it does not say.
    """
    found: list[dict[str, Any]] = []
    for item in items:
        last = found[-1] if found else None
        kept = {
            key: item.get(key) for key in ("start", "length", "depth", "zero", "data", "offset")
        }
        if kept["depth"]:
            kept["offset"] = None
        same = last is not None and all(last[key] == kept[key] for key in ("depth", "zero", "data"))
        if last is not None and same and _goes_on(last, kept):
            last["length"] += kept["length"]
        else:
            found.append(kept)
    return found


def _goes_on(last: dict[str, Any], item: dict[str, Any]) -> bool:
    if last["offset"] is None or item["offset"] is None:
        return last["offset"] is item["offset"]
    return bool(last["offset"] + last["length"] == item["offset"])


# ---- kinds of images ---------------------------------------------------------------------------

Maker = Callable[[Path, random.Random], Pair]


def made_by_qemu(folder: Path, rng: random.Random) -> Pair:
    qemu_img("create", "-q", "-f", "qcow", folder / "disk.qcow", SIZE)
    return Pair(folder / "disk.qcow", bytearray(SIZE), rng)


def made_by_tapcore(folder: Path, rng: random.Random) -> Pair:
    tapcore.create_image(f"qcow:{folder / 'disk.qcow'}", SIZE)
    return Pair(folder / "disk.qcow", bytearray(SIZE), rng)


def with_geometry(cluster_bits: int, l2_bits: int) -> Maker:
    def make(folder: Path, rng: random.Random) -> Pair:
        header = Header(layout.Geometry(cluster_bits, l2_bits), SIZE, l1_offset=HEADER.size)
        write_image(str(folder / "disk.qcow"), header, l1_end(header))
        return Pair(folder / "disk.qcow", bytearray(SIZE), rng)

    return make


def child_of(form: str, size: int = SIZE, *, by_qemu: bool = False) -> Maker:
    """On a parent of another program's making, which may be shorter or longer."""

    def make(folder: Path, rng: random.Random) -> Pair:
        below = some_content(rng, size)
        (folder / "raw").write_bytes(below)
        parent = folder / f"parent.{form}"
        qemu_img("convert", "-f", "raw", "-O", form, folder / "raw", parent)
        image = folder / "disk.qcow"
        if by_qemu:
            words = ["-f", "qcow", "-b", parent.name, "-F", form]
            qemu_img("create", "-q", *words, image, SIZE)
        else:
            tapcore.create_image(f"qcow:{image}", SIZE, parent=f"{_handle(form)}:{parent.name}")
        return Pair(image, bytearray(below[:SIZE].ljust(SIZE, b"\0")), rng)

    return make


def _handle(form: str) -> str:
    return "aio" if form == "raw" else form


def child_with_large_clusters(folder: Path, rng: random.Random) -> Pair:
    """Nobody makes such; QEMU reads them, and may write whole clusters."""
    below = some_content(rng, SIZE)
    (folder / "parent.raw").write_bytes(below)
    header = Header(layout.Geometry(14, 6), SIZE, l1_offset=4096)
    header.backing_file, header.backing_offset = "parent.raw", HEADER.size
    write_image(str(folder / "disk.qcow"), header, l1_end(header))
    return Pair(folder / "disk.qcow", bytearray(below), rng, unit=1 << 14)


def encrypted(*, by_qemu: bool, parent: bool = False) -> Maker:
    def make(folder: Path, rng: random.Random) -> Pair:
        image, model = folder / "disk.qcow", bytearray(SIZE)
        if parent:
            model = bytearray(some_content(rng, SIZE))
            (folder / "parent.raw").write_bytes(model)
        key_file = folder / "key"
        key_file.write_bytes(PASSPHRASE + b"\n")
        if by_qemu:
            words: list[object] = ["-o", "encrypt.format=aes,encrypt.key-secret=key"]
            if parent:
                words += ["-b", "parent.raw", "-F", "raw"]
            qemu_img("create", "-q", *SECRET, "-f", "qcow", *words, image, SIZE)
        else:
            options = {"encrypt.format": "aes", "encrypt.key-file": str(key_file)}
            named = "aio:parent.raw" if parent else ""
            tapcore.create_image(f"qcow:{image}", SIZE, parent=named, options=options)
        return Pair(image, model, rng, encrypted=True)

    return make


def compressed(*, by_qemu: bool, cluster_bits: int = 12) -> Maker:
    def make(folder: Path, rng: random.Random) -> Pair:
        content = some_content(rng, SIZE)
        image = folder / "disk.qcow"
        if by_qemu:
            (folder / "raw").write_bytes(content)
            convert_compressed(folder / "raw", image)
        else:
            header = Header(layout.Geometry(cluster_bits, 9), SIZE, l1_offset=HEADER.size)
            write_image(str(image), header, l1_end(header))
            with tapcore.open(f"qcow:{image}", readonly=False) as disk:
                unit = max(64 * KIB, 1 << cluster_bits)
                for at in range(0, SIZE, unit):
                    piece = content[at : at + unit]
                    if any(piece):
                        disk.write_compressed(at, piece)
        assert walk(image.read_bytes()).compressed > 20
        return Pair(image, bytearray(content), rng)

    return make


MAKERS: dict[str, Maker] = {
    "made by QEMU": made_by_qemu,
    "made by tapcore": made_by_tapcore,
    "512 B clusters, small tables": with_geometry(9, 6),
    "64 KiB clusters, large tables": with_geometry(16, 13),
    "child of raw": child_of("raw"),
    "child of raw, made by QEMU": child_of("raw", by_qemu=True),
    "child of qcow2": child_of("qcow2"),
    "child of qcow": child_of("qcow"),
    "child of a shorter parent": child_of("raw", 2 * MIB + 512),
    "child of a longer parent": child_of("raw", 5 * MIB),
    "child with large clusters": child_with_large_clusters,
    "encrypted by QEMU": encrypted(by_qemu=True),
    "encrypted by tapcore": encrypted(by_qemu=False),
    "encrypted child, made by QEMU": encrypted(by_qemu=True, parent=True),
    "encrypted child": encrypted(by_qemu=False, parent=True),
    "compressed by QEMU": compressed(by_qemu=True),
    "compressed by tapcore": compressed(by_qemu=False),
    "compressed, 64 KiB clusters": compressed(by_qemu=False, cluster_bits=16),
    "compressed, 512 B clusters": compressed(by_qemu=False, cluster_bits=9),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_both_see_the_same_disk(kind: str, tmp_path: Path, rng: random.Random) -> None:
    pair = MAKERS[kind](tmp_path, rng)
    pair.check()
    pair.turns()


# ---- single things -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 64 * KIB, 2 * MIB, 2 * MIB + 512, 64 * MIB, 3 << 40])
@pytest.mark.parametrize("parent", ["", "p", "parent", "a-name-that-is-longer-than-others.raw"])
def test_a_new_image_is_the_one_that_qemu_makes(tmp_path: Path, size: int, parent: str) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    words = []
    if parent:
        (tmp_path / parent).write_bytes(bytes(512))
        words = ["-b", parent, "-F", "raw"]
    qemu_img("create", "-q", "-f", "qcow", *words, theirs, size)
    tapcore.create_image(f"qcow:{mine}", size, parent=f"aio:{parent}" if parent else "")
    assert os.path.getsize(mine) == os.path.getsize(theirs)
    with open(mine, "rb") as one, open(theirs, "rb") as other:
        assert one.read(1 << 20) == other.read(1 << 20)


def test_a_commit_by_qemu_empties_a_child_of_ours(tmp_path: Path, rng: random.Random) -> None:
    pair = child_of("raw")(tmp_path, rng)
    pair.turns(2)
    qemu_img("commit", "-q", "-f", "qcow", pair.image)
    assert (tmp_path / "parent.raw").read_bytes() == pair.model
    assert walk(pair.image.read_bytes()).plain == 0
    pair.turns(2)


def test_an_emptied_image_is_a_hole_and_goes_on(tmp_path: Path, rng: random.Random) -> None:
    pair = child_of("raw")(tmp_path, rng)
    fresh = os.path.getsize(pair.image)
    below = bytes(pair.model)
    pair.turns(2)
    with pair.open() as disk:
        leaf = disk.state.disks
        leaf.drv.td_make_empty(leaf)
        assert disk.pread(0, length=SIZE) == below
        disk.pwrite(1000, b"after that")
    pair.model[:] = below
    pair.model[1000:1010] = b"after that"
    pair.check()
    assert os.path.getsize(pair.image) < fresh + 100 * KIB
    pair.turns(2)


def test_a_child_that_was_rebased_is_read_by_both(tmp_path: Path, rng: random.Random) -> None:
    pair = child_of("raw")(tmp_path, rng)
    pair.turns(2)
    long_name = "a-copy-with-a-longer-name-than-before.raw"
    shutil.copy(tmp_path / "parent.raw", tmp_path / long_name)
    for name in (long_name, "parent.raw"):
        with pair.open() as disk:
            leaf = disk.state.disks
            leaf.drv.td_set_parent(leaf, tapcore.DiskId(name, "aio"))
        assert name in run("qemu-img", "info", pair.image)
        pair.turns(2)
    with pair.open() as disk:
        disk.pwrite(0, pair.model)
        leaf = disk.state.disks
        leaf.drv.td_set_parent(leaf, None)
    (tmp_path / "parent.raw").unlink()
    pair.turns(2)


def test_an_image_made_to_stand_alone_gets_no_parent(tmp_path: Path) -> None:
    """QEMU would write zeroes around what it writes into a cluster that is not there yet."""
    tapcore.create_image(f"qcow:{tmp_path / 'disk.qcow'}", MIB)
    with tapcore.open(f"qcow:{tmp_path / 'disk.qcow'}", readonly=False) as disk:
        leaf = disk.state.disks
        with pytest.raises(tapcore.NotSupportedError, match="clusters of 4096 bytes"):
            leaf.drv.td_set_parent(leaf, tapcore.DiskId("parent.raw", "aio"))


@pytest.mark.parametrize("kind", ["made by QEMU", "compressed by tapcore", "encrypted by QEMU"])
def test_a_grown_image_is_read_by_both(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """First within the L1 entries that there are, then past them, which moves the L1 table."""
    pair = MAKERS[kind](tmp_path, rng)
    pair.turns(2)
    for size in (SIZE + 512, SIZE + 5 * KIB, SIZE + 9 * MIB):
        with pair.open() as disk:
            disk.resize(size)
            assert disk.size == size
        pair.model.extend(bytes(size - len(pair.model)))
        pair.check()
        pair.turns(2)


def test_an_image_with_a_longer_parent_does_not_grow(tmp_path: Path, rng: random.Random) -> None:
    """There is no mark for zeroes that could hide the rest of the parent."""
    pair = child_of("raw", 5 * MIB)(tmp_path, rng)
    with pair.open() as disk, pytest.raises(tapcore.NotSupportedError, match="parent, which is"):
        disk.resize(4 * MIB)
    pair.check()


def test_a_wrong_passphrase_shows_something_else_and_none_is_an_error(
    tmp_path: Path, rng: random.Random
) -> None:
    pair = encrypted(by_qemu=False)(tmp_path, rng)
    with pair.open() as disk:
        disk.pwrite(0, b"secret" * 1000)
    assert b"secret" not in pair.image.read_bytes()
    with pytest.raises(tapcore.UsageError, match="--key-file"):
        tapcore.open(f"qcow:{pair.image}", readonly=True)
    with tapcore.open(f"qcow:{pair.image}", readonly=True, keys=b"wrong") as disk:
        assert disk.pread(0, length=6000) != b"secret" * 1000


def test_measure_tells_the_size_of_a_converted_image(tmp_path: Path, rng: random.Random) -> None:
    pair = made_by_tapcore(tmp_path, rng)
    pair._mine()
    with pair.open(readonly=True) as disk:
        leaf = disk.state.disks
        data = [(run.start, run.length) for run in disk.extents() if run.kind == "data"]
        found = leaf.drv.td_measure(SIZE, {}, iter(data))
    assert found.required == os.path.getsize(pair.image)
    with pair.open() as disk:
        disk.pwrite(0, rng.randbytes(SIZE))
    assert found.fully_allocated == os.path.getsize(pair.image)
