"""Images of every kind, bytes of their metadata changed; and what a repair must leave of them.

What could be read before a repair (of the disk and of its snapshots) reads the same afterwards, by
us and by QEMU; a second check says what the repair said; a second repair changes nothing.
"""

import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

import tapcore
from peers import peer
from qcow2tools import PASSPHRASE, SECRET, convert, create, image_options, qemu_img, qemu_io
from qcow2walk import COMPRESSED, COPIED, Walk, walk
from tapcore.errors import TapError
from tapcore.interface.access import Access
from tapcore.interface.keys import Keys
from tapcore.tools.check import check_image

SIZE = 768 << 10
_PIECE = 64 << 10
_MOST = 4 << 20
"""Of a disk that says it is large, so many bytes at its start and at its end are looked at."""


@attrs.frozen
class Kind:
    """A kind of image.

    Attributes:
        name: for messages.
        options: of `qemu-img create`.
        compressed: it begins with compressed clusters.
        snapshots: it has some.
        bitmaps: it has some.
        parent: it has one.
        dirty: it was not closed: refcounts are behind.
        size: of the disk, bytes.
    """

    name: str
    options: dict[str, Any]
    compressed: bool = False
    snapshots: bool = False
    bitmaps: bool = False
    parent: bool = False
    dirty: bool = False
    size: int = SIZE


KINDS = [
    Kind("default", {}, snapshots=True, bitmaps=True),
    Kind("cluster-512", {"cluster_size": 512}, snapshots=True, bitmaps=True, size=SIZE // 3),
    Kind("cluster-4096", {"cluster_size": 4096}, snapshots=True, bitmaps=True),
    Kind("cluster-2M", {"cluster_size": 2 << 20}),
    Kind("v2", {"compat": "0.10", "cluster_size": 4096}, snapshots=True),
    Kind("v2-child", {"compat": "0.10", "cluster_size": 1024}, snapshots=True, parent=True),
    *(
        Kind(f"refcount-{n}", {"refcount_bits": n, "cluster_size": 1024}, snapshots=n > 1)
        for n in (1, 2, 4, 8, 32, 64)
    ),
    Kind("compressed", {"cluster_size": 8192}, compressed=True, snapshots=True),
    Kind("zstd", {"cluster_size": 4096, "compression_type": "zstd"}, compressed=True),
    Kind("extended", {"extended_l2": "on", "cluster_size": 16384}, snapshots=True),
    Kind("extended-packed", {"extended_l2": "on", "cluster_size": 16384}, compressed=True),
    Kind("child", {"cluster_size": 2048}, parent=True, snapshots=True, bitmaps=True),
    Kind("data-file", {"cluster_size": 4096, "data_file": "disk.data"}),
    Kind("data-file-raw", {"cluster_size": 4096, "data_file": "disk.data", "data_file_raw": "on"}),
    Kind("lazy", {"lazy_refcounts": "on", "cluster_size": 2048}, dirty=True),
    Kind("luks", {"encrypt_format": "luks", "cluster_size": 4096}),
]


@attrs.define
class Base:
    """A sound image, and the files beside it that it needs."""

    kind: Kind
    path: Path
    walk: Walk
    data: bytes = b""

    @classmethod
    def make(cls, kind: Kind, folder: Path, rng: random.Random) -> "Base":
        """A small one with content of all sorts that its kind has."""
        image = folder / "disk.qcow2"
        if kind.parent:
            (folder / "parent.raw").write_bytes(rng.randbytes(kind.size // 2) + b"p" * 5000)
            create(image, kind.size, parent="parent.raw", form="raw", **kind.options)
        elif kind.compressed:
            raw = folder / "source.raw"
            raw.write_bytes((b"some text " * kind.size)[: kind.size])
            convert(raw, image, compress=True, **kind.options)
        elif "encrypt_format" in kind.options:
            raw = folder / "source.raw"
            raw.write_bytes(rng.randbytes(kind.size // 2) + bytes(kind.size // 2))
            convert(raw, image, **kind.options)
        else:
            create(image, kind.size, **kind.options)
        if "encrypt_format" not in kind.options:
            _fill(kind, image, rng)
        content = image.read_bytes()
        data = folder / "disk.data"
        return cls(kind, image, walk(content), data.read_bytes() if data.exists() else b"")

    def restore_data(self) -> None:
        """The data file as it was."""
        if self.data:
            self.path.with_name("disk.data").write_bytes(self.data)


def _fill(kind: Kind, image: Path, rng: random.Random) -> None:
    qemu_io(image, *_commands(rng, kind.size))
    for name in ("one", "two") if kind.snapshots else ():
        qemu_img("snapshot", "-c", name, image)
        qemu_io(image, *_commands(rng, kind.size))
    if kind.bitmaps:
        qemu_img("bitmap", "--add", "-g", 4096, image, "bits")
        qemu_io(image, *_commands(rng, kind.size))
    if kind.dirty:
        words = [peer("qemu-io"), "-f", "qcow2"]
        for command in (*_commands(rng, kind.size), "flush", "abort"):
            words += ["-c", command]
        subprocess.run([*words, str(image)], capture_output=True, check=False, timeout=60)


def _commands(rng: random.Random, size: int) -> list[str]:
    found = []
    for _ in range(7):
        at = rng.randrange(size // 512) * 512
        length = min(rng.choice((512, 4096, 20_480, 70_144)), size - at)
        what = rng.choice(("write -P {}", "write -P {}", "write -z", "write -z -u"))
        found.append(f"{what.format(rng.randint(1, 255))} {at} {length}")
    return found


# ---- mutations ----------------------------------------------------------------------------------


@attrs.define
class Mutant:
    """Changed bytes of a sound image."""

    good: Walk
    content: bytearray
    rng: random.Random
    said: list[str] = attrs.field(factory=list)

    def place(self) -> tuple[str, int, int]:
        """Some structure, all sorts alike: (name, offset, length), inside the file."""
        kinds = sorted({_sort(place.name) for place in self.good.places})
        kind = self.rng.choice(kinds)
        places = [place for place in self.good.places if _sort(place.name) == kind]
        found = self.rng.choice(places)
        length = min(found.length, 104 if found.name == "header" else found.length)
        return found.name, found.offset, max(min(length, len(self.content) - found.offset), 0)

    def word(self, width: int = 8) -> int | None:
        """Where a word of a structure lies, more often one that is not 0."""
        name, offset, length = self.place()
        words = range(offset, offset + length - width + 1, width)
        if not words:
            return None
        some = self.rng.sample(words, min(len(words), 64))
        used = [at for at in some if any(self.content[at : at + width])]
        self.said.append(name)
        return self.rng.choice(used if used and self.rng.random() < 0.8 else some)

    def put(self, at: int, value: int, width: int = 8) -> None:
        """Write a big-endian number."""
        value &= (1 << 8 * width) - 1
        self.content[at : at + width] = value.to_bytes(width, "big")
        self.said.append(f"{value:#x} at {at:#x}")

    def get(self, at: int, width: int = 8) -> int:
        """Read one."""
        return int.from_bytes(self.content[at : at + width], "big")


def _sort(name: str) -> str:
    return " ".join(word for word in name.split() if not word.isdigit())


def bit_flip(it: Mutant) -> None:
    """One to three bits of a structure."""
    for _ in range(it.rng.choice((1, 1, 2, 3))):
        at = it.word(1)
        if at is not None:
            it.put(at, it.content[at] ^ 1 << it.rng.randrange(8), 1)


def extreme(it: Mutant) -> None:
    """A field at its limits, or near what it was."""
    width = it.rng.choice((2, 4, 8, 8))
    at = it.word(width)
    if at is None:
        return
    old, top = it.get(at, width), (1 << 8 * width) - 1
    near = [old + 1, old - 1, old * 2, old + (1 << 16), old + (1 << 8), old ^ 1 << 8 * width - 1]
    far = [0, 1, top, top >> 1, it.good.cluster, len(it.content), it.good.end, top & -512]
    it.put(at, it.rng.choice(near + far), width)


def overlap(it: Mutant) -> None:
    """A word leads to where another structure, or anything, lies."""
    at = it.word()
    if at is None:
        return
    target = it.rng.choice(
        (
            it.place()[1],
            it.rng.randrange(max(it.good.end // it.good.cluster, 1)) * it.good.cluster,
            it.good.end + it.rng.choice((0, 1, 9, 1 << 14)) * it.good.cluster,
        )
    )
    target += it.rng.choice((0, 0, 0, 0, 512, 1, 8))
    keep = it.rng.choice((it.get(at) & 0xFF00_0000_0000_01FF, 0, COPIED, COPIED | 1, COMPRESSED))
    it.put(at, target | keep)


def swap(it: Mutant) -> None:
    """Two words change places."""
    a, b = it.word(), it.word()
    if a is not None and b is not None:
        old = it.get(a)
        it.put(a, it.get(b))
        it.put(b, old)


def duplicate(it: Mutant) -> None:
    """A word is repeated: elsewhere, or all over a structure."""
    a = it.word()
    if a is None:
        return
    value = it.get(a)
    if it.rng.random() < 0.7:
        b = it.word()
        if b is not None:
            it.put(b, value)
        return
    name, offset, length = it.place()
    count = min(length // 8, it.rng.choice((2, 8, 64, 1 << 16)))
    it.content[offset : offset + count * 8] = struct.pack(">Q", value) * count
    it.said.append(f"{count} times {value:#x} over {name}")


def blank(it: Mutant) -> None:
    """A structure, or a part of it, is 0 or all ones."""
    name, offset, length = it.place()
    start = offset + it.rng.choice((0, 0, it.rng.randrange(max(length, 1)))) if length else offset
    fill = it.rng.choice((b"\0", b"\0", b"\xff"))
    if name == "header":
        return
    it.content[start : offset + length] = fill * (offset + length - start)
    it.said.append(f"{fill!r} from {start:#x} on over {name}")


def cut(it: Mutant) -> None:
    """The file is shorter, or longer."""
    length = it.rng.choice(
        (
            it.rng.randrange(len(it.content) // 2, len(it.content)),
            len(it.content) - it.rng.choice((1, 511, 512, it.good.cluster)),
            len(it.content) + it.rng.choice((1, 512, it.good.cluster, 7 * it.good.cluster)),
        )
    )
    it.content[:] = it.content[: max(length, 0)].ljust(max(length, 0), b"\0")
    it.said.append(f"{length} bytes long")


def header_field(it: Mutant) -> None:
    """A field of the header, one by one alike."""
    at, width = it.rng.choice(
        (
            (8, 8), (16, 4), (24, 8), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8),
            (72, 8), (80, 8), (88, 8), (96, 4), (100, 4),
        )
    )  # fmt: skip
    old = it.get(at, width)
    targets = [it.place()[1] for _ in range(4)] if width == 8 else []
    bit = old ^ 1 << it.rng.randrange(min(8 * width, 24))
    it.said.append(f"header field {at}")
    it.put(at, it.rng.choice([old + 1, old - 1, old + (1 << 16), bit, bit, 0, 1, *targets]), width)


def snapshot_entry(it: Mutant) -> None:
    """A field of an entry of the snapshot table."""
    places = [place for place in it.good.places if place.name == "snapshot table"]
    if not places:
        return bit_flip(it)
    at, width = it.rng.choice(((0, 8), (8, 4), (12, 2), (14, 2), (32, 4), (36, 4), (48, 8)))
    base = places[0].offset
    if it.rng.random() < 0.5:
        base += _entry_length(it, base)
    old = it.get(base + at, width)
    values = [old + 1, old - 1, old + (1 << 16), old + 64, old + it.good.cluster, it.place()[1]]
    it.said.append(f"snapshot table, field {at}")
    it.put(base + at, it.rng.choice(values), width)
    return None


def _entry_length(it: Mutant, base: int) -> int:
    length = 40 + it.get(base + 36, 4) + it.get(base + 12, 2) + it.get(base + 14, 2)
    return (length + 7) & ~7


MUTATIONS: list[Callable[[Mutant], None]] = [
    bit_flip, bit_flip, extreme, extreme, overlap, overlap, overlap, swap, duplicate, duplicate,
    blank, cut, header_field, header_field, snapshot_entry,
]  # fmt: skip


def mutants(base: Base, rng: random.Random) -> Iterator[Mutant]:
    """Without end."""
    while True:
        mutant = Mutant(base.walk, bytearray(base.walk.content), rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(MUTATIONS)(mutant)
        yield mutant


# ---- reading ------------------------------------------------------------------------------------

Content = dict[tuple[str, int], bytes]
"""What could be read: (snapshot's id or "", byte offset) of each piece."""


def readable(image: Path) -> tuple[Content, bool]:
    """What can be read of a disk and its snapshots; and whether it opens at all."""
    found: Content = {}
    keys = PASSPHRASE.encode()
    try:
        with tapcore.open(f"qcow2:{image}", readonly=True, keys=keys) as disk:
            _read(disk, "", found)
            try:
                names = [snapshot.id for snapshot in disk.snapshots()]
            except (TapError, OSError):
                names = []
    except (TapError, OSError):
        return found, False
    for name in sorted(set(names))[:4]:
        try:
            with tapcore.open(f"qcow2:{image}", readonly=True, keys=keys, snapshot=name) as disk:
                _read(disk, name, found)
        except (TapError, OSError):
            continue
    return found, True


def _read(disk: tapcore.Disk, name: str, found: Content) -> None:
    size = disk.size
    starts = {*range(0, min(size, _MOST), _PIECE)}
    starts.update(range(max(size - _MOST, 0) // _PIECE * _PIECE, size, _PIECE))
    for start in sorted(starts):
        length = min(_PIECE, size - start)
        try:
            found[name, start] = disk.pread(offset=start, length=length)
        except (TapError, OSError):
            for at in range(start, start + length, 512):
                try:
                    found[name, at] = disk.pread(offset=at, length=min(512, start + length - at))
                except (TapError, OSError):
                    continue


def same(before: Content, after: Content) -> str:
    """Where something that could be read before is another now; "" where nothing is."""
    pieces: dict[tuple[str, int], bytes] | None = None
    for (name, at), content in before.items():
        now = after.get((name, at))
        if now is not None and len(now) >= len(content):
            if now[: len(content)] == content:
                continue
            return f"{name or 'the disk'} differs at {at:#x}"
        if pieces is None:
            pieces = {
                (each, start + skip): piece[skip : skip + 512]
                for (each, start), piece in after.items()
                for skip in range(0, len(piece), 512)
            }
        for skip in range(0, len(content), 512):
            if pieces.get((name, at + skip)) != content[skip : skip + 512]:
                return f"{name or 'the disk'} cannot be read, or differs, at {at + skip:#x}"
    return ""


def by_qemu(image: Path, *, encrypted: bool, snapshot: str = "") -> bytes | None:
    """The disk, or a snapshot (its id), as `qemu-img` reads it; None: it cannot."""
    raw = image.with_suffix(".by-qemu")
    words = [peer("qemu-img"), "convert", "-U", "-O", "raw"]
    if snapshot:
        words += ["-l", f"snapshot.id={snapshot}"]
    if encrypted:
        words += [*SECRET, "--image-opts", image_options(image)]
    else:
        words += ["-f", "qcow2", image.name]
    done = subprocess.run(
        [*words, raw.name], cwd=image.parent, capture_output=True, timeout=120, check=False
    )
    found = None if done.returncode else raw.read_bytes()
    raw.unlink(missing_ok=True)
    return found


# ---- the trial ----------------------------------------------------------------------------------


@attrs.define
class Tally:
    """How many there were."""

    tried: int = 0
    opened: int = 0
    changed: int = 0
    repaired: int = 0
    by_qemu: int = 0
    harmed: list[str] = attrs.field(factory=list)


def try_repair(base: Base, mutant: Mutant, tally: Tally, *, qemu: bool = True) -> str:
    """Repair a mutant; returns what went wrong, "" if nothing did."""
    tally.tried += 1
    image = base.path
    image.write_bytes(mutant.content)
    base.restore_data()
    before, opens = readable(image)
    if not opens:
        return ""
    tally.opened += 1
    keys = Keys.of(PASSPHRASE.encode())
    name = f"qcow2:{image}"
    try:
        first = check_image(name, repair="all", access=Access(keys=keys))
    except (TapError, OSError) as exc:
        if image.name not in str(exc):
            return f"an error that does not name the image: {exc}"
        first = None
    after, _ = readable(image)
    if wrong := same(before, after):
        return f"{wrong}; the repair said {first}"
    repaired = image.read_bytes()
    if first is not None:
        second = check_image(name, access=Access(keys=keys))
        left = first.leaks, first.corruptions, first.check_errors
        if (second.leaks, second.corruptions, second.check_errors) != left:
            return f"the repair said {first}, the next check {second}"
        tally.repaired += left == (0, 0, 0)
        check_image(name, repair="all", access=Access(keys=keys))
        if image.read_bytes() != repaired:
            return f"a second repair changed it again; the first said {first}"
    if repaired == mutant.content:
        return ""
    tally.changed += 1
    if first is not None and first.check_errors:
        return f"it was changed, though not all could be checked: {first}"
    if qemu and (wrong := _qemu_reads(base, mutant, repaired, before, tally)):
        return f"{wrong}; the repair said {first}"
    return ""


def _qemu_reads(base: Base, mutant: Mutant, repaired: bytes, before: Content, tally: Tally) -> str:
    image = base.path
    encrypted = "encrypt_format" in base.kind.options
    names = ["", *sorted(name for name in {name for name, _ in before} if name.isalnum())[:2]]
    image.write_bytes(mutant.content)
    if image.stat().st_size and _size(mutant.content) > 64 << 20:
        return ""
    old = {name: by_qemu(image, encrypted=encrypted, snapshot=name) for name in names}
    image.write_bytes(repaired)
    for name, content in old.items():
        if content is None:
            continue
        tally.by_qemu += 1
        if by_qemu(image, encrypted=encrypted, snapshot=name) != content:
            return f"QEMU reads something else of {name or 'the disk'} now"
    return ""


def _size(content: bytes | bytearray) -> int:
    return int.from_bytes(content[24:32], "big")


def keep(base: Base, mutant: Mutant, folder: Path, label: str) -> None:
    """A mutant for a closer look."""
    folder.mkdir(exist_ok=True)
    (folder / f"{label}.qcow2").write_bytes(mutant.content)
    for name in ("disk.data", "parent.raw"):
        if (base.path.with_name(name)).exists():
            shutil.copy(base.path.with_name(name), folder)
