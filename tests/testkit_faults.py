"""Drivers that break their contract in one way each; `test_testkit.py` runs the kit on them.

Each is the example's driver (docs/examples/tap-chunk) with one hook replaced.
"""

import errno
import importlib.util
import os
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs

from tapcore import Extent, FormatOption, UsageError, hookimpl
from tapcore.testkit import DriverContract

_EXAMPLE = Path(__file__).parent.parent / "docs/examples/tap-chunk/tap_chunk/driver.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("tap_chunk_example", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


good = _load()


def driver(info: dict[str, Any] | None = None, **hooks: Any) -> SimpleNamespace:
    """The good driver with other hooks."""
    changed = {
        name: hookimpl(getattr(function, "__func__", function), specname=name)
        for name, function in hooks.items()
    }
    row = good.disk_info._replace(handle="toy", suffixes=(), **info or {})
    return SimpleNamespace(**{**vars(good), **changed, "disk_info": row})


class Toy(DriverContract):
    """Quick: small images, and little patience."""

    sizes = ((200 << 10) + 512,)
    patience = 0.3
    damages = 100
    __test__ = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.handle, cls.__test__ = "toy", True
        super().__init_subclass__(**kwargs)


# ---- answers ---------------------------------------------------------------------------------


def reading(change: Any) -> SimpleNamespace:
    """A driver whose reads give their answers through `change(cb, dd, res, sector, count, ...)`."""

    def td_queue_read(dd: Any, sector: int, nb_sectors: int, buf: Any, cb: Any, id: int, prv: Any):
        def answer(dd, res, sector, count, id, prv):
            return change(cb, dd, res, sector, count, id, prv)

        return good.td_queue_read(dd, sector, nb_sectors, buf, answer, id, prv)

    return driver(td_queue_read=td_queue_read)


class TestLosesASector(Toy):
    check_limit = 0.4
    driver = reading(lambda cb, dd, res, s, n, *rest: cb(dd, res, s, n - 1, *rest) if n > 1 else 0)


class TestAnswersTwice(Toy):
    driver = reading(lambda cb, *answer: cb(*answer) or cb(*answer))


class TestAnswersOutside(Toy):
    driver = reading(lambda cb, dd, res, s, n, *rest: cb(dd, res, s + 1, n, *rest))


class TestForgetsPrv(Toy):
    driver = reading(lambda cb, dd, res, s, n, id, prv: cb(dd, res, s, n, id, None))


class TestAnswersErrnoWithoutSign(Toy):
    driver = reading(lambda cb, dd, res, *rest: cb(dd, errno.EIO, *rest))


class TestFailsReads(Toy):
    driver = reading(lambda cb, dd, res, *rest: cb(dd, -errno.EIO, *rest))


class TestReturnsTooMany(Toy):
    driver = reading(lambda cb, *answer: cb(*answer) + 1)


class TestDirtyHoles(Toy):
    driver = reading(lambda cb, dd, res, *rest: cb(dd, 0, *rest))


class TestAnswersFromAThread(Toy):
    @staticmethod
    def _later(cb, *answer):
        thread = threading.Thread(target=cb, args=answer)
        thread.start()
        thread.join()
        return 0

    driver = reading(_later)


def _busy_for_ever(dd, sector, nb_sectors, buf, cb, id, prv):
    if id >= 100:
        return -errno.EBUSY
    return good.td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv)


class TestBusyForEver(Toy):
    driver = driver(td_queue_read=_busy_for_ever)


def _busy_but_answers(dd, sector, nb_sectors, buf, cb, id, prv):
    good.td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv)
    return -errno.EBUSY


class TestBusyButAnswers(Toy):
    driver = driver(td_queue_read=_busy_but_answers)


def _scrambles(dd, sector, nb_sectors, buf, cb, id, prv):
    done = good.td_queue_write(dd, sector, nb_sectors, buf, cb, id, prv)
    buf[:4] = b"oops"
    return done


class TestChangesTheBuffer(Toy):
    driver = driver(td_queue_write=_scrambles)


def _drops_at_close(dd, sector, nb_sectors, buf, cb, id, prv):
    return 0  # would be answered later, but td_close does not wait


class TestClosesTooEarly(Toy):
    driver = driver(td_queue_write=_drops_at_close)


class TestNeverFlushes(Toy):
    driver = driver(td_queue_flush=lambda dd, cb, id, prv: 0)


# ---- content ---------------------------------------------------------------------------------


class TestForgetsAtFlush(Toy):
    driver = driver(td_queue_flush=lambda dd, cb, id, prv: cb(dd, 0, 0, 0, id, prv))


def _forgets_at_close(dd):
    dd.private.file.close()


class TestForgetsAtClose(Toy):
    driver = driver(
        td_close=_forgets_at_close, td_queue_flush=lambda dd, cb, id, prv: cb(dd, 0, 0, 0, id, prv)
    )


def _clears_the_neighbour(dd, sector, nb_sectors, cb, id, prv):
    for chunk in range(sector // 128, min((sector + nb_sectors) // 128 + 1, len(dd.private.table))):
        dd.private.table[chunk] = 0
    return cb(dd, 0, sector, nb_sectors, id, prv)


class TestDiscardsTooMuch(Toy):
    driver = driver(td_queue_discard=_clears_the_neighbour)


class TestSizeInBytes(Toy):
    @staticmethod
    def _open(dd, name, flags):
        good.td_open(dd, name, flags)
        dd.size *= 512

    driver = driver(td_open=_open)


_last: list[Any] = []


class TestKeepsTheImageInTheModule(Toy):
    @staticmethod
    def _open(dd, name, flags):
        good.td_open(dd, name, flags)
        _last[:] = [dd.private]

    @staticmethod
    def _write(dd, sector, nb_sectors, buf, cb, id, prv):
        held, dd.private = dd.private, _last[0]
        done = good.td_queue_write(dd, sector, nb_sectors, buf, cb, id, prv)
        dd.private = held
        return done

    driver = driver(td_open=_open, td_queue_write=_write)


# ---- extents ---------------------------------------------------------------------------------


def extents(change: Any) -> SimpleNamespace:
    """A driver whose extents each pass through `change`."""

    def td_extents(dd: Any, sector: int, nb_sectors: int):
        yield from map(change, good.td_extents(dd, sector, nb_sectors))

    return driver(td_extents=td_extents)


class TestCallsDataAHole(Toy):
    driver = extents(lambda e: Extent(e.sector, e.nb_sectors, "unallocated"))


class TestExtentsInTheWrongPlace(Toy):
    driver = extents(lambda e: attrs.evolve(e, offset=e.offset + 512))


class TestExtentsWithGaps(Toy):
    driver = extents(lambda e: attrs.evolve(e, nb_sectors=max(e.nb_sectors - 1, 1)))


class TestExtentsTooLong(Toy):
    @staticmethod
    def _extents(dd, sector, nb_sectors):
        whole = good.td_extents(dd, sector // 128 * 128, 128)
        yield from (attrs.evolve(e, sector=sector, kind="compressed", fd=None) for e in whole)

    driver = driver(td_extents=_extents)


# ---- opening ---------------------------------------------------------------------------------


class TestOldApi(Toy):
    driver = driver(info={"api": 99})


class TestLeaksADescriptor(Toy):
    @staticmethod
    def _open(dd, name, flags):
        good.td_open(dd, name, flags)
        os.dup(dd.private.file.fd)

    driver = driver(td_open=_open)


class TestLeaksWhenRefusing(Toy):
    @staticmethod
    def _open(dd, name, flags):
        fd = os.open(name, os.O_RDONLY)
        good.td_open(dd, name, flags)
        os.close(fd)

    driver = driver(td_open=_open)


class TestOpensForWriting(Toy):
    driver = driver(td_open=lambda dd, name, flags: good.td_open(dd, name, 0))


class TestWritesWhenReadOnly(Toy):
    @staticmethod
    def _close(dd):
        path = dd.private.file.path
        good.td_close(dd)
        with open(path, "r+b") as file:
            file.seek(2000)
            file.write(os.urandom(8))

    driver = driver(td_close=_close)


class TestTouchesWhenReadOnly(Toy):
    @staticmethod
    def _close(dd):
        path = dd.private.file.path
        good.td_close(dd)
        os.utime(path)

    driver = driver(td_close=_close)


# ---- strangers' files ------------------------------------------------------------------------


class TestRaisesStructError(Toy):
    @staticmethod
    def _open(dd, name, flags):
        if os.path.getsize(name) < 100:
            raise struct.error("unpack requires a buffer of 1040 bytes")
        good.td_open(dd, name, flags)

    driver = driver(td_open=_open)


class TestHangs(Toy):
    time_limit = 0.5

    @staticmethod
    def _open(dd, name, flags):
        while os.path.getsize(name) == 1:
            pass
        good.td_open(dd, name, flags)

    driver = driver(td_open=_open)


class TestSwallowsMemory(Toy):
    memory_limit = 40

    @staticmethod
    def _open(dd, name, flags):
        if os.path.getsize(name) == 1:
            len(b"x" * (100 << 20))
        good.td_open(dd, name, flags)

    driver = driver(td_open=_open)


class TestProbesAnything(Toy):
    driver = driver(td_probe=lambda head: True)


class TestProbesCarelessly(Toy):
    driver = driver(td_probe=lambda head: head[:8] == good.MAGIC or (head != b"" and head[7] > 256))


class TestRecognisesNothing(Toy):
    driver = driver(td_probe=lambda head: False)


# ---- creating --------------------------------------------------------------------------------


class TestTakesAnyOption(Toy):
    driver = driver(info={"create_options": (FormatOption("colour", "of the chunks"),)})


class TestRefusesItsOwnOption(Toy):
    @staticmethod
    def _create(name, size, parent, options):
        if options:
            raise UsageError("what is that?")
        good.td_create(name, size, parent)

    driver = driver(
        info={"create_options": (FormatOption("colour", "of the chunks", ("red",), "red"),)},
        td_create=_create,
    )


class TestLeavesAHalf(Toy):
    @staticmethod
    def _create(name, size, parent):
        Path(name).touch()
        good.td_create(name, size, parent)

    driver = driver(td_create=_create)


# ---- parents ---------------------------------------------------------------------------------


class TestChangesItsParent(Toy):
    @staticmethod
    def _write(dd, sector, nb_sectors, buf, cb, id, prv):
        if dd.next is not None:
            with open(dd.next.name, "r+b") as file:
                file.seek(5000)
                file.write(os.urandom(8))
        return good.td_queue_write(dd, sector, nb_sectors, buf, cb, id, prv)

    driver = driver(td_queue_write=_write)


class TestZeroesAreHoles(Toy):
    @staticmethod
    def _zero(dd, sector, nb_sectors, may_unmap, cb, id, prv):
        for chunk in range(sector // 128, -(-(sector + nb_sectors) // 128)):
            dd.private.table[chunk] = 0
        return cb(dd, 0, sector, nb_sectors, id, prv)

    driver = driver(td_queue_write_zeroes=_zero)


class TestForgetsItsParent(Toy):
    @staticmethod
    def _no_parent(dd, id):
        return 0

    driver = driver(td_get_parent_id=_no_parent)


class TestHidesItsParent(Toy):
    driver = reading(lambda cb, dd, res, *rest: cb(dd, -errno.ENXIO if res == 99 else res, *rest))
