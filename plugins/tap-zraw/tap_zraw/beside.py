"""An index that is kept beside an image, so that it is not looked for each time it is opened.

It is asked for by an empty file: `touch disk.img.gz.zindex`. Whoever opens the image then writes
it, and the next ones go by it: as long as it is whole, and the image has the size and the time of
its last change that it was made for, and the same bytes at some places. Else it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import attrs

from tap_zraw.packedfile import PackedFile
from tapcore import ImageFormatError, TapError, describe_error

log = logging.getLogger(__name__)

T = TypeVar("T")

SUFFIX: Final = ".zindex"
_MAGIC: Final = b"zraw index 1\n"
_LENGTH: Final = struct.Struct("<I")
_DIGEST_BYTES: Final = 32
_MOST_HEAD: Final = 4 << 10
_MOST_TABLES: Final = 128 << 20

_ENDS: Final = 64 << 10
_SAMPLE: Final = 4 << 10
_SAMPLES: Final = 64
"""Bytes at both ends of the image that are looked at, and in so many places between."""

_DAMAGED: Final = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, TapError,
)  # fmt: skip


class Index:
    """What an index says.

    Args:
        fd: of its file, to be closed with it.
        tables: by name.
        rest_at: where what follows them begins, bytes.

    Attributes:
        tables: as given.
    """

    def __init__(self, fd: int, tables: Mapping[str, bytes], rest_at: int) -> None:
        self._fd = fd
        self._rest_at = rest_at
        self.tables = tables

    def rest(self, at: int, length: int) -> bytes:
        """A part of what follows the tables.

        Raises:
            ImageFormatError: it is not there.
            OSError: as the system says.
        """
        size = os.fstat(self._fd).st_size
        if not 0 <= at <= at + length <= size - self._rest_at:
            raise ImageFormatError("has a false index: it is cut short")
        return os.pread(self._fd, length, self._rest_at + at)

    def close(self) -> None:
        """Let go of its file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@attrs.frozen
class Beside:
    """The place of an image's index, where one is asked for.

    Attributes:
        path: of it.
        file: the image.
        made_for: what the image was when it was opened: JSON.
    """

    path: str
    file: PackedFile
    made_for: dict[str, Any]

    @classmethod
    def of(cls, path: str, file: PackedFile, fd: int) -> Beside | None:
        """That of an image; None where nobody asks for one.

        Args:
            path: of the image.
            file: it.
            fd: of the same.
        """
        try:
            status, image = os.lstat(path + SUFFIX), os.fstat(fd)
            if not os.path.samestat(os.stat(path), image):
                return None
        except OSError:
            return None
        why = _why_not(status, image)
        if why:
            log.warning("%s: is not used: %s", path + SUFFIX, why)
            return None
        return cls(path + SUFFIX, file, _state(image))

    def load(self, kind: str, use: Callable[[Index], T]) -> T | None:
        """Go by it; None where it has to be made, which is told unless it was just asked for.

        Args:
            kind: of index.
            use: makes something of it; what it raises says that it is none.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            log.warning("%s: %s", self.path, describe_error(exc))
            return None
        try:
            if os.fstat(fd).st_size:
                return use(self._read(fd, kind))
        except _DAMAGED as exc:
            log.warning("%s: is made anew: %s", self.path, exc)
        os.close(fd)
        return None

    def _read(self, fd: int, kind: str) -> Index:
        size, at = os.fstat(fd).st_size, len(_MAGIC) + _LENGTH.size
        first = os.pread(fd, at, 0)
        if not first.startswith(_MAGIC) or len(first) < at:
            raise ValueError("it is no index, or of another version")
        (length,) = _LENGTH.unpack_from(first, len(_MAGIC))
        if length > min(_MOST_HEAD, size):
            raise ValueError("it is damaged")
        packed = os.pread(fd, length, at)
        head = json.loads(packed)
        lengths = {str(name): int(count) for name, count in head["tables"].items()}
        if any(count < 0 for count in lengths.values()):
            raise ValueError("it is damaged")
        total = sum(lengths.values())
        if total > min(_MOST_TABLES, size):
            raise ValueError("it is damaged")
        content = os.pread(fd, total + _DIGEST_BYTES, at + length)
        if hashlib.sha256(packed + content[:total]).digest() != content[total:]:
            raise ValueError("it is damaged")
        if head["kind"] != kind or head["image"] != self.made_for | {"bytes": self._samples()}:
            raise ValueError("the image is not what it was made for")
        tables, start = dict[str, bytes](), 0
        for name, count in lengths.items():
            tables[name] = content[start : start + count]
            start += count
        return Index(fd, tables, at + length + total + _DIGEST_BYTES)

    def keep(
        self, kind: str, tables: Mapping[str, bytes], rest: Iterable[bytes] = ()
    ) -> Index | None:
        """Write it; None where that is not possible, which is told.

        Args:
            kind: of index.
            tables: by name.
            rest: what follows them.
        """
        try:
            return self._write(kind, tables, rest)
        except OSError as exc:
            log.warning("%s: cannot be written: %s", self.path, describe_error(exc))
            return None

    def _write(self, kind: str, tables: Mapping[str, bytes], rest: Iterable[bytes]) -> Index | None:
        folder, name = os.path.split(self.path)
        image = os.stat(self.path.removesuffix(SUFFIX))
        if _state(image) != self.made_for:
            log.warning("%s: is not written: the image has changed", self.path)
            return None
        if sum(map(len, tables.values())) > _MOST_TABLES:
            log.warning("%s: is not written: it would be too large", self.path)
            return None
        head = {
            "kind": kind,
            "image": self.made_for | {"bytes": self._samples()},
            "tables": {name: len(table) for name, table in tables.items()},
        }
        packed, content = json.dumps(head).encode(), b"".join(tables.values())
        digest = hashlib.sha256(packed + content).digest()
        mode = stat.S_IMODE(os.lstat(self.path).st_mode)
        fd, made = tempfile.mkstemp(prefix=f".{name}.", dir=folder or ".")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(_MAGIC + _LENGTH.pack(len(packed)) + packed + content + digest)
                rest_at = file.tell()
                file.writelines(rest)
            os.fchmod(fd, mode)
            os.replace(made, self.path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(made)
            raise
        return Index(fd, tables, rest_at)

    def needless(self, why: str) -> None:
        """Say why there is nothing to be kept."""
        log.warning("%s: is not written: %s", self.path, why)

    def _samples(self) -> str:
        """A digest of some of the image."""
        found, size = hashlib.sha256(), self.file.size
        found.update(self.file.some(0, _ENDS))
        for number in range(_SAMPLES):
            found.update(self.file.some(size * number // _SAMPLES, _SAMPLE))
        found.update(self.file.some(max(size - _ENDS, 0), _ENDS))
        return found.hexdigest()


def _state(image: os.stat_result) -> dict[str, Any]:
    return {"size": image.st_size, "changed": image.st_mtime_ns}


def _why_not(status: os.stat_result, image: os.stat_result) -> str:
    """Why a file cannot be the index: who writes it can let an image show anything."""
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if status.st_uid not in (0, os.geteuid(), image.st_uid):
        return "it is somebody else's"
    return "everybody can write it" if status.st_mode & stat.S_IWOTH else ""
