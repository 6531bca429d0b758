"""Files that fail, do less than they were asked for, or do it late: for drivers under test.

    with Faults(path, rng=rng, late=0.5) as faults:
        faults.fail("write", errno.ENOSPC, after=3)
        ...                                    # work on the image through tapcore
        faults.heal()

The faults lie where `ImageFile`, or a driver itself, calls the kernel by functions of `os`. What a
driver does by other ways (a file object of Python's) never fails.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import sleep
from types import TracebackType
from typing import Any, Final, Literal, Self
from unittest.mock import patch

from tapcore.files import blockingfile
from tapcore.files.imagefile import ImageFile

Kind = Literal["read", "write", "flush", "size", "zero"]

_CALLS: Final[Mapping[str, Kind]] = {
    "pread": "read",
    "preadv": "read",
    "pwrite": "write",
    "pwritev": "write",
    "write": "write",
    "fsync": "flush",
    "fdatasync": "flush",
    "ftruncate": "size",
}
_LATEST: Final = 0.001
_LONGEST: Final = 5.0
"""Seconds for which a call is held at most."""


class Faults:
    """While it is entered, some files have faults, as ordered by `fail` and by the arguments.

    Args:
        paths: of the files; what is done to others is as ever.
        rng: decides.
        late: how often the page cache lets a call wait (0 to 1): `read_now` and the like return
            None, and what threads do takes its time.
        short: how often a call moves only a part of what it was asked for.
        busy: how often `queue_read` and `queue_write` answer -EBUSY, where the driver did not say
            that the file keeps what finds no room.

    Attributes:
        failed: calls that have failed, by kind.
        calls: all calls, by kind.
    """

    def __init__(
        self,
        *paths: str | Path,
        rng: random.Random,
        late: float = 0.0,
        short: float = 0.0,
        busy: float = 0.0,
    ) -> None:
        self.paths = {os.path.realpath(path) for path in paths}
        self.rng, self.late, self.short, self.busy = rng, late, short, busy
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self._ordered: dict[str, tuple[int, int, int]] = {}
        self._lock = threading.Lock()
        self._held: tuple[Kind, bool] | None = None
        self._released = threading.Event()
        self._patches = ExitStack()

    def fail(self, kind: Kind, code: int, *, after: int = 0, times: int = 1 << 60) -> None:
        """Let calls fail from now on.

        Args:
            kind: "read", "write", "flush" (fdatasync), "size" (ftruncate), "zero" (holes).
            code: errno.
            after: so many calls of that kind go well before.
            times: so many fail; then all is well again.
        """
        first = self.calls[kind] + after
        self._ordered[kind] = (first, first + times, code)

    def heal(self) -> None:
        """Nothing fails any more."""
        self._ordered.clear()

    def hold(self, kind: Kind, *, done: bool = False) -> None:
        """Let the calls of a kind that threads make wait, until `release`.

        Args:
            kind: as for `fail`.
            done: each is done before it waits; else it is not even begun.
        """
        self._released.clear()
        self._held = kind, done

    def release(self) -> None:
        """Let what is held go on."""
        self._held = None
        self._released.set()

    # ---- in the way -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for name, kind in _CALLS.items():
            self._put(os, name, self._call(kind, getattr(os, name)))
        for name in ("punch_hole", "zero_range"):
            self._put(blockingfile, name, self._call("zero", getattr(blockingfile, name)))
        for name in ("read_now", "write_now", "metadata_now"):
            self._put(ImageFile, name, self._now(getattr(ImageFile, name)))
        self._put(ImageFile, "write_mapped", lambda *_: False)  # `write_now` may fail instead
        self._put(ImageFile, "fill", lambda *_, end: False)
        for name in ("queue_read", "queue_write"):
            self._put(ImageFile, name, self._queued(getattr(ImageFile, name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        self._patches.close()

    def _put(self, owner: Any, name: str, replacement: Any) -> None:
        self._patches.enter_context(patch.object(owner, name, replacement))

    def _covers(self, fd: int) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{fd}") in self.paths
        except OSError:
            return False

    def _call(self, kind: Kind, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            if not self._covers(fd):
                return original(fd, *args)
            self._meet(kind)
            if self.short and kind in ("read", "write") and self._happens(self.short):
                args = _shortened(kind, args)
            result = original(fd, *args)
            self._wait(kind, done=True)
            return result

        return call

    def _meet(self, kind: Kind) -> None:
        """One more call of a kind; it may have to wait, or fail."""
        with self._lock:
            number = self.calls[kind]
            self.calls[kind] += 1
            first, end, code = self._ordered.get(kind, (0, 0, 0))
            failing = first <= number < end
            self.failed[kind] += failing
        self._wait(kind, done=False)
        if self.late and threading.current_thread() is not threading.main_thread():
            sleep(_LATEST * self.rng.random())
        if failing:
            raise OSError(code, os.strerror(code))

    def _wait(self, kind: Kind, *, done: bool) -> None:
        in_thread = threading.current_thread() is not threading.main_thread()
        if in_thread and self._held == (kind, done):
            self._released.wait(_LONGEST)

    def _happens(self, often: float) -> bool:
        return self.rng.random() < often

    def _now(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(file: ImageFile, *args: Any) -> Any:
            if self.late and self._is_mine(file) and self._happens(self.late):
                return None
            return original(file, *args)

        return method

    def _queued(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(file: ImageFile, *args: Any) -> Any:
            refusing = self.busy and file.in_flight and not file.keeps_overflow
            if refusing and self._is_mine(file) and self._happens(self.busy):
                return -errno.EBUSY
            return original(file, *args)

        return method

    def _is_mine(self, file: ImageFile) -> bool:
        return os.path.realpath(file.path) in self.paths


def _shortened(kind: Kind, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments after the descriptor, for about half of what was asked."""
    what, *rest = args
    if isinstance(what, int):  # pread's count
        return (_half(what), *rest)
    if isinstance(what, (list, tuple)):
        if len(what) != 1:
            return (what[:1], *rest)
        view = memoryview(what[0]).cast("B")
        return ([view[: _half(len(view))]], *rest)
    view = memoryview(what).cast("B")
    return (view[: _half(len(view))], *rest)


def _half(length: int) -> int:
    return max(length // 1024 * 512, min(length, 512)) if length else 0
