"""`trace`: every call of a driver, and every answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from itertools import count
from time import monotonic, perf_counter_ns
from typing import Any, TextIO

import attrs

from tapcore import BLK_NOT_ALLOCATED, DiskDriver, Filter, FilterCall, describe_error, hookimpl


@attrs.frozen
class _Traced:
    number: int
    at: int


class Trace(Filter):
    """Calls and answers are written down, a line each.

    Args:
        file: to which lines are added; "": standard error.
        submits: the ends of batches, too, and the calls that reap.
    """

    title = "writes every call and every answer down"

    def __init__(self, *, file: str = "", submits: bool = False) -> None:
        self._out: TextIO = sys.stderr
        if file:
            self._out = open(file, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._own = bool(file)
        self._submits = submits
        self._images = 0
        self._numbers = count(1)
        self._begun = monotonic()

    def _say(self, dd: DiskDriver[Any], text: str) -> None:
        self._out.write(f"{monotonic() - self._begun:.6f} {dd.name!r}: {text}\n")

    # ---- requests ---------------------------------------------------------------------------

    def request(self, call: FilterCall) -> None:
        """A line for the call."""
        call.note = note = _Traced(next(self._numbers), perf_counter_ns())
        where = f" {call.offset}+{call.length}" if call.nb_sectors else ""
        self._say(call.dd, f"#{note.number} {call.op}{where}")
        call.go_on()

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        """A line for the answer."""
        note: _Traced = call.note
        where = f" {sector * 512}+{nb_sectors * 512}" if nb_sectors else ""
        took = (perf_counter_ns() - note.at) // 1000
        self._say(call.dd, f"#{note.number}{where} = {_result(res)} after {took} µs")
        call.answer(res, sector, nb_sectors)

    # ---- other calls ------------------------------------------------------------------------

    def opened(self, dd: DiskDriver[Any]) -> None:
        """One image more to wait for the end of."""
        self._images += 1

    def closed(self, dd: DiskDriver[Any]) -> None:
        """After the last image nothing comes any more."""
        self._images -= 1
        if self._own and not self._images:
            self._out.close()

    def _around(self, dd: DiskDriver[Any], text: str) -> Generator[None, Any, Any]:
        self._say(dd, text)
        try:
            result = yield
        except Exception as exc:
            self._say(dd, f"{text} failed: {describe_error(exc)}")
            raise
        return result

    @hookimpl(wrapper=True)
    def td_open(self, dd: DiskDriver[Any], flags: int) -> Generator[None, Any, Any]:
        """A line for the opening, and what it found."""
        result = yield from self._around(dd, "open" + (" read-only" if flags & 1 else ""))
        self._say(dd, f"is open: {dd.size} sectors by {dd.drv.disk_type}")
        return result

    @hookimpl(wrapper=True)
    def td_close(self, dd: DiskDriver[Any]) -> Generator[None, Any, Any]:
        """A line before it is closed."""
        if self._own and self._out.closed:
            return (yield)
        return (yield from self._around(dd, "close"))

    @hookimpl(wrapper=True)
    def td_extents(
        self, dd: DiskDriver[Any], sector: int, nb_sectors: int
    ) -> Generator[None, Any, Any]:
        """A line for the question; its answer is taken one by one."""
        return (yield from self._around(dd, f"extents {sector * 512}+{nb_sectors * 512}"))

    @hookimpl(wrapper=True)
    def td_resize(self, dd: DiskDriver[Any], size: int) -> Generator[None, Any, Any]:
        """A line."""
        return (yield from self._around(dd, f"resize {size}"))

    @hookimpl(wrapper=True)
    def td_submit(self, dd: DiskDriver[Any]) -> Generator[None, Any, Any]:
        """A line where it is wanted."""
        if not self._submits:
            return (yield)
        return (yield from self._around(dd, "submit"))

    @hookimpl(wrapper=True)
    def td_do_callbacks(self, dd: DiskDriver[Any], sid: int) -> Generator[None, Any, Any]:
        """A line where it is wanted."""
        if not self._submits:
            return (yield)
        return (yield from self._around(dd, f"reap {sid}"))


def _result(res: int) -> str:
    if res == BLK_NOT_ALLOCATED:
        return "hole"
    return os.strerror(-res) if res else "done"
