"""Putting new files in the places of old ones, so that each is old or new, and whole."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from tapcore.errors import UsageError
from tapcore.files.newfile import NewFile, sweep, temporary_name
from tapcore.interface.identity import identity_of, identity_of_open

_NO_LINK: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_NEW_MODE: Final = 0o644


def place(
    others: Sequence[NewFile],
    main: NewFile,
    gone: Sequence[str] = (),
    *,
    mode_limit: int,
    durable: bool,
) -> None:
    """Give new files their names: the others first, then the main file, which names them.

    Args:
        others: perhaps none.
        main: the file whose name is the image's.
        gone: files of the old image, to be removed then.
        mode_limit: permissions that the files have at most.
        durable: all is on disk when this returns.

    Raises:
        OSError, UsageError: what was there before still is.
    """
    files = [*others, main]
    for made in files:
        _settle(made, mode_limit)
    moves = [made for made in files if not made.in_place]
    if durable or any(made.old_fd is not None for made in moves):
        for made in files:
            _sync(made.handle)
    for made in moves:
        _refuse_newcomer(made)
    if not gone and len(moves) == 1 and not moves[0].temporary and moves[0].old_fd is None:
        _put(moves[0])  # one call: it cannot be half done
    elif moves:
        from tapcore.process.child import in_a_child  # a single new file needs none

        in_a_child(lambda: _put_all(moves, gone))
    for made in moves:
        made.temporary = ""
    if durable:
        for folder in {os.path.dirname(made.path) or "." for made in moves}:
            _sync(folder)


def _settle(made: NewFile, mode_limit: int) -> None:
    """Owner, attributes and permissions: those of the old file, or of any new one."""
    if made.in_place:
        status = os.fstat(made.fd)
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o777 & ~mode_limit:
            with contextlib.suppress(OSError):  # of somebody else's file
                os.fchmod(made.fd, status.st_mode & 0o777 & mode_limit)
        return
    with _as_descriptor(made.handle) as fd:  # a confined process changes no file by its name
        if made.old_fd is None:
            os.fchmod(fd, _NEW_MODE & ~_umask() & mode_limit)
        else:
            _settle_as(fd, made.old_fd, mode_limit)


def _settle_as(fd: int, old_fd: int, mode_limit: int) -> None:
    old, own = os.fstat(old_fd), os.fstat(fd)
    mode = old.st_mode & 0o777
    if (old.st_uid, old.st_gid) != (own.st_uid, own.st_gid):
        mode = _keep_owner(fd, old, mode)
    for name in os.listxattr(old_fd):
        with contextlib.suppress(OSError):
            os.setxattr(fd, name, os.getxattr(old_fd, name))
    os.fchmod(fd, mode & mode_limit)


def _keep_owner(fd: int, old: os.stat_result, mode: int) -> int:
    """Returns the permissions: without the group's where that cannot be kept."""
    for uid in (old.st_uid, -1):
        with contextlib.suppress(OSError):
            os.fchown(fd, uid, old.st_gid)
            return mode
    return mode & ~0o070


def _umask() -> int:
    """Of this process; os.umask would change it for a moment, for all threads."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _as_descriptor(handle: int | str) -> Iterator[int]:
    fd = handle if isinstance(handle, int) else os.open(handle, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        if fd is not handle:
            os.close(fd)


def _sync(handle: int | str) -> None:
    with _as_descriptor(handle) as fd:
        os.fsync(fd)


def _refuse_newcomer(made: NewFile) -> None:
    """Somebody may have put another file there in the meantime."""
    there = identity_of(made.path)
    if there is None:
        return
    if made.old_fd is None or there != identity_of_open(made.old_fd):
        raise UsageError("another file was put there in the meantime", image=made.path)


def _put_all(moves: Sequence[NewFile], gone: Sequence[str]) -> None:
    done: list[str] = []
    try:
        for made in moves:
            _put(made)
            if made.old_fd is None:
                done.append(made.path)
    except BaseException:
        for path in done:
            os.unlink(path)
        raise
    for path in gone:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _put(made: NewFile) -> None:
    if made.old_fd is None:
        _put_where_nothing_is(made)
        return
    name = made.temporary
    if not name:
        sweep(made.path)
        name = temporary_name(made.path)
        _link(made.fd, name)
    try:
        os.rename(name, made.path)
    except BaseException:
        if not made.temporary:
            os.unlink(name)
        raise


def _put_where_nothing_is(made: NewFile) -> None:
    if not made.temporary:
        _link(made.fd, made.path)
        return
    try:
        os.link(made.temporary, made.path)
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        os.rename(made.temporary, made.path)
    else:
        os.unlink(made.temporary)


def _link(fd: int, path: str) -> None:
    """Give a file without a name one; nothing may be there."""
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # with a directory, os.link follows the symbolic link that /proc has
        os.link(f"/proc/self/fd/{fd}", os.path.basename(path), dst_dir_fd=folder)
    finally:
        os.close(folder)


def keep_as(made: NewFile, name: str) -> None:
    """Leave a file that is not whole under a name, in the place of an older one."""
    if made.temporary:
        os.rename(made.temporary, name)
        made.temporary = ""
        return
    between = temporary_name(name)
    _link(made.fd, between)
    try:
        os.rename(between, name)
    except BaseException:
        os.unlink(between)
        raise
