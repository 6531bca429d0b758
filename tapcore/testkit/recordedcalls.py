"""Where the recorder stands: the methods and functions through which drivers change files."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, Protocol

import attrs

from tapcore.files.direct import DirectFile
from tapcore.files.imagefile import ImageFile
from tapcore.interface.answer import AnswerTuple, Then, as_then
from tapcore.testkit.crashstates import Change


@attrs.frozen
class OpenFile:
    """What stands for a file that a driver writes by its descriptor."""

    path: str


class Recorder(Protocol):
    """Who notes what happens; `Recording` is one."""

    before: Mapping[str, bytes]

    def now(self) -> int:
        """A moment."""

    def covers(self, file: ImageFile) -> bool:
        """Whether a file is one of those recorded."""

    def begin(
        self,
        file: ImageFile | OpenFile,
        kind: Literal["write", "zero", "size"],
        offset: int,
        end: int,
        data: bytes = b"",
    ) -> Change:
        """Note that something begins."""

    def finish(self, change: Change, ok: bool) -> None:
        """It is over."""

    def barrier(self, file: ImageFile | OpenFile, began: int) -> None:
        """An fdatasync that began at a moment has succeeded."""


# ---- the methods of ImageFile that call the kernel ---------------------------------------------

_inside = threading.local()
"""`method`: this thread is in one of these methods, which has noted what it does."""


def method_of(recording: Recorder, wrapper: Any, original: Any) -> Any:
    def inside(*args: Any, **kwargs: Any) -> Any:
        before, _inside.method = getattr(_inside, "method", False), True
        try:
            return original(*args, **kwargs)
        finally:
            _inside.method = before

    def method(self: ImageFile, *args: Any, **kwargs: Any) -> Any:
        if not recording.covers(self):
            return original(self, *args, **kwargs)
        return wrapper(recording, partial(inside, self), self, *args, **kwargs)

    return method


def _doing(recording: Recorder, call: Any, change: Change, *, anything: bool = False) -> Any:
    """Make the call; what it returns tells of success, unless anything does."""
    try:
        result = call()
    except BaseException:
        recording.finish(change, False)
        raise
    recording.finish(change, anything or not result)
    return result


def _write_now(rec: Recorder, call: Any, file: ImageFile, offset: int, buf: Any) -> Any:
    view = memoryview(buf).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    result = call(offset, buf)
    rec.finish(change, result == 0)  # None: it is queued, and comes again
    return result


def _write_mapped(rec: Recorder, call: Any, file: ImageFile, *_: Any) -> bool:
    """Not while calls are recorded: `write_now` does it."""
    return False


def _fill(rec: Recorder, call: Any, file: ImageFile, *_: Any, end: int) -> bool:
    """The same."""
    return False


def _write(rec: Recorder, call: Any, file: ImageFile, offset: int, buf: Any) -> Any:
    view = memoryview(buf).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    return _doing(rec, partial(call, offset, buf), change)


def _write_metadata(rec: Recorder, call: Any, file: ImageFile, offset: int, data: Any) -> Any:
    view = memoryview(data).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    change.metadata = True
    return _doing(rec, partial(call, offset, data), change)


def _punch(rec: Recorder, call: Any, file: ImageFile, offset: int, length: int, *more: Any) -> Any:
    change = rec.begin(file, "zero", offset, offset + length)
    return _doing(rec, partial(call, offset, length, *more), change)


def _resize(rec: Recorder, call: Any, file: ImageFile, size: int) -> Any:
    change = rec.begin(file, "size", size, size)
    return _doing(rec, partial(call, size), change)


def _truncate_up(rec: Recorder, call: Any, file: ImageFile, size: int) -> Any:
    if size <= file.size:
        return call(size)
    return _resize(rec, call, file, size)


def _flush(rec: Recorder, call: Any, file: ImageFile) -> Any:
    began = rec.now()
    result = call()
    if result == 0:
        rec.barrier(file, began)
    return result


def _close(rec: Recorder, call: Any, file: ImageFile) -> Any:
    file.drain()
    began = rec.now()
    result = call()
    if not file.read_only:
        rec.barrier(file, began)
    return result


def _queue_direct(
    rec: Recorder, call: Any, file: ImageFile, offset: int, buf: Any, then: Then | AnswerTuple
) -> Any:
    if isinstance(then, _Then):  # it had found no room, and comes again
        return call(offset, buf, then)
    view = memoryview(buf).cast("B")
    change = rec.begin(file, "write", offset, offset + len(view), bytes(view))
    result = call(offset, buf, _Then(rec, change, as_then(then)))
    if result:
        rec.finish(change, False)
    return result


@attrs.frozen
class _Then:
    """What follows a write, and notes its end."""

    recording: Recorder
    change: Change
    then: Then

    def __call__(self, res: int) -> int:
        self.recording.finish(self.change, res == 0)
        return self.then(res)


METHODS: tuple[tuple[type[ImageFile], str, Any], ...] = (
    (ImageFile, "write_now", _write_now),
    (ImageFile, "write_mapped", _write_mapped),
    (ImageFile, "fill", _fill),
    (ImageFile, "write_blocking", _write),
    (ImageFile, "write_metadata", _write_metadata),
    (ImageFile, "zero_blocking", _punch),
    (ImageFile, "discard_blocking", _punch),
    (ImageFile, "flush_blocking", _flush),
    (ImageFile, "resize", _resize),
    (ImageFile, "truncate_up", _truncate_up),
    (ImageFile, "close", _close),
    (DirectFile, "queue_write", _queue_direct),
)


# ---- functions of os, called by a driver -------------------------------------------------------


def call_of(recording: Recorder, wrapper: Any, original: Any) -> Any:
    """What stands for a function of `os` meanwhile.

    What is safe is a matter of the record: the disk itself is never waited for.
    """
    if wrapper is _os_sync:
        original = _no_sync

    def call(fd: int, *args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "method", False):
            return original(fd, *args, **kwargs)
        file = OpenFile(os.path.realpath(f"/proc/self/fd/{fd}"))
        if file.path not in recording.before:
            return original(fd, *args, **kwargs)
        return wrapper(recording, partial(original, fd), file, fd, *args, **kwargs)

    return call


def _os_write(rec: Recorder, call: Any, file: OpenFile, fd: int, data: Any, offset: int) -> int:
    return _os_writev(rec, lambda parts, at: call(parts[0], at), file, fd, (data,), offset)


def _os_writev(
    rec: Recorder, call: Any, file: OpenFile, fd: int, parts: Any, offset: int, *more: Any
) -> int:
    data = b"".join(bytes(part) for part in parts)
    change = rec.begin(file, "write", offset, offset + len(data), data)
    change.metadata = True
    written: int = _doing(rec, partial(call, parts, offset, *more), change, anything=True)
    change.data, change.end = data[:written], offset + written
    return written


def _os_write_here(rec: Recorder, call: Any, file: OpenFile, fd: int, data: Any) -> int:
    offset = os.lseek(fd, 0, os.SEEK_CUR)
    return _os_write(rec, lambda data, at: call(data), file, fd, data, offset)


def _os_truncate(rec: Recorder, call: Any, file: OpenFile, fd: int, size: int) -> None:
    _doing(rec, partial(call, size), rec.begin(file, "size", size, size))


def _os_sync(rec: Recorder, call: Any, file: OpenFile, fd: int) -> None:
    rec.barrier(file, rec.now())


def _no_sync(fd: int) -> None:
    pass


CALLS: dict[str, Any] = {
    "pwrite": _os_write,
    "pwritev": _os_writev,
    "write": _os_write_here,
    "ftruncate": _os_truncate,
    "fsync": _os_sync,
    "fdatasync": _os_sync,
}
