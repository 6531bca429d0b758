"""Images of every layout, and every kind of damage to their metadata: for check and repair.

Damage is done to the bytes of a file, at the places that `qcow2walk.walk` finds in a sound one.
"""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from qcow2tools import MIB, create, qemu_img, qemu_io, source_content
from qcow2walk import COMPRESSED, COPIED, OFFSET, Place, Walk, walk

SIZE = 3 * MIB


@attrs.frozen
class Layout:
    """A kind of image.

    Attributes:
        name: of the test.
        options: of `qemu-img create`, or of convert.
        compressed: it begins with compressed clusters.
        snapshots: it has some.
        bitmaps: it has some.
    """

    name: str
    options: dict[str, Any]
    compressed: bool = False
    snapshots: bool = False
    bitmaps: bool = False

    def make(self, folder: Path, rng: random.Random) -> Path:
        """An image with content of all kinds that the layout has."""
        image = folder / "disk.qcow2"
        if self.compressed:
            raw = folder / "source.raw"
            raw.write_bytes(source_content(rng, SIZE))
            options = [f"-o{name}={value}" for name, value in self.options.items()]
            qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", *options, raw, image)
        else:
            create(image, SIZE, **self.options)
        qemu_io(image, *commands(rng))
        if self.snapshots:
            for name in ("one", "two"):
                qemu_img("snapshot", "-c", name, image)
                qemu_io(image, *commands(rng))
        if self.bitmaps:
            for name, granularity in (("bits", 512), ("more", 65536)):
                qemu_img("bitmap", "--add", "-g", granularity, image, name)
                qemu_io(image, *commands(rng))
        return image


def commands(rng: random.Random, size: int = SIZE, count: int = 12) -> list[str]:
    """For `qemu-io`: runs of data, holes, zeroes; allocated in an order of their own."""
    found = []
    for _ in range(count):
        at = rng.randrange(size // 512) * 512
        length = min(rng.choice((512, 4096, 70_144, 200_704)), size - at)
        byte = rng.randint(1, 255)
        what = rng.choice((f"write -P {byte}", f"write -P {byte}", "write -z", "write -z -u"))
        found.append(f"{what} {at} {length}")
    return found


LAYOUTS = [
    Layout("default", {}),
    Layout("cluster-512", {"cluster_size": 512}),
    Layout("cluster-4096", {"cluster_size": 4096}),
    Layout("cluster-2M", {"cluster_size": 2 * MIB}),
    Layout("v2", {"compat": "0.10", "cluster_size": 4096}, snapshots=True),
    *(
        Layout(f"refcount-{n}", {"refcount_bits": n, "cluster_size": 4096}, snapshots=n > 1)
        for n in (1, 2, 4, 8, 32, 64)
    ),
    Layout("compressed", {"cluster_size": 16384}, compressed=True),
    Layout("compressed-snapshots", {"cluster_size": 4096}, compressed=True, snapshots=True),
    Layout("snapshots", {"cluster_size": 2048}, snapshots=True),
    Layout("extended", {"extended_l2": "on", "cluster_size": 16384}, snapshots=True),
    Layout("extended-compressed", {"extended_l2": "on", "cluster_size": 16384}, compressed=True),
    Layout("bitmaps", {"cluster_size": 4096}, bitmaps=True),
    Layout("data-file", {"cluster_size": 4096, "data_file": "disk.data"}),
]


@attrs.define
class Wreck:
    """The bytes of a sound image, to be damaged."""

    content: bytearray
    rng: random.Random
    walk: Walk = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.walk = walk(bytes(self.content))

    # ---- places -----------------------------------------------------------------------------

    def places(self, start: str) -> list[Place]:
        """Structures with names that begin so."""
        return [place for place in self.walk.places if place.name.startswith(start)]

    def word(self, at: int) -> int:
        """The big-endian 64-bit word at an offset."""
        found: int = struct.unpack_from(">Q", self.content, at)[0]
        return found

    def set_word(self, at: int, value: int) -> None:
        """Overwrite it."""
        struct.pack_into(">Q", self.content, at, value)

    def words(self, start: str, accept: Callable[[int], object] = bool) -> list[int]:
        """Offsets of the words of such structures that are accepted."""
        found = []
        step = 8 * self.walk.words if start.startswith("L2") else 8
        for place in self.places(start):
            end = min(place.offset + place.length, len(self.content))
            whole = range(place.offset, end - 7, step)  # a file that was cut may end inside a word
            found += [at for at in whole if accept(self.word(at))]
        return found

    def pick(self, start: str, accept: Callable[[int], object] = bool) -> int | None:
        """One of them; None: there is none."""
        found = self.words(start, accept)
        return self.rng.choice(found) if found else None

    @property
    def cluster(self) -> int:
        """Cluster size, bytes."""
        return self.walk.cluster

    def far(self) -> int:
        """A cluster that lies behind the end of the file (offset, bytes)."""
        return self.walk.end + self.rng.choice((0, 1, 5, 1000, 1 << 20)) * self.cluster

    def refcount(self, change: Callable[[int], int], accept: Callable[[int], object]) -> bool:
        """Change a refcount that is accepted."""
        bits = 1 << self.walk.order
        per_block = self.cluster * 8 // bits
        clusters = self.walk.end // self.cluster
        found = Walk(bytes(self.content)).refcounts()
        numbers = [(n, value) for n, value in found if accept(value) and n < clusters]
        if not numbers:
            return False
        number, value = self.rng.choice(numbers)
        value = change(value) & ((1 << bits) - 1)
        block = self.word(self.walk.reftable_offset + number // per_block * 8)
        at = block + number % per_block * bits // 8
        if bits >= 8:
            self.content[at : at + bits // 8] = value.to_bytes(bits // 8, "big")
        else:
            shift = number * bits % 8
            mask = ((1 << bits) - 1) << shift
            self.content[at] = self.content[at] & ~mask & 255 | value << shift
        return True


def plain(word: int) -> bool:
    """It leads to a cluster that is not compressed."""
    return bool(word & OFFSET and not word & COMPRESSED)


def packed(word: int) -> bool:
    """It leads to a compressed cluster."""
    return bool(word & COMPRESSED)


Damage = Callable[[Wreck], object]
"""Returns False where an image has nothing to be damaged so."""


def changed(
    start: str, accept: Callable[[int], object], change: Callable[[Wreck, int], int]
) -> Damage:
    """Another word in a structure."""

    def damage(it: Wreck) -> bool:
        at = it.pick(start, accept)
        if at is None:
            return False
        it.set_word(at, change(it, it.word(at)))
        return True

    return damage


def moved(name: str) -> Callable[[Wreck, int], int]:
    """A word that leads to a structure of a name instead."""

    def change(it: Wreck, word: int) -> int:
        places = it.places(name)
        return word & ~OFFSET | (it.rng.choice(places).offset if places else 0)

    return change


def zeroed(start: str) -> Damage:
    """All of a structure."""

    def damage(it: Wreck) -> bool:
        places = it.places(start)
        if not places:
            return False
        place = it.rng.choice(places)
        it.content[place.offset : place.offset + place.length] = bytes(place.length)
        return True

    return damage


def doubled(start: str) -> Damage:
    """Two words lead to one cluster."""

    def damage(it: Wreck) -> bool:
        found = it.words(start, plain)
        if len(found) < 2:
            return False
        a, b = it.rng.sample(found, 2)
        it.set_word(b, it.word(a))
        return True

    return damage


def subclusters(change: Callable[[int], int], accept: Callable[[int], object]) -> Damage:
    """Another bitmap of an extended L2 entry."""

    def damage(it: Wreck) -> bool:
        at = it.pick("L2", accept) if it.walk.words == 2 else None
        if at is None:
            return False
        it.set_word(at + 8, change(it.word(at + 8)))
        return True

    return damage


def header_field(offset: int, form: str, value: Callable[[Wreck], int]) -> Damage:
    """Another value in the header."""

    def damage(it: Wreck) -> bool:
        struct.pack_into(form, it.content, offset, value(it))
        return True

    return damage


def truncated(it: Wreck) -> bool:
    """The end of the file is missing."""
    low = max(it.walk.reftable_offset, it.walk.l1_offset, it.walk.snapshots_offset) + it.cluster
    if low >= len(it.content):
        return False
    del it.content[it.rng.randrange(low, len(it.content)) :]
    return True


def _unaligned(it: Wreck, word: int) -> int:
    return word & ~((it.cluster - 1) & OFFSET) | (512 if it.cluster > 512 else 0)


def _anywhere(it: Wreck, word: int) -> int:
    cluster = it.rng.randrange(it.walk.end // it.cluster)
    return word & ~OFFSET | cluster * it.cluster


DAMAGES: dict[str, Damage] = {
    "refcount-up": lambda it: it.refcount(lambda v: v + 1, bool),
    "refcount-far-up": lambda it: it.refcount(lambda v: v + 77, bool),
    "refcount-down": lambda it: it.refcount(lambda v: v - 1, bool),
    "refcount-of-shared-down": lambda it: it.refcount(lambda v: v - 1, lambda v: v > 1),
    "refcount-block-zeroed": zeroed("refcount block"),
    "refcount-block-missing": changed("refcount table", bool, lambda it, word: 0),
    "refcount-block-outside": changed("refcount table", bool, lambda it, word: it.far()),
    "refcount-block-reserved": changed("refcount table", bool, lambda it, word: word | 0x80),
    "refcount-block-on-l2": changed("refcount table", bool, moved("L2")),
    "refcount-block-on-table": changed("refcount table", bool, lambda it, word: it.cluster),
    "refcount-block-twice": changed("refcount table", lambda w: not w, moved("refcount block")),
    "refcount-table-zeroed": zeroed("refcount table"),
    "refcount-table-outside": header_field(48, ">Q", lambda it: it.far()),
    "l1-copied": changed("L1 table", bool, lambda it, word: word ^ COPIED),
    "l1-reserved": changed("L1 table", bool, lambda it, word: word | 1 << 57),
    "l1-outside": changed("L1 table", bool, lambda it, word: word & ~OFFSET | it.far()),
    "l1-unaligned": changed("L1 table", bool, _unaligned),
    "l1-on-refcount-block": changed("L1 table", bool, moved("refcount block")),
    "l1-on-l1": changed("L1 table", bool, moved("L1 table")),
    "l1-to-header": changed("L1 table", bool, lambda it, word: COPIED),
    "l1-anywhere": changed("L1 table", bool, _anywhere),
    "l1-zeroed": changed("L1 table", bool, lambda it, word: 0),
    "l1-twice": doubled("L1 table"),
    "l2-copied": changed("L2", plain, lambda it, word: word ^ COPIED),
    "l2-reserved": changed("L2", plain, lambda it, word: word | 1 << 60),
    "l2-reserved-low": changed("L2", plain, lambda it, word: word | 1 << 3),
    "l2-outside": changed("L2", plain, lambda it, word: word & ~OFFSET | it.far()),
    "l2-unaligned": changed("L2", plain, _unaligned),
    "l2-zeroed": zeroed("L2"),
    "l2-forgotten": changed("L2", plain, lambda it, word: 0),
    "l2-twice": doubled("L2"),
    "l2-to-header": changed("L2", plain, lambda it, word: word & ~OFFSET),
    "l2-on-l1": changed("L2", plain, moved("L1 table")),
    "l2-on-l2": changed("L2", plain, moved("L2")),
    "l2-on-refcount-block": changed("L2", plain, moved("refcount block")),
    "l2-on-refcount-table": changed("L2", plain, moved("refcount table")),
    "l2-on-snapshot-table": changed("L2", plain, moved("snapshot table")),
    "l2-anywhere": changed("L2", plain, _anywhere),
    "l2-compressed": changed("L2", plain, lambda it, word: word & ~COPIED | COMPRESSED),
    "compressed-copied": changed("L2", packed, lambda it, word: word | COPIED),
    "compressed-outside": changed("L2", packed, lambda it, word: word | 1 << 40),
    "compressed-forgotten": changed("L2", packed, lambda it, word: 0),
    "subclusters-both": subclusters(lambda word: word | 1 << 33 | 2, plain),
    "subclusters-without-place": subclusters(lambda word: 6, lambda word: not word),
    "subclusters-compressed": subclusters(lambda word: 6, packed),
    "bitmap-table-entry": changed("bitmap table", bool, lambda it, word: word | 1 << 60),
    "bitmap-outside": changed("bitmap table", plain, lambda it, word: it.far()),
    "bitmap-unaligned": changed("bitmap table", plain, lambda it, word: word + 512),
    "truncated": truncated,
}
