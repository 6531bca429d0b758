"""Windows: parts of host files that are mapped while they are in use, so many at most.

A window says of a range whether its pages lie in the page cache, and whether the file system has
blocks for them. Both are looked at rarely and believed for a second: who believes what has changed
meanwhile may wait for the disk once, or gets EFAULT from the kernel, and nothing worse.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from tapcore.files.holes import HoleMap
from tapcore.files.mappable import maps_well, tells_of_pages, writes_pay
from tapcore.files.mapping import PAGE, Mapping
from tapcore.files.windowbudget import BUDGET

WINDOW: Final = 64 << 20
"""Bytes of a window; its place in the file is a multiple of that."""

LOOK: Final = 256 << 10
"""Bytes of which it is looked at once whether they lie in the page cache: 2 or 3 microseconds."""

MOST_WRITTEN: Final = 8 << 10
"""Bytes of a write at most that goes through a window: each page costs a fault."""

REGION: Final = 2 << 20
"""Bytes of which it is counted how often they are written: the largest folio. Whoever writes a page
through a mapping makes all of its folio dirty, and all of it is written to the disk."""

OFTEN: Final = 64
"""So many small writes of a region, since the last flush and within `COUNTED_SECONDS`, go by
`pwrite`, which makes nothing else dirty. A disk that is asked for these writes takes about as long
as for the whole region; so whatever comes on top of them through the window costs the disk nothing
more."""

COUNTED_SECONDS: Final = 10.0
"""So long writes are counted. The kernel by itself writes what has been dirty for half a minute, so
that hardly more than one region is written in vain for each time that one was written often."""

TRUSTED_SECONDS: Final = 1.0
"""So long what was seen is believed. A window that nobody used meanwhile may be given up."""

_AGAIN_SECONDS: Final = 0.1
"""So long nothing is tried again that did not go: there are as many windows as may be, say."""

_MOST_RUNS: Final = 256
"""A window with more runs of data and holes than this is not looked through."""

_SHIFT: Final = WINDOW.bit_length() - 1
_INSIDE: Final = WINDOW - 1
_REGION_SHIFT: Final = REGION.bit_length() - 1
_PAGE_SHIFT: Final = PAGE.bit_length() - 1
_PAGES_OF_LOOK: Final = LOOK // PAGE

_BLIND: Final = 31
"""Writes that are done as usual after one that was looked for in vain."""


class HostFile(Protocol):
    """What windows ask of a file: see `BlockingFile`."""

    fd: int
    size: int
    read_only: bool
    holes: HoleMap


class Window:
    """One part of a file.

    Attributes:
        view: its memory.
        pages: 1 for each page that lies in the page cache as far as is known, else 0.
        until: what is known is believed until then (`time.monotonic`).
        solid: the file system has blocks for all of it.
        blocks: 1 for each page for which it has, where it is not solid; None: not looked at yet.
        target: its memory, to be written; None where that does not pay.
        mapping: behind the view.
        written: how often each region was written lately, up to `OFTEN`.
        counted: that is forgotten after this time.
    """

    __slots__ = (
        "blocks",
        "counted",
        "mapping",
        "pages",
        "solid",
        "target",
        "until",
        "view",
        "written",
    )

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.view = mapping.view
        self.target = mapping.target
        self.pages = mapping.pages
        self.until = self.counted = 0.0
        self.solid = False
        self.blocks: bytearray | None = None
        self.forget_writes()

    def forget_writes(self) -> None:
        """What was written is on the disk, or it is long ago."""
        self.written = bytearray(WINDOW // REGION)


class Windows:
    """The windows of one file. Not for several threads at once.

    Args:
        file: whose content is wanted, through the page cache.
    """

    __slots__ = (
        "_blind",
        "_by_number",
        "_carrier",
        "_file",
        "_none_before",
        "_not_before",
        "_usable",
    )

    def __init__(self, file: HostFile) -> None:
        self._file = file
        self._by_number: dict[int, Window] = {}
        self._usable: bool | None = None
        self._blind = 0  # so many writes are not looked for
        self._carrier = -1  # a file in memory, through which content goes to its place
        self._none_before = 0.0  # the file is not to be mapped at all
        self._not_before = 0.0  # no window more than there are

    # ---- a range of the file ----------------------------------------------------------------

    def to_read(self, offset: int, length: int, now: float) -> memoryview | None:
        """A range (bytes) as memory that can be read from without waiting for a disk.

        Args:
            offset: of the file.
            length: at least 1; the range lies inside the file.
            now: `time.monotonic()`, or a little before.

        Returns:
            Memory to be handed to a system call at once; None: read it as usual.
        """
        number = offset >> _SHIFT
        window = self._by_number.get(number)
        if window is None or now >= window.until:
            window = self._renewed(number, now)
            if window is None:
                return None
        skip = offset & _INSIDE
        end = skip + length
        first, last = skip >> _PAGE_SHIFT, (end - 1) >> _PAGE_SHIFT
        pages = window.pages
        if first == last:
            if not pages[first] and not self._lies_there(window, first, last):
                return None
        elif end > WINDOW or (
            pages.find(0, first, last + 1) >= 0 and not self._lies_there(window, first, last)
        ):
            return None
        return window.view[skip:end]

    def data_to_read(self, offset: int, length: int, now: float) -> memoryview | None:
        """The same where none of the range is a hole of the file."""
        view = self.to_read(offset, length, now)
        if view is None or self._has_blocks(offset, length):
            return view
        return None

    # ---- writing ----------------------------------------------------------------------------

    @property
    def carrier(self) -> int:
        """A file in memory, through which content goes to its place: its descriptor.

        Raises:
            OSError: there is none left.
        """
        if self._carrier < 0:
            self._carrier = os.memfd_create("tapcore", os.MFD_CLOEXEC)
        return self._carrier

    def to_write(self, offset: int, length: int, now: float) -> memoryview | None:
        """A range as memory that can be written without waiting for a disk, or for room on it.

        Where the disk would have to write much more than that for it, there is none: see `OFTEN`.

        Returns:
            Memory to be handed to a system call at once; None: write it as usual.
        """
        number = offset >> _SHIFT
        window = self._by_number.get(number)
        if window is None or now >= window.until:
            window = self._renewed(number, now)
            if window is None:
                return None
        target = window.target
        if target is None:
            return None
        skip = offset & _INSIDE
        region = skip >> _REGION_SHIFT
        if window.written[region] < OFTEN:
            window.written[region] += 1
            return None
        end = skip + length
        first, stop = skip >> _PAGE_SHIFT, ((end - 1) >> _PAGE_SHIFT) + 1
        if (
            end > WINDOW
            or window.pages.find(0, first, stop) >= 0
            or not (window.solid or (window.blocks and window.blocks.find(0, first, stop) < 0))
        ) and not self._found(offset, length, now):  # more than a glance is needed
            return None
        return target[skip:end]

    def _found(self, offset: int, length: int, now: float) -> bool:
        """Whether a look finds that a range can be written.

        After one that was in vain there is none for a while: who fills a hole, or goes on behind a
        file's end, would have every new page looked for.
        """
        if self._blind:
            self._blind -= 1
            return False
        if self.data_to_read(offset, length, now) is not None:
            return True
        self._blind = _BLIND
        return False

    def _has_blocks(self, offset: int, length: int) -> bool:
        """Of a range for which `to_read` has just answered."""
        number, skip = offset >> _SHIFT, offset & _INSIDE
        window = self._by_number[number]
        if window.solid:
            return True
        blocks = window.blocks
        if blocks is None:
            blocks = self._look_for_blocks(window, number << _SHIFT)
        return blocks.find(0, skip >> _PAGE_SHIFT, ((skip + length - 1) >> _PAGE_SHIFT) + 1) < 0

    # ---- what is known of a window ----------------------------------------------------------

    def _lies_there(self, window: Window, first: int, last: int) -> bool:
        """Look at pages that were not in memory, or not looked at yet."""
        start = first - first % _PAGES_OF_LOOK
        end = last - last % _PAGES_OF_LOOK + _PAGES_OF_LOOK
        try:
            window.mapping.look(start, end - start)
        except OSError:  # the kernel has no room to say it
            return False
        return window.pages.find(0, first, last + 1) < 0

    def _look_for_blocks(self, window: Window, start: int) -> bytearray:
        """For each page 1 where it has all of its own, else 0; noted, too."""
        file, blocks = self._file, bytearray(WINDOW // PAGE)
        end = min(start + WINDOW, file.size)
        window.blocks = blocks
        for count, (low, high, data) in enumerate(file.holes.runs(start, end)):
            if count == _MOST_RUNS:
                break
            if data:
                window.solid = (low, high) == (start, end) and end == start + WINDOW
                first = (low - start + PAGE - 1) >> _PAGE_SHIFT
                stop = (high - start + (PAGE - 1 if high == end else 0)) >> _PAGE_SHIFT
                blocks[first:stop] = b"\1" * (stop - first)
        return blocks

    def forget_blocks(self) -> None:
        """A hole was punched into the file, perhaps by another thread."""
        for window in list(self._by_number.values()):
            window.solid, window.blocks = False, None

    def flushing(self) -> None:
        """All that was written so far is being brought to the disk, perhaps by another thread."""
        for window in list(self._by_number.values()):
            window.forget_writes()

    def distrust(self) -> None:
        """A call has failed there: look again at everything before it is believed."""
        for window in self._by_number.values():
            window.until = 0.0

    def _renewed(self, number: int, now: float) -> Window | None:
        """A window of which nothing is known, or not any more; None where there can be none."""
        window = self._by_number.get(number)
        if now < (self._not_before if window is None else self._none_before):
            return None
        if not self.usable or self.shrunk():
            self._none_before = self._not_before = now + _AGAIN_SECONDS
            return None
        if window is None:
            window = self._open(number) if BUDGET.has_room(now) else None
            if window is None:
                self._not_before = now + _AGAIN_SECONDS
                return None
        else:
            window.mapping.forget()
            if not window.solid:
                window.blocks = None
        window.until = now + TRUSTED_SECONDS
        if now >= window.counted:
            window.forget_writes()
            window.counted = now + COUNTED_SECONDS
        return window

    def _open(self, number: int) -> Window | None:
        try:
            writable = not self._file.read_only and writes_pay(self._file.fd)
            mapping = Mapping(self._file.fd, number << _SHIFT, WINDOW, writable=writable)
        except OSError:  # too little address space, say
            return None
        window = self._by_number[number] = Window(mapping)
        BUDGET.opened(self, number)
        return window

    def shrunk(self) -> bool:
        """Whether the file has become shorter while it was open; its windows are given up then.

        The end of its last page would read as zeroes.
        """
        file = self._file
        size = file.size  # before the look: a write beside it may make the file longer
        if os.lseek(file.fd, 0, os.SEEK_END) >= size:
            return False
        self.give_up()
        return True

    # ---- the end ----------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._by_number)

    def until(self, number: int) -> float:
        """Up to when what a window knows is believed; it was used at most a second before."""
        window = self._by_number.get(number)
        return window.until if window is not None else 0.0

    def give_up(self, number: int | None = None) -> None:
        """One window, or all: the file is being closed, or has another size now.

        What was handed out lives as long as it is kept.
        """
        if number is not None:
            self._by_number.pop(number, None)
            return
        self._by_number.clear()
        BUDGET.gone(self)
        carrier, self._carrier = self._carrier, -1
        if carrier >= 0:
            os.close(carrier)

    @property
    def usable(self) -> bool:
        """Whether this file can have windows."""
        if self._usable is None:
            try:
                self._usable = maps_well(self._file.fd) and tells_of_pages(self._file.fd)
            except Exception:  # a Python without ctypes, too: it is only for speed
                self._usable = False
        return self._usable
