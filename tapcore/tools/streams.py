"""Standard input as a source, standard output as a target: images through pipes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from tapcore.buffers import long_bytearray
from tapcore.disk import Disk
from tapcore.errors import ImageFormatError, IOFailedError, TapError, UsageError, describe
from tapcore.formats.foreign import HEAD_BYTES, Sample, read_sample, what_it_says_it_is
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.registry import Registry
from tapcore.opening.probe import recognise, refusal
from tapcore.tools.plan import Job, in_units
from tapcore.tools.progress import Progress
from tapcore.tools.readahead import read_ahead
from tapcore.tools.zeroes import data_runs

log = logging.getLogger(__name__)

_NAME: Final = "standard input"
_ENDLESS: Final = 1 << 62

_STDIN: Final = 0
STDOUT: Final = 1
_PIECE: Final = 1 << 20
_UNIT: Final = 64 << 10
_POLL_MS: Final = 200


# ---- standard input --------------------------------------------------------------------------


Check: TypeAlias = Callable[[Sample], None]
"""Raises where the content must not be taken for a disk."""


def refuse_image(registry: Registry) -> Check:
    """The check of standard input that was not said to be a raw disk.

    Args:
        registry: the drivers that are asked, before the table of foreign formats.
    """

    def check(sample: Sample) -> None:
        handle = recognise("", sample, registry)
        if handle:
            raise ImageFormatError(
                f"holds a {handle} image, and only a raw disk can be read from there: save it to "
                "a file first (aio:- would copy it as it is)",
                image=_NAME,
            )
        found = what_it_says_it_is(sample)
        if found is not None and not found.raw:
            raise ImageFormatError(refusal(found, registry), image=_NAME)
        if found is not None and sample.size < _ENDLESS:
            log.warning("%s: is %s", _NAME, found.advice)

    return check


@contextlib.contextmanager
def standard_input(
    beside: str, progress: Progress | None, check: Check | None = None
) -> Iterator[str]:
    """Standard input up to its end as a file that can be opened by name.

    A pipe is kept in a temporary file without a name, which is sparse; a file is used as it is.

    Args:
        beside: a path in whose directory there is room for it.
        progress: told how much has come; what it raises stops the work.
        check: sees both ends of what has come; and the head alone, as soon as that is there.

    Yields:
        The name; it is gone afterwards.
    """
    if _is_whole_file(_STDIN):
        if check is not None:
            check(read_sample(_STDIN))
        yield f"/proc/self/fd/{_STDIN}"
        return
    import tempfile

    with tempfile.TemporaryFile(dir=os.path.dirname(beside) or ".", buffering=0) as spool:
        try:
            if not _spool(spool.fileno(), progress, check):
                raise UsageError("nothing came from standard input")
            if check is not None:
                check(read_sample(spool.fileno()))
        except TapError:
            raise
        except OSError as exc:
            raise IOFailedError(f"standard input: {describe(exc)}", errno=exc.errno) from None
        yield f"/proc/self/fd/{spool.fileno()}"


def _is_whole_file(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0
    except OSError:
        return False


def _spool(fd: int, progress: Progress | None, check: Check | None) -> int:
    """Keep what comes, but for zeroes; returns how many bytes it was."""
    buffer = long_bytearray(_PIECE)
    view = memoryview(buffer)
    ready = select.poll()
    ready.register(_STDIN, select.POLLIN)
    held = 0
    while True:
        if progress is not None:
            progress(held, 0)
        if not ready.poll(_POLL_MS):  # so that a signal is seen while nothing comes
            continue
        count = os.readv(_STDIN, [view])
        if not count:
            break
        for start, end in data_runs(buffer, count):
            _write_all(fd, view[start:end], held + start)
        if check is not None and held < HEAD_BYTES <= held + count:
            check(Sample(_ENDLESS, os.pread(fd, HEAD_BYTES, 0), b""))
        held += count
    os.ftruncate(fd, held)
    return held


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(fd, view, offset)
        offset += count
        view = view[count:]


# ---- standard output -------------------------------------------------------------------------


def stream_to_output(
    disk: Disk, info: DiskInfo, options: Mapping[str, str], progress: Progress | None
) -> int:
    """Write a disk as a new image to standard output; arguments and results as `stream_disk`.

    Raises:
        IOFailedError: reading or writing failed.
        BrokenPipeError: nobody reads any more.
    """
    if os.isatty(STDOUT):
        raise UsageError("an image is not written to a terminal; redirect standard output")
    return stream_disk(disk, info, options, progress, STDOUT)


def stream_disk(
    disk: Disk, info: DiskInfo, options: Mapping[str, str], progress: Progress | None, fd: int
) -> int:
    """Write a disk as a new image, from front to back.

    Args:
        disk: open.
        info: the driver of the new image's format, which has `td_stream`.
        options: of the format.
        progress: told how far it is; what it raises stops the work.
        fd: where to.

    Returns:
        Bytes written.

    Raises:
        IOFailedError: reading or writing failed.
        BrokenPipeError: nobody reads any more.
    """
    written = 0

    def out(data: Any) -> None:
        nonlocal written
        view = memoryview(data).cast("B")
        written += len(view)
        while view:
            view = view[_write_some(fd, view) :]

    assert info.drv is not None
    info.drv.td_stream(out, disk.size, options, _pieces(disk, progress))
    if progress is not None:
        progress(disk.size, disk.size)
    return written


def _write_some(fd: int, view: memoryview) -> int:
    try:
        return os.write(fd, view)
    except BlockingIOError:  # somebody made the pipe so
        ready = select.poll()
        ready.register(fd, select.POLLOUT)
        ready.poll()
        return 0
    except BrokenPipeError:
        raise
    except OSError as exc:
        where = "standard output: " if fd == STDOUT else ""
        raise IOFailedError(where + describe(exc), errno=exc.errno or errno.EIO) from None


def _pieces(disk: Disk, progress: Progress | None) -> Iterator[tuple[int, memoryview]]:
    """What a disk holds, in order, in whole units, zeroes left out."""
    held = (Job(run.start, run.end, "copy") for run in disk.extents() if run.kind != "zero")
    units = in_units(held, _UNIT, disk.size, "copy")
    for piece in read_ahead(disk, ((job.start, job.end - job.start, None) for job in units)):
        if progress is not None:
            progress(piece.start, disk.size)
        view = memoryview(piece.content)
        for start, end in data_runs(piece.content, piece.length, unit=_UNIT):
            yield piece.start + start, view[start:end]
