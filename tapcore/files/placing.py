"""Putting new files in the places of old ones, so that each is old or new, and whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import stat
import warnings
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from tapcore.errors import UsageError

_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_NO_LINK: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_NEW_MODE: Final = 0o644
_DONE: Final = b"0"


@attrs.define
class NewFile:
    """A file that is being made.

    Attributes:
        path: its final name, symbolic links resolved.
        fd: the file, open for reading and writing; -1 where only its name is known.
        temporary: its name until then; empty: none.
        old_fd: what lies at `path` now, locked; None: nothing.
        in_place: it is no new file, but the old one being overwritten.
        begun: of such a one: whether that has been done.
        head: its first bytes before.
    """

    path: str
    fd: int
    temporary: str = ""
    old_fd: int | None = None
    in_place: bool = False
    begun: bool = False
    head: bytes = b""

    @property
    def handle(self) -> int | str:
        """For calls that take a descriptor or a name."""
        return self.fd if self.fd >= 0 else self.temporary

    def close(self) -> None:
        """Give back the descriptors, and the locks with them."""
        for fd in {self.fd, self.old_fd}:
            if fd is not None and fd >= 0:
                os.close(fd)
        self.fd, self.old_fd = -1, None


# ---- making ----------------------------------------------------------------------------------


def new_file(path: str) -> tuple[int, str]:
    """A new file beside what it is to become, for nobody else to see.

    Args:
        path: its final name.

    Returns:
        A descriptor, and its name for the time being: empty where the file system can do without.

    Raises:
        OSError: as the system says.
    """
    folder = os.path.dirname(path) or "."
    if _can_be_unnamed():
        try:
            return _with_room(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)), ""
        except OSError as exc:
            if exc.errno not in _NO_TMPFILE:
                raise
    sweep(path)
    name = temporary_name(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    return _with_room(lambda: os.open(name, flags, 0o600)), name


def _can_be_unnamed() -> bool:
    """Without this directory what has no name cannot be given one."""
    return os.path.isdir("/proc/self/fd")


def reopen(made: NewFile, flags: int) -> int:
    """A descriptor of its own for a file that is being made."""
    name = made.temporary or f"/proc/self/fd/{made.fd}"
    return _with_room(lambda: os.open(name, flags | os.O_CLOEXEC))


def _with_room(opening: Callable[[], int]) -> int:
    """Open something; with more files where the limit of this process is in the way."""
    import resource  # now: at the limit it could not be opened either

    try:
        return opening()
    except OSError as exc:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if exc.errno != errno.EMFILE or soft == hard:
            raise
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return opening()


# ---- names for the time being ----------------------------------------------------------------


def _stem(path: str) -> str:
    """What the temporary names for a place begin with, on this machine."""
    from zlib import crc32

    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    here = crc32(f"{os.uname().nodename} {space}".encode("utf-8", "surrogateescape"))
    return f".tapdisk-{crc32(os.fsencode(os.path.basename(path))):08x}-{here:08x}"


def temporary_name(path: str) -> str:
    """A hidden name beside a path, which nobody can guess, and which tells whose it is."""
    name = f"{_stem(path)}-{os.getpid()}-{os.urandom(8).hex()}"
    return os.path.join(os.path.dirname(path), name)


def sweep(path: str) -> None:
    """Remove what processes that are no more have left of their work on a file."""
    folder = os.path.dirname(path) or "."
    ours = re.compile(rf"{re.escape(_stem(path))}-(\d{{1,10}})-[0-9a-f]{{16}}")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = ours.fullmatch(name)
            if match and not _alive(int(match[1])):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


# ---- where that cannot be --------------------------------------------------------------------


def why_in_place(path: str, old_fd: int) -> str | None:
    """Why what lies at a path cannot be replaced by another file; None where it can.

    Args:
        path: real.
        old_fd: what lies there.

    Returns:
        Empty for a block device, of which nobody expects it.
    """
    status = os.fstat(old_fd)
    if stat.S_ISBLK(status.st_mode):
        return ""
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return "its directory cannot be written"
    home = os.stat(folder)
    if home.st_mode & stat.S_ISVTX and os.geteuid() not in (0, home.st_uid, status.st_uid):
        return "it is somebody else's in a directory of everybody"
    if _is_mount_point(path):
        return "it is a mount point"
    return None


def _is_mount_point(path: str) -> bool:
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            return any(line.split(" ", 5)[4] == escaped for line in table)
    except (OSError, IndexError):
        return False


def spoil(made: NewFile) -> str:
    """Make what was overwritten in part look like no image; returns what to say."""
    with contextlib.suppress(OSError):
        if stat.S_ISBLK(os.fstat(made.fd).st_mode):
            os.pwrite(made.fd, bytes(len(made.head)), 0)
            os.fsync(made.fd)
        else:
            os.ftruncate(made.fd, 0)
    return "what it held is lost: it was being overwritten in place"


# ---- placing ---------------------------------------------------------------------------------


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
        _in_own_process(lambda: _put_all(moves, gone))
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
                os.chmod(made.fd, status.st_mode & 0o777 & mode_limit)
        return
    if made.old_fd is None:
        os.chmod(made.handle, _NEW_MODE & ~_umask() & mode_limit)
        return
    old, own = os.fstat(made.old_fd), os.stat(made.handle)
    mode = old.st_mode & 0o777
    if (old.st_uid, old.st_gid) != (own.st_uid, own.st_gid):
        mode = _keep_owner(made, old, mode)
    for name in os.listxattr(made.old_fd):
        with contextlib.suppress(OSError):
            os.setxattr(made.handle, name, os.getxattr(made.old_fd, name))
    os.chmod(made.handle, mode & mode_limit)


def _keep_owner(made: NewFile, old: os.stat_result, mode: int) -> int:
    """Returns the permissions: without the group's where that cannot be kept."""
    for uid in (old.st_uid, -1):
        with contextlib.suppress(OSError):
            os.chown(made.handle, uid, old.st_gid)
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


def _sync(handle: int | str) -> None:
    fd = handle if isinstance(handle, int) else os.open(handle, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        if fd is not handle:
            os.close(fd)


def _refuse_newcomer(made: NewFile) -> None:
    """Somebody may have put another file there in the meantime."""
    try:
        there = os.stat(made.path)
    except OSError:
        return
    old = os.fstat(made.old_fd) if made.old_fd is not None else None
    if old is None or (there.st_dev, there.st_ino) != (old.st_dev, old.st_ino):
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


def _in_own_process(work: Callable[[], None]) -> None:
    """Do what takes several steps where the end of this process cannot come between them.

    Raises:
        OSError: what the work raised.
    """
    read, write = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = _fork()
        if child == 0:
            _work_and_end(work, write)
        os.close(write)
        answer = _read_all(read) if child else b""
        os.close(read)
        if child:
            with contextlib.suppress(ChildProcessError):  # somebody else may collect our children
                os.waitpid(child, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not child:
        work()
    elif answer != _DONE:
        code = int(answer or errno.EIO)
        raise OSError(code, os.strerror(code))


def _fork() -> int | None:
    """As os.fork; None where there can be no more processes."""
    try:
        with warnings.catch_warnings():  # of threads, which the child does without
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except OSError:
        return None


def _work_and_end(work: Callable[[], None], write: int) -> None:
    """The child: in a session of its own, out of reach of what ends a group."""
    answer = b"%d" % errno.EIO
    try:
        os.setsid()
        work()
        answer = _DONE
    except OSError as exc:
        answer = b"%d" % (exc.errno or errno.EIO)
    finally:
        os.write(write, answer)
        os._exit(0)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 4096):
        parts.append(part)
    return b"".join(parts)
