"""Where a new file cannot take the place of an old one: what lies there is overwritten."""

from __future__ import annotations

import contextlib
import os
import stat

from tapcore.files.newfile import NewFile


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
