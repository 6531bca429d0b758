"""The files of a new image, made beside what they replace and put in its place when they are whole.

While an image is made (`making`), `create_host_file` gives each of its files to the set of the
moment, and whoever opens one by its final name through this layer gets the new one; everybody else
still sees what was there. Where the file system has them these are files without a name
(O_TMPFILE): whatever ends the process, nothing of them stays. Elsewhere they have a hidden name,
which the next run recognises and removes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from tapcore.errors import ImageOpenError, TapError, UsageError, describe
from tapcore.files import inplace, newfile, placing
from tapcore.files.beingmade import CURRENT
from tapcore.files.existing import open_existing
from tapcore.files.hostfile import refuse_read_only_device
from tapcore.files.locks import lock_image, unlock_image
from tapcore.files.newfile import NewFile
from tapcore.interface.identity import Identity, identity_of

log = logging.getLogger(__name__)

_HEAD: Final = 4096
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class NewFiles:
    """The files of one image; see `making`.

    Args:
        path: of the main file.
        replace: what lies there, and where its other files go, may be replaced.
        untouchable: files that must not be replaced all the same, and what to say of each.

    Attributes:
        path: of the main file; where that is a symbolic link, of what it leads to: it stays.
        working: the name under which a driver makes the main file, and opens it.
        mode_limit: permissions that the new files have at most.
    """

    def __init__(self, path: str, *, replace: bool, untouchable: Mapping[Identity, str]) -> None:
        try:
            self._main = os.path.realpath(path)
        except OSError as exc:  # of a directory that is no more
            raise ImageOpenError(describe(exc), image=path, errno=exc.errno) from None
        self.path = self.working = self._main if os.path.islink(path) else path
        self.mode_limit = 0o777
        self._replace = replace
        self._untouchable = untouchable
        self._files: dict[str, NewFile] = {}
        self._superseded: dict[str, int] = {}
        self._published = False

    # ---- for drivers, through the functions of this layer --------------------------------------

    def has(self, path: str) -> bool:
        """Whether a file of that final name is being made, and is not there yet."""
        made = self._files.get(os.path.realpath(path))
        return made is not None and not made.in_place

    def create(self, path: str) -> int:
        """Begin a file, or begin it anew.

        Args:
            path: its final name.

        Returns:
            A descriptor, which is the set's to close: a new file, or one that is overwritten.

        Raises:
            TapError: something lies there that must stay, or it cannot be made.
        """
        real = os.path.realpath(path)
        made = self._files.get(real)
        if made is None:
            made = self._files[real] = self._begin(real)
        made.begun = True
        return made.fd

    def reopen(self, path: str, flags: int) -> int | None:
        """A descriptor of its own for a file that is being made; None where it is not."""
        made = self._files.get(os.path.realpath(path))
        if made is None or made.in_place:
            return None
        return newfile.reopen(made, flags)

    def take_back(self, path: str) -> None:
        """Make a file no more; what is not being made stays as it is."""
        real = os.path.realpath(path)
        made = self._files.get(real)
        if made is not None:
            _take_back(made)
            made.close()
            del self._files[real]

    def supersede(self, path: str) -> None:
        """Remove a file of the old image when the new one is placed, if that has none of its name.

        Raises:
            TapError: it must stay, or is in use.
        """
        real = os.path.realpath(path)
        if real in self._superseded or real in self._files:
            return
        old_fd = self._old(real)
        if old_fd is not None:
            self._superseded[real] = old_fd

    def occupied(self) -> int:
        """Bytes that the new files take so far; for another thread while they are written."""
        total = 0
        for made in list(self._files.values()):
            with contextlib.suppress(OSError):
                total += os.stat(made.handle).st_blocks * 512
        return total

    def is_main(self, name: str) -> bool:
        """Whether an error that names a file means the main one."""
        return name in (self.working, self.path, self._main)

    # ---- beginning ---------------------------------------------------------------------------

    def use_name(self) -> None:
        """Give the main file a name of its own at once: its driver opens files in his own way."""
        real = self._main
        old_fd = self._old(real)
        why = inplace.why_in_place(real, old_fd) if old_fd is not None else None
        if old_fd is not None and why is not None:
            self._files[real] = _in_place(real, old_fd, why)
            self._files[real].begun = True
            return
        newfile.sweep(real)
        self.working = newfile.temporary_name(self.path)
        self._files[real] = NewFile(real, -1, temporary=self.working, old_fd=old_fd)

    def _begin(self, real: str) -> NewFile:
        old_fd = self._old(real)
        try:
            return self._new(real, old_fd)
        except BaseException:
            if old_fd is not None:
                os.close(old_fd)
            raise

    def _old(self, real: str) -> int | None:
        """What lies at a place, locked: nobody is to begin to use what is about to go."""
        if not os.path.lexists(real):
            return None
        what = self._untouchable.get(identity_of(real) or (-1, -1))
        if what:
            raise UsageError(what, image=real)
        refuse_read_only_device(real, real)
        if not self._replace:
            raise UsageError("exists already; --force replaces it", image=real, errno=errno.EEXIST)
        if real in self._superseded:  # which holds the lock
            return self._superseded.pop(real)
        fd = open_existing(real, os.O_RDWR)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                lock_image(fd, writing=True, path=real)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _new(self, real: str, old_fd: int | None) -> NewFile:
        why = inplace.why_in_place(real, old_fd) if old_fd is not None else None
        if old_fd is not None and why is not None:
            return _in_place(real, old_fd, why)
        try:
            fd, name = newfile.new_file(real)
        except OSError as exc:
            if old_fd is not None and exc.errno in _FORBIDDEN:
                return _in_place(real, old_fd, "its directory cannot be written")
            raise ImageOpenError(describe(exc), image=real, errno=exc.errno) from None
        return NewFile(real, fd, temporary=name, old_fd=old_fd)

    # ---- the end -----------------------------------------------------------------------------

    @property
    def overwrites_device(self) -> bool:
        """Whether the main file is a block device, which holds what it held."""
        made = self._files.get(self._main)
        return made is not None and made.in_place and stat.S_ISBLK(os.fstat(made.fd).st_mode)

    def limit_mode(self, modes: Iterable[int]) -> None:
        """Let nobody read the new files who may not read each of others, of these permissions."""
        for mode in modes:
            self.mode_limit &= mode | 0o600

    def publish(self, *, durable: bool = False) -> None:
        """Put the files in their places, the main file, which names the others, last.

        What replaces something is on disk before: one of the two is whole, whatever happens.

        Args:
            durable: all of it is on disk when this returns.

        Raises:
            TapError: it cannot be done; what was there still is.
        """
        main = self._files.get(self._main)
        others = [made for made in self._files.values() if made is not main]
        if main is not None:
            try:
                gone = [path for path in self._superseded if path not in self._files]
                placing.place(others, main, gone, mode_limit=self.mode_limit, durable=durable)
            except TapError:
                raise
            except OSError as exc:
                text = f"cannot be put in its place: {describe(exc)}"
                raise ImageOpenError(text, image=self.path, errno=exc.errno) from None
        self._published = True

    def keep_partial(self) -> list[str]:
        """Leave what there is, under names that nobody takes for whole; returns the names."""
        kept = []
        for made in self._files.values():
            name = f"{made.path}.partial"
            if made.in_place:
                continue
            try:
                placing.keep_as(made, name)
                kept.append(name)
            except OSError as exc:
                log.warning("%s: nothing can be kept there: %s", name, describe(exc))
        return kept

    def discard(self) -> str:
        """Close everything; of what was not published nothing is left.

        Returns:
            What is lost all the same, for a person; mostly nothing.
        """
        lost = ""
        for made in self._files.values():
            if not self._published:
                lost = _take_back(made) or lost
            made.close()
        self._files.clear()
        for real, fd in list(self._superseded.items()):
            del self._superseded[real]  # first: who interrupts does not have it closed twice
            os.close(fd)
        return lost


def _in_place(real: str, old_fd: int, why: str) -> NewFile:
    """Overwrite what lies there, as its user wants it; he is told where he may not expect it."""
    if why:
        log.warning("%s: %s, so it is overwritten in place, not replaced when whole", real, why)
    unlock_image(old_fd)  # whoever opens it to write takes a lock of his own
    return NewFile(real, old_fd, in_place=True, head=os.pread(old_fd, _HEAD, 0))


def _take_back(made: NewFile) -> str:
    if made.temporary:
        with contextlib.suppress(OSError):
            os.unlink(made.temporary)
        made.temporary = ""
    if not made.in_place or not made.begun or made.fd < 0:
        return ""
    if stat.S_ISBLK(os.fstat(made.fd).st_mode) and os.pread(made.fd, _HEAD, 0) == made.head:
        return ""
    return inplace.spoil(made)


@contextlib.contextmanager
def making(
    path: str,
    *,
    replace: bool,
    by_name: bool = False,
    untouchable: Mapping[Identity, str] | None = None,
) -> Iterator[NewFiles]:
    """Make an image; unless it is published inside, nothing of it is left and the old one stays.

    Args:
        path: of its main file.
        replace: what lies there, and where its other files go, may be replaced.
        by_name: its driver does not keep to this layer, and so needs a file with a name.
        untouchable: files that must not be replaced all the same, and what to say of each.

    Raises:
        TapError: what was raised inside, with the image's final name.
    """
    files = NewFiles(path, replace=replace, untouchable=untouchable or {})
    if by_name:
        files.use_name()
    outer = CURRENT.get()
    try:
        try:  # before it is set, as whoever interrupts may do so right after
            CURRENT.set(None if by_name else files)
            yield files
        except BaseException as exc:
            lost = files.discard()
            if isinstance(exc, TapError):
                _name(exc, files, path, lost)
            raise
        finally:
            CURRENT.set(outer)
            files.discard()
    finally:  # once more, for one that was interrupted in these lines
        CURRENT.set(outer)
        files.discard()


def _name(exc: TapError, files: NewFiles, path: str, lost: str) -> None:
    """Let an error speak of the image as its user named it."""
    if files.is_main(exc.image):
        exc.image = path
    text = exc.message.replace(files.working, path) if files.working != files.path else exc.message
    exc.message = f"{text} ({lost})" if lost else text
