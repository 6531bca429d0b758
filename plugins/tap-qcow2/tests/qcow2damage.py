"""Damaged qcow2 images: what is changed in a good one, and what is then done with the result.

Whatever an image says: TapError and OSError are the only answers, soon, and with little memory.
"""

import logging
import random
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

import tapcore
from qcow2tools import MIB, PASSPHRASE
from qcow2walk import COMPRESSED, COPIED, Walk, walk
from tapcore.errors import TapError
from tapcore.keys import Keys
from tapcore.testkit.failing import nothing_left_open, within
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image

MOST_SECONDS = 5.0
MOST_MEMORY = 64 * MIB
"""Above what the process has already: as much as the largest L1 table takes twice."""

HEADER_FIELDS = {
    "version": (4, 4),
    "backing_file_offset": (8, 8),
    "backing_file_size": (16, 4),
    "cluster_bits": (20, 4),
    "size": (24, 8),
    "crypt_method": (32, 4),
    "l1_size": (36, 4),
    "l1_table_offset": (40, 8),
    "refcount_table_offset": (48, 8),
    "refcount_table_clusters": (56, 4),
    "nb_snapshots": (60, 4),
    "snapshots_offset": (64, 8),
    "incompatible_features": (72, 8),
    "compatible_features": (80, 8),
    "autoclear_features": (88, 8),
    "refcount_order": (96, 4),
    "header_length": (100, 4),
    "compression_type": (104, 1),
}


def with_field(content: bytes, name: str, value: int) -> bytes:
    """The image with a header field changed."""
    offset, width = HEADER_FIELDS[name]
    changed = (value & (1 << 8 * width) - 1).to_bytes(width, "big")
    return content[:offset] + changed + content[offset + width :]


def extreme_values(good: Walk, width: int) -> list[int]:
    """For a field of so many bytes: limits, signs, and places where something else lies."""
    bits = 8 * width
    values = [0, 1, (1 << bits) - 1, (1 << (bits - 1)) - 1, 1 << (bits - 1)]
    if width >= 4:
        values += [good.cluster, len(good.content), good.end, 0x7FFF_0000 & (1 << bits) - 1]
    if width == 8:
        values += [place.offset for place in good.places[:8]]
        values += [0x1234_5678_90AB_CDEF, (1 << 56) - 512, (1 << 63) - good.cluster, 513]
    return values


@attrs.define
class Damage:
    """A bad image, and what makes it bad."""

    what: str
    content: bytes


def damages(good: Walk, rng: random.Random, count: int) -> Iterator[Damage]:
    """Images that differ from a good one in one to three places, in all of its structures alike."""
    kinds = sorted({_kind(place.name) for place in good.places})
    for _ in range(count):
        content = bytearray(good.content)
        said = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            kind = rng.choice((*kinds, "header", "header field", "length"))
            if kind == "header field":
                said.append(_damage_field(good, content, rng))
            elif kind == "length":
                said.append(_damage_length(good, content, rng))
            else:
                place = rng.choice([p for p in good.places if _kind(p.name) == kind])
                said.append(_damage_place(good, content, place.offset, place.length, rng))
                said[-1] += f" ({place.name})"
        yield Damage(", ".join(said), bytes(content))


def _kind(name: str) -> str:
    return " ".join(word for word in name.split() if not word.isdigit())


def _damage_field(good: Walk, content: bytearray, rng: random.Random) -> str:
    name = rng.choice(list(HEADER_FIELDS))
    value = rng.choice(extreme_values(good, HEADER_FIELDS[name][1]))
    content[:] = with_field(bytes(content), name, value)
    return f"{name} = {value:#x}"


def _damage_length(good: Walk, content: bytearray, rng: random.Random) -> str:
    length = rng.choice((rng.randrange(len(content)), len(content) + good.cluster * 3 + 1))
    content.extend(bytes(max(length - len(content), 0)))
    del content[length:]
    return f"{length} bytes long"


def _damage_place(
    good: Walk, content: bytearray, offset: int, length: int, rng: random.Random
) -> str:
    """Change a word of a table; more often one that is not empty."""
    width = rng.choice((1, 2, 4, 8, 8, 8))
    end = min(offset + max(length, width), len(content))
    places = range(offset, end - width + 1, width)
    if not places:
        return "nothing"
    used = [at for at in rng.sample(places, min(len(places), 64)) if any(content[at : at + width])]
    at = rng.choice(used if used and rng.random() < 0.7 else places)
    content[at : at + width] = value = _word(good, content[at : at + width], rng)
    return f"{value.hex()} at {at:#x}"


def _word(good: Walk, old: bytes, rng: random.Random) -> bytes:
    width = len(old)
    if rng.random() < 0.25:
        return bytes(old[:-1]) + bytes([old[-1] ^ 1 << rng.randrange(8)])
    if width < 8 or rng.random() < 0.4:
        value = rng.choice([*extreme_values(good, width), rng.getrandbits(8 * width)])
        return (value & (1 << 8 * width) - 1).to_bytes(width, "big")
    target = rng.choice((rng.choice(good.places).offset, rng.randrange(good.end)))
    target += rng.choice((0, 0, 0, good.cluster, 512, 1))
    flags = rng.choice((0, COPIED, COPIED, COPIED | 1, 1, COMPRESSED, COMPRESSED | 0x3F << 56))
    return (target | flags).to_bytes(8, "big")


# ---- what is done with a bad image --------------------------------------------------------------


class Accident(AssertionError):
    """Something happened that must not happen, whatever the image says."""


class _Listener(logging.Handler):
    """Collects what says that code, and not the image, was at fault."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.accidents: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        exc = record.exc_info[1] if record.exc_info else None
        if exc is not None and not isinstance(exc, TapError | OSError):
            self.accidents.append(f"{record.getMessage()}: {type(exc).__name__}: {exc}")
        if "the driver" in record.getMessage():
            self.accidents.append(record.getMessage())


@contextmanager
def watched(
    what: str, *, seconds: float = MOST_SECONDS, memory: int = MOST_MEMORY
) -> Iterator[None]:
    """Only TapError and OSError come out, and are swallowed; time, memory, log, descriptors."""
    listener = _Listener()
    logging.getLogger().addHandler(listener)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")  # the peak counts from here
    before = _memory("VmRSS:")
    try:
        with within(seconds, what), nothing_left_open(what), suppress(TapError, OSError):
            yield
    except AssertionError:
        raise
    except Exception as exc:
        raise Accident(f"{what}: {type(exc).__name__}: {exc}") from exc
    finally:
        logging.getLogger().removeHandler(listener)
    took = _memory("VmHWM:") - before
    if took > memory:
        raise Accident(f"{what}: took {took >> 20} MiB of memory")
    if listener.accidents:
        raise Accident(f"{what}: {listener.accidents[0]}")


def _memory(line: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(text.split()[1]) << 10 for text in status if text.startswith(line))


def read_it(image: Path) -> None:
    """All that reading can meet: a size, extents, content, snapshots, bitmaps."""
    with tapcore.open(f"qcow2:{image}", readonly=True, keys=PASSPHRASE.encode()) as disk:
        disk.info()
        for _, _ in zip(disk.extents(0, min(disk.size, 64 * MIB)), range(2000), strict=False):
            pass
        for start in {0, disk.size // 2, max(disk.size - MIB, 0)}:
            for at in range(start, min(start + MIB, disk.size), MIB // 4):
                with suppress(TapError):
                    disk.pread(at, MIB // 4)
        dd = disk.state.disks
        assert dd is not None
        with suppress(TapError, OSError):
            for bitmap in dd.drv.td_bitmaps(dd):
                ranges = dd.drv.td_bitmap_ranges(dd, bitmap.name)
                for _, _ in zip(ranges, range(1000), strict=False):
                    pass
        names = [snapshot.id for snapshot in disk.snapshots()]
    for name in names[:3]:
        with (
            suppress(TapError, OSError),
            tapcore.open(f"qcow2:{image}", readonly=True, snapshot=name) as disk,
        ):
            disk.pread(0, MIB)


def write_it(image: Path, rng: random.Random) -> None:
    """Every way to change it."""
    with tapcore.open(f"qcow2:{image}", keys=PASSPHRASE.encode()) as disk:
        size = min(disk.size, 4 * MIB)
        for number in range(12):
            at = rng.randrange(max(size - 70_000, 1))
            length = min(rng.choice((512, 5000, 65536)), size - at)
            with suppress(TapError):
                if number % 4 == 3:
                    disk.zero(at, length)
                elif number % 4 == 2:
                    disk.discard(at, length)
                else:
                    disk.pwrite(at, rng.randbytes(length))
            if number == 6:
                disk.sync()


def change_it(image: Path, rng: random.Random) -> None:
    """Snapshots and the size."""
    with tapcore.open(f"qcow2:{image}", keys=PASSPHRASE.encode()) as disk:
        dd = disk.state.disks
        assert dd is not None
        names = [snapshot.id for snapshot in disk.snapshots()]
        what = rng.choice(("create", "apply", "delete", "resize"))
        if what == "resize":
            disk.resize(min(disk.size, 1 << 40) + MIB)
        elif what == "create":
            dd.drv.td_snapshot_create(dd, "another")
        elif names:
            getattr(dd.drv, f"td_snapshot_{what}")(dd, rng.choice(names))


def try_everything(image: Path, rng: random.Random, what: str) -> bool:
    """Look at, read, check, repair, write and change a bad image, each on a copy of its own.

    Returns:
        Whether a repair says that the image is whole again; then the image is the repaired one.
    """
    name = f"qcow2:{image}"
    keys = Keys.of(PASSPHRASE.encode())
    with watched(f"inspecting an image with {what}"):
        inspect_image(name)
    with watched(f"the info of an image with {what}"):
        image_info(name)
    with watched(f"reading an image with {what}"):
        read_it(image)
    with watched(f"checking an image with {what}"):
        check_image(name, keys=keys)
    copy = image.with_name("copy.qcow2")
    for doing, change in (("writing", write_it), ("changing", change_it)):
        shutil.copy(image, copy)
        with watched(f"{doing} an image with {what}"):
            change(copy, rng)
    whole = False
    with watched(f"repairing an image with {what}"):
        check_image(name, repair="all", keys=keys)
        result = check_image(name, keys=keys)
        whole = not (result.corruptions or result.leaks or result.check_errors)
    return whole


def good_words(content: bytes) -> Walk:
    """A good image, walked."""
    found = walk(content)
    assert not found.problems
    return found


def compressed_bomb(good: Walk, stream: bytes) -> bytes:
    """An image whose first compressed cluster is another stream, at the file's end."""
    offset = good.end
    content = bytearray(good.content.ljust(offset, b"\0")) + stream.ljust(good.cluster * 2, b"\0")
    shift = 62 - (good.bits - 8)
    sectors = (len(stream) + 511) // 512 - 1
    entry = COMPRESSED | offset | min(sectors, (1 << good.bits - 8) - 1) << shift
    table = next(place for place in good.places if place.name.startswith("L2 table"))
    content[table.offset : table.offset + 8] = struct.pack(">Q", entry)
    return bytes(content)
