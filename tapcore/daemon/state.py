"""What a daemon remembers over its end: the disks that somebody wants, and their processes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import attrs

from tapcore.daemon.spec import DiskSpec
from tapcore.errors import TapError, describe

log = logging.getLogger(__name__)

VERSION: Final = 1
_MOST: Final = 64 << 20


@attrs.frozen
class Remembered:
    """One disk.

    Attributes:
        spec: with what it was attached.
        process: the name of its process.
    """

    spec: DiskSpec
    process: str


class StateFile:
    """The file where it stands: JSON, replaced as a whole.

    Args:
        path: of it.

    Attributes:
        path: as given.
        damaged: what was there could not be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.damaged = False

    def read(self) -> list[Remembered]:
        """What was remembered; what of it cannot be understood is told of, and left out.

        A file that is no JSON at all is kept beside, with `.damaged` at its end.
        """
        try:
            with open(self.path, "rb") as file:
                found = json.loads(file.read(_MOST))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as exc:
            self._set_aside(describe(exc))
            return []
        if not isinstance(found, dict) or found.get("version") != VERSION:
            self._set_aside("is of another version")
            return []
        disks = found.get("disks")
        understood = map(_understood, disks if isinstance(disks, list) else [])
        return [each for each in understood if each is not None]

    def write(self, disks: Sequence[Remembered]) -> None:
        """Remember these, and no others; they are on disk when this returns.

        Raises:
            OSError: that does not go.
        """
        rows = [{"process": each.process, "spec": each.spec.as_dict()} for each in disks]
        content = json.dumps({"version": VERSION, "disks": rows}, indent=1).encode()
        beside = f"{self.path}.new"
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.replace(beside, self.path)
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _set_aside(self, why: str) -> None:
        self.damaged = True
        log.error("%s: %s; it is kept as %s.damaged", self.path, why, self.path)
        with suppress(OSError):
            os.replace(self.path, f"{self.path}.damaged")


def _understood(row: Any) -> Remembered | None:
    try:
        spec = DiskSpec.of(row["spec"])
        process = row["process"]
        if not isinstance(process, str):
            raise TypeError("its process has no name")
    except (TapError, TypeError, KeyError, AttributeError, ValueError) as exc:
        log.error("a disk in the state is not understood, and left out: %s", describe(exc))
        return None
    return Remembered(spec, process)
