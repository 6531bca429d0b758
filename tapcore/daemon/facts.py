"""What a disk process tells of its disks, as far as it can be believed.

It may be in the hands of whoever made an image. So it is heard about its own disks only, and a file
that it says it serves has to be one that it has open: confined, it could open no other.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from tapcore.daemon.spec import DiskSpec
from tapcore.daemon.verbs import MAX_WORDS
from tapcore.nbd.listening import TcpAddress, UnixAddress

_FACTS: Final[Mapping[str, type]] = {
    "handle": str,
    "unrecognised": bool,
    "virtual_size": int,
    "read_only": bool,
    "clients": int,
    "state": str,
}


def facts_of(told: Any) -> dict[str, Any]:
    """What there is to know of a disk, of what its process told."""
    if not isinstance(told, dict):
        return {}
    return {name: told[name] for name, kind in _FACTS.items() if type(told.get(name)) is kind}


def own_files(told: Any) -> tuple[str, ...] | None:
    """Paths of the files that a disk writes; None: they were not told, or are too many to say."""
    if not isinstance(told, list) or len(told) > MAX_WORDS:
        return None
    return tuple(told) if all(isinstance(each, str) for each in told) else None


def rows_of(answer: Any) -> dict[str, dict[str, Any]]:
    """By name: what the answer to `list` says of each disk."""
    rows = answer.get("disks") if isinstance(answer, dict) else None
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {row["name"]: row for row in found if isinstance(row.get("name"), str)}


def listens_at(descriptor: int, address: UnixAddress | TcpAddress) -> bool:
    """Whether it is a socket that listens there."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            name = sock.getsockname()
    except OSError:
        return False
    if isinstance(address, UnixAddress):
        return bool(name == os.path.abspath(address.path) or name == address.path)
    return not isinstance(name, str) and bool(name[1] == address.port)


def has_open(pid: int, spec: DiskSpec) -> bool:
    """Whether a process has an image's file open as the disk's own: others are only read.

    Args:
        pid: of a process that runs.
        spec: names the image.
    """
    parts = spec.image.split(":")  # of a disk on an image: `part:1:qcow2:PATH`
    names = [":".join(parts[front:]) for front in range(len(parts))]
    wanted = {os.path.realpath(os.path.join(spec.directory, name)) for name in names if name}
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_is_own(pid, each, wanted, spec.read_only) for each in numbers)


def _is_own(pid: int, descriptor: str, wanted: set[str], read_only: bool) -> bool:
    """Whether a descriptor is of one of these files, open for as much as a disk's own would be."""
    try:
        if os.readlink(f"/proc/{pid}/fd/{descriptor}") not in wanted:
            return False
        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii", errors="replace") as info:
            flags = next(line for line in info if line.startswith("flags:"))
    except OSError:  # it is closed by now
        return False
    return read_only or bool(int(flags.split()[1], 8) & os.O_ACCMODE)
