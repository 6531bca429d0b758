"""Copying a disk's content into a new image of any format; sparse stays sparse."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from tapcore.disk import Disk
from tapcore.engine import MappedExtent
from tapcore.errors import NotSupportedError, UsageError
from tapcore.keys import Keys
from tapcore.models import DiskId
from tapcore.names import RAW_HANDLES
from tapcore.references import ReferencePolicy
from tapcore.registry import Registry, default_registry
from tapcore.tools.create import create_image, new_image_target
from tapcore.tools.opening import Progress, open_image
from tapcore.tools.readahead import Piece, read_ahead
from tapcore.tools.zeroes import data_runs, first_difference

_KERNEL_COPY_MIN: Final = 64 << 10
"""Shorter runs are written from memory: a system call of its own would cost more."""

_ZERO_WINDOW: Final = 1 << 30


def convert_image(
    source: str,
    target: str,
    *,
    parent: str = "",
    options: Mapping[str, str] | None = None,
    compressed: bool = False,
    snapshot: str = "",
    force: bool = False,
    references: ReferencePolicy | None = None,
    keys: Keys | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> tuple[DiskId, int]:
    """Make a new image with the content of another. On disk when it returns.

    Args:
        source: `[HANDLE:]PATH`.
        target: `[HANDLE:]PATH`; without a handle the suffix says the format.
        parent: of the new image, which then holds only what differs from it.
        options: of the new format (`-o`).
        compressed: store the data compressed.
        snapshot: copy this internal snapshot of the source.
        force: replace what is there.
        references: which files the source may name.
        keys: passphrases of encrypted images.
        registry: drivers to use instead of the installed ones.
        progress: told how far it is; what it raises stops the work.

    Returns:
        The new image, and the bytes written to it.

    Raises:
        TapError: with the name of the image concerned. A half-written target is removed, whatever
            stopped the work.
    """
    registry = registry or default_registry()
    goal, info = new_image_target(target, registry)
    if compressed:
        raise NotSupportedError(
            f"the format '{info.handle}' cannot store compressed data (-c)", image=goal.name
        )
    with open_image(source, references=references, keys=keys, registry=registry) as disk:
        if snapshot:
            raise NotSupportedError(
                f"the format '{disk.handle}' has no internal snapshots (--snapshot)",
                image=disk.state.image.name,
            )
        _refuse_own_source(disk, goal)
        create_image(
            str(goal),
            disk.size,
            parent=parent,
            options=options,
            force=force,
            references=references,
            keys=keys,
            registry=registry,
        )
        with (
            _removed_unless_finished(goal.name),
            open_image(
                goal, writing=True, references=references, keys=keys, registry=registry
            ) as new,
        ):
            written = _Copy(disk, new, progress, follows_parent=bool(parent)).run()
            new.sync()
    return goal, written


def _refuse_own_source(disk: Disk, goal: DiskId) -> None:
    assert disk.state.disks is not None
    for dd in disk.state.disks.chain():
        with contextlib.suppress(OSError):
            if os.path.samefile(dd.name, goal.name):
                raise UsageError("is the source, or one of its parents", image=goal.name)


@contextlib.contextmanager
def _removed_unless_finished(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(path).st_mode):
                os.unlink(path)
        raise


class _Copy:
    """The copying of one disk into a new one.

    Args:
        source: open for reading.
        target: open for writing, of the same size.
        progress: or None.
        follows_parent: the target shows a parent's content; only differences are written.
    """

    def __init__(
        self, source: Disk, target: Disk, progress: Progress | None, *, follows_parent: bool
    ) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._follows_parent = follows_parent
        self._fresh = not follows_parent and not _is_device(target.state.image.name)
        self._written = 0
        self._plain_fd = -1

    def run(self) -> int:
        """Copy; returns the bytes written."""
        with self._plain_target():
            for piece in read_ahead(self._source, self._ranges()):
                self._tell(piece.start)
                self._take(piece)
        self._tell(self._source.size)
        return self._written

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._source.size)

    def _ranges(self) -> Iterator[tuple[int, int, MappedExtent]]:
        """What has to be read; zeroes are seen to here (a fresh image is all zeroes)."""
        for extent in self._source.extents():
            if extent.kind != "zero":
                yield extent.start, extent.length, extent
            elif not self._fresh:
                self._zero(extent.start, extent.length)

    def _take(self, piece: Piece[MappedExtent]) -> None:
        """Write what a piece holds, leaving zeroes out where the target has them already."""
        if self._follows_parent:
            there = bytearray(piece.length)
            self._target.pread_into(piece.start, there)
            if first_difference(piece.content, there, piece.length) is not None:
                self._write(piece, 0, piece.length)
            return
        done = 0
        for start, end in data_runs(piece.content, piece.length):
            if start > done and not self._fresh:
                self._zero(piece.start + done, start - done)
            self._write(piece, start, end)
            done = end
        if done < piece.length and not self._fresh:
            self._zero(piece.start + done, piece.length - done)

    def _write(self, piece: Piece[MappedExtent], start: int, end: int) -> None:
        self._written += end - start
        if self._plain_fd >= 0 and piece.tag.fd is not None and end - start >= _KERNEL_COPY_MIN:
            start += self._copy_in_kernel(piece, start, end)
        if start < end:
            self._target.pwrite(piece.start + start, memoryview(piece.content)[start:end])

    def _copy_in_kernel(self, piece: Piece[MappedExtent], start: int, end: int) -> int:
        """Let the kernel copy, or share, plain data; returns the bytes that it did.

        The piece was read all the same, to find zeroes: it comes from the page cache then, and
        what is saved is the second copy, the blocks (where the file system shares them), and the
        way back over the network (where the server copies).
        """
        extent = piece.tag
        assert extent.fd is not None
        done = 0
        while start + done < end:
            at = piece.start + start + done
            try:
                count = os.copy_file_range(
                    extent.fd,
                    self._plain_fd,
                    end - start - done,
                    extent.offset + at - extent.start,
                    at,
                )
            except OSError:  # other file systems, kernels, a full disk: writing will say which
                count = 0
            if not count:
                break
            done += count
        return done

    def _zero(self, start: int, length: int) -> None:
        """Make a range of a target that is not fresh read as zeroes, where it does not yet."""
        for at in range(start, start + length, _ZERO_WINDOW):
            count = min(_ZERO_WINDOW, start + length - at)
            for extent in list(self._target.extents(at, count)):
                if extent.kind != "zero":
                    self._target.zero(extent.start, extent.length)

    @contextlib.contextmanager
    def _plain_target(self) -> Iterator[None]:
        """While it lasts, `_plain_fd` writes at the disk's own offsets, where that is so simple."""
        image = self._target.state.image
        if image.drivertype not in RAW_HANDLES or not self._fresh:
            yield
            return
        self._plain_fd = os.open(image.name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield
        finally:
            os.close(self._plain_fd)
            self._plain_fd = -1


def _is_device(path: str) -> bool:
    return stat.S_ISBLK(os.stat(path).st_mode)
