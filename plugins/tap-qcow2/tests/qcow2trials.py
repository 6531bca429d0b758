"""What is done with bad qcow2 images, and what must not happen then, whatever they say.

TapError and OSError are the only answers, soon, and with little memory; and what else is in the
image is not harmed.
"""

import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import tapcore
from qcow2tools import MIB, PASSPHRASE
from qcow2walk import walk
from tapcore.errors import TapError
from tapcore.interface.access import Access
from tapcore.interface.keys import Keys
from tapcore.testkit.failing import nothing_left_open, within
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image

MOST_SECONDS = 5.0
MOST_MEMORY = 64 * MIB
"""Above what the process has already: as much as the largest L1 table takes twice."""


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
        for _, _ in zip(
            disk.extents(0, length=min(disk.size, 64 * MIB)), range(2000), strict=False
        ):
            pass
        for start in {0, disk.size // 2, max(disk.size - MIB, 0)}:
            for at in range(start, min(start + MIB, disk.size), MIB // 4):
                with suppress(TapError):
                    disk.pread(at, length=MIB // 4)
        dd = disk.state.disks
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
            disk.pread(0, length=MIB)


def write_it(image: Path, rng: random.Random) -> None:
    """Every way to change it."""
    with tapcore.open(f"qcow2:{image}", keys=PASSPHRASE.encode(), readonly=False) as disk:
        size = min(disk.size, 4 * MIB)
        for number in range(12):
            at = rng.randrange(max(size - 70_000, 1))
            length = min(rng.choice((512, 5000, 65536)), size - at)
            with suppress(TapError):
                if number % 4 == 3:
                    disk.zero(at, length=length)
                elif number % 4 == 2:
                    disk.discard(at, length=length)
                else:
                    disk.pwrite(at, rng.randbytes(length))
            if number == 6:
                disk.sync()


def change_it(image: Path, rng: random.Random) -> None:
    """Snapshots and the size."""
    with tapcore.open(f"qcow2:{image}", keys=PASSPHRASE.encode(), readonly=False) as disk:
        dd = disk.state.disks
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
        check_image(name, access=Access(keys=keys))
    copy = image.with_name("copy.qcow2")
    for doing, change in (("writing", write_it), ("changing", change_it)):
        shutil.copy(image, copy)
        with watched(f"{doing} an image with {what}"):
            change(copy, rng)
    whole = False
    with watched(f"repairing an image with {what}"):
        check_image(name, repair="all", access=Access(keys=keys))
        result = check_image(name, access=Access(keys=keys))
        whole = not (result.corruptions or result.leaks or result.check_errors)
    return whole


def seen(image: Path, *, readonly: bool = True) -> str:
    """What is said of an image that is opened and read, or written; "" where nothing is."""
    try:
        with tapcore.open(f"qcow2:{image}", readonly=readonly) as disk:
            for at in range(0, disk.size, MIB):
                disk.pread(at, length=MIB)
            if not readonly:
                disk.pwrite(0, b"w" * 70_000)
                disk.sync()
    except TapError as exc:
        return exc.message
    return ""


# ---- on purpose ---------------------------------------------------------------------------------


def change_a_cluster(disk: tapcore.Disk, at: int, cluster: int, what: str) -> None:
    """Write it, a part of it, zero it, or discard it."""
    if what in ("write", "part"):
        disk.pwrite(at, b"w" * (cluster if what == "write" else 512))
    elif what == "discard":
        disk.discard(at, length=cluster)
    else:
        disk.zero(at, length=cluster, unmap=what == "zero")


def tables_are_whole(image: Path, before: bytes) -> None:
    """Header and tables still are what they were: none was overwritten, or given back."""
    after = image.read_bytes()
    assert after[:72] == before[:72], "the header was overwritten"
    for place in walk(before).places:
        if "table" in place.name or place.name.startswith("refcount block"):
            part = after[place.offset : place.offset + place.length]
            assert b"wwwwwwww" not in part, f"{place.name} was overwritten"
            was = before[place.offset : place.offset + place.length]
            assert any(part) or not any(was), f"{place.name} was punched out"
