"""Tools stopped at every point: each moment at which a file is about to be changed or made safe.

    for folder in killed(tmp_path, prepare, work):   # kill -9: the files as they were then
        ...                                          # look at what lies in it
    for folder in stopped(tmp_path, prepare, work, "full"):
        ...

A point is a call to the kernel that changes a file or its name, or flushes it. `killed` runs the
work once, and keeps the folder as it was before each of them. `stopped` runs it once for each:
there it is interrupted as by Ctrl-C (for work without an engine, in whose middle the tools put
Ctrl-C off), or the disk is full from then on.
"""

import errno
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from tapcore.files import hostfile
from tapcore.tools.progress import Progress

Work = Callable[[Path], object]
"""Does something in a folder."""

_CALLS = (
    (os, "pwrite"),
    (os, "pwritev"),
    (os, "write"),
    (os, "ftruncate"),
    (os, "truncate"),
    (os, "fdatasync"),
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "link"),
    (os, "unlink"),
    (os, "posix_fallocate"),
    (hostfile, "fallocate"),
)
_TAKING_SPACE = {"pwrite", "pwritev", "write", "ftruncate", "posix_fallocate", "fallocate"}


class Points:
    """Runs work with something called before each point.

    Args:
        at: called with the number of the point (from 1) and the name of the call.
    """

    def __init__(self, at: Callable[[int, str], None]) -> None:
        self._at = at
        self._lock = threading.Lock()
        self.count = 0

    def run(self, work: Work, folder: Path) -> None:
        """Do it; what it raises is raised."""
        with ExitStack() as stack:
            for module, name in _CALLS:
                wrapped = self._wrapped(name, getattr(module, name))
                stack.enter_context(patch.object(module, name, wrapped))
            work(folder)

    def _wrapped(self, name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.count += 1
                self._at(self.count, name)
                return original(*args, **kwargs)

        return call


def _copy(source: str, target: str) -> None:
    """A file with its holes, which cost nothing then; by no call that is a point."""
    with open(source, "rb") as old, open(target, "xb") as new:
        size, at = os.fstat(old.fileno()).st_size, 0
        new.truncate(size)
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole
                return
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            new.seek(at)
            new.write(os.pread(old.fileno(), end - at, at))
            at = end


def _copy_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, copy_function=_copy)


def killed(tmp_path: Path, prepare: Work, work: Work) -> Iterator[Path]:
    """The folder as a kill leaves it, before each point and after the last one.

    Args:
        tmp_path: to work in.
        prepare: makes the images.
        work: with them; it must succeed.
    """
    folder, states = tmp_path / "work", tmp_path / "states"
    folder.mkdir()
    prepare(folder)

    def keep(number: int, name: str) -> None:
        _copy_folder(folder, states / f"{number:05}-{name}")

    points = Points(keep)
    points.run(work, folder)
    assert points.count, "nothing was changed"
    yield from sorted(states.iterdir())
    yield folder


def stopped(
    tmp_path: Path,
    prepare: Work,
    work: Work,
    how: Literal["interrupt", "full"],
    most: int = 40,
) -> Iterator[Path]:
    """The folder after the work was stopped at a point, for each.

    Args:
        tmp_path: to work in.
        prepare: makes the images.
        work: with them.
        how: "interrupt": as Ctrl-C does it. "full": from then on no call that takes space succeeds.
        most: points that are tried; where there are more, evenly spread.
    """
    first = tmp_path / "first"
    first.mkdir()
    prepare(first)
    pristine = tmp_path / "pristine"
    _copy_folder(first, pristine)
    points = Points(lambda number, name: None)
    points.run(work, first)
    step = max(points.count // most, 1)
    for stop in range(1, points.count + 1, step):
        folder = tmp_path / f"{how}-{stop}"
        _copy_folder(pristine, folder)
        at = _interrupting(stop) if how == "interrupt" else _full(stop)
        with suppress(Exception, KeyboardInterrupt):
            Points(at).run(work, folder)
        yield folder
        shutil.rmtree(folder)


def _interrupting(stop: int) -> Callable[[int, str], None]:
    fired: list[int] = []

    def at(number: int, name: str) -> None:
        here = threading.current_thread() is threading.main_thread()  # no signal goes elsewhere
        if number >= stop and here and not fired:
            fired.append(number)
            raise KeyboardInterrupt

    return at


def interrupted(
    tmp_path: Path, prepare: Work, work: Callable[[Path, Progress], object]
) -> Iterator[Path]:
    """The folder after Ctrl-C, which a tool with a progress bar heeds between two pieces.

    Args:
        tmp_path: to work in.
        prepare: makes the images.
        work: with them; told what to call between pieces.
    """
    for stop in itertools.count(1):
        folder = tmp_path / f"interrupted-{stop}"
        folder.mkdir()
        prepare(folder)
        calls = itertools.count(1)

        def progress(done: int, total: int, calls: Any = calls, stop: int = stop) -> None:
            if next(calls) == stop:
                raise KeyboardInterrupt

        try:
            work(folder, progress)
        except KeyboardInterrupt:
            yield folder
        else:
            yield folder
            return


def _full(stop: int) -> Callable[[int, str], None]:
    def at(number: int, name: str) -> None:
        if number >= stop and name in _TAKING_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return at
