"""Block status: what each metadata context says of a range of the disk.

A context is made for one client. Sources: doc/proto.md (NetworkBlockDevice/nbd), "Metadata
querying"; for QEMU's names docs/interop/nbd.rst of QEMU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Final, Protocol

from tapcore.engine import chain_extents
from tapcore.engine.loop import Deadline
from tapcore.errors import TapError, describe, printable
from tapcore.interface.models import DiskDriver
from tapcore.nbd import constants as nbd

log = logging.getLogger(__name__)

MAX_RUNS: Final = 4096
"""Runs in one reply; a client asks again for the rest."""

MAX_BITMAPS: Final = 256
"""Bitmaps offered of one image: a client may ask for a list of them as often as it likes."""

AT_ONCE: Final = 4 << 30
"""Bytes of a disk whose extents are looked at before the clock is."""

STATUS_SECONDS: Final = 0.05
"""A block status request that takes longer is answered with what is known by then."""

_NO_MORE: Final = (1 << 64, 1 << 64)
"""Where the range behind the last one begins and ends."""

Run = tuple[int, int]
"""Length in bytes, and what the context says of it: its flags."""


class Context(Protocol):
    """What a metadata context says, for one client.

    Attributes:
        at_once: bytes of the disk that can be looked at without making others wait for long.
    """

    at_once: ClassVar[int]

    def runs(self, offset: int, length: int) -> Iterable[Run]:
        """The runs of a range (bytes) in order; neighbours need not be joined.

        Raises:
            TapError, OSError: the image cannot be read.
        """


def block_status(
    context: Context,
    offset: int,
    length: int,
    *,
    only_one: bool = False,
    patience: Deadline | None = None,
) -> list[Run]:
    """The runs of a range, from its start on, neighbours joined.

    Args:
        context: whose.
        offset: bytes.
        length: bytes, at least 1.
        only_one: the client wants a single run (NBD_CMD_FLAG_REQ_ONE).
        patience: when it has passed, no more is looked at than `context.at_once`; None: all is.

    Returns:
        At least one run; together at most `length`.
    """
    most = 1 if only_one else MAX_RUNS
    found: list[Run] = []
    end = offset + length
    while offset < end and not (found and patience is not None and patience.passed):
        count = min(context.at_once, end - offset)
        for size, flags in context.runs(offset, count):
            if found and found[-1][1] == flags:
                found[-1] = (found[-1][0] + size, flags)
                continue
            if len(found) == most:
                return found
            found.append((size, flags))
        offset += count
    return found


class Allocation:
    """`base:allocation`: holes and zeroes.

    Args:
        dd: the child.
    """

    at_once: ClassVar[int] = AT_ONCE

    def __init__(self, dd: DiskDriver) -> None:
        self._dd = dd

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """See `Context`."""
        for extent in chain_extents(self._dd, offset, length):
            state = 0
            if extent.kind == "zero":
                state = nbd.STATE_ZERO if extent.allocated else nbd.STATE_ZERO | nbd.STATE_HOLE
            yield extent.length, state


class Depth:
    """`tapcore:depth`, QEMU's `qemu:allocation-depth`: which image of the chain has it.

    0: none; 1: the image itself, 2: its parent, ...

    Args:
        dd: the child.
    """

    at_once: ClassVar[int] = AT_ONCE

    def __init__(self, dd: DiskDriver) -> None:
        self._dd = dd

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """See `Context`."""
        for extent in chain_extents(self._dd, offset, length):
            yield extent.length, extent.depth + 1 if extent.present else 0


class Dirty:
    """`qemu:dirty-bitmap:NAME`: what a persistent bitmap calls changed.

    Clients ask from the front to the back, so the ranges are read once as long as nothing is
    written: one that asks for a run at a time would else have all before it read each time.

    Args:
        dd: the child.
        name: of the bitmap.
        mark: as `Engine.content_mark`.
    """

    at_once: ClassVar[int] = 1 << 64  # its ranges are few, and not looked for

    def __init__(self, dd: DiskDriver, name: str, mark: Callable[[], int | None]) -> None:
        self._dd = dd
        self._name = name
        self._mark = mark
        self._read_at: int | None = None
        self._ranges: Iterator[tuple[int, int]] = iter(())
        self._start, self._end = _NO_MORE
        self._passed = _NO_MORE[1]  # of what lies before it nothing is known any more

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """See `Context`."""
        mark = self._mark()
        if mark is None or mark != self._read_at or offset < self._passed:
            self._read_at = None  # until it has worked
            self._rewind()
            self._read_at = mark
        end = offset + length
        while offset < end:
            if self._end <= offset:
                self._passed = self._end
                self._advance()
            elif self._start > offset:
                stop = min(self._start, end)
                yield stop - offset, 0
                offset = stop
            else:
                stop = min(self._end, end)
                yield stop - offset, nbd.STATE_DIRTY
                offset = stop

    def _rewind(self) -> None:
        self._passed = _NO_MORE[1]  # until it has worked
        self._ranges = iter(self._dd.drv.td_bitmap_ranges(self._dd, self._name))
        self._advance()
        self._passed = 0

    def _advance(self) -> None:
        try:
            start, length = next(self._ranges, (_NO_MORE[0], 0))
        except BaseException:
            self._passed = _NO_MORE[1]
            raise
        self._start, self._end = (start, start + length) if length else _NO_MORE


def context_names(dd: DiskDriver) -> tuple[str, ...]:
    """The contexts that an image offers.

    Args:
        dd: the child.
    """
    return nbd.BASE_ALLOCATION, nbd.DEPTH, nbd.QEMU_DEPTH, *_bitmap_contexts(dd)


def _bitmap_contexts(dd: DiskDriver) -> list[str]:
    """Of its bitmaps that say something; an image without a readable list of them has none."""
    try:
        names = [each.name for each in dd.drv.td_bitmaps(dd) if not each.inconsistent]
    except (OSError, TapError) as exc:
        log.warning("%s: its bitmaps are not offered: %s", dd.name, describe(exc))
        return []
    fit = [name for name in names if _may_be_sent(name)]
    if len(fit) < len(names):
        log.warning("%s: a bitmap is not offered: its name is not UTF-8", dd.name)
    if len(fit) > MAX_BITMAPS:
        text = "%s: of its %d bitmaps the first %d are offered"
        log.warning(text, printable(dd.name), len(fit), MAX_BITMAPS)
    return [nbd.QEMU_BITMAP + name for name in fit[:MAX_BITMAPS]]


def _may_be_sent(name: str) -> bool:
    try:
        size = len((nbd.QEMU_BITMAP + name).encode())
    except UnicodeEncodeError:
        return False
    return size <= nbd.MAX_STRING and "\0" not in name


def context_of(dd: DiskDriver, name: str, mark: Callable[[], int | None]) -> Context:
    """What a context says of an image, for one client.

    Args:
        dd: the child.
        name: one of `context_names`.
        mark: as `Engine.content_mark`.
    """
    if name == nbd.BASE_ALLOCATION:
        return Allocation(dd)
    if name in (nbd.DEPTH, nbd.QEMU_DEPTH):
        return Depth(dd)
    return Dirty(dd, name.removeprefix(nbd.QEMU_BITMAP), mark)
