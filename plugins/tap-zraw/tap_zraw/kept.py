"""What came out of a decoder that only goes forward: parts of zeroes are noted, others spooled."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Final

from tapcore import describe_error

log = logging.getLogger(__name__)

_NOTHING, _ZERO, _SPOOLED = 0, 1, 2
_ROOM_LEFT: Final = 20
"""The file system keeps a part of so many free."""


class KeptParts:
    """Parts of one disk.

    Args:
        part: bytes of a part.
        spooled: keep content in a temporary file; else only which parts are zeroes.
        known: which of them are, as another one has told.
    """

    def __init__(self, part: int, *, spooled: bool, known: bytes = b"") -> None:
        self._part = part
        self._state = bytearray(each == _ZERO for each in known)  # as far as anything was kept
        self._zeroes = bytes(part)
        self._wanted = spooled
        self._fd = -1

    @property
    def known(self) -> bytes:
        """Which parts are known to be zeroes; of those that are not spooled."""
        return bytes(self._state)

    def is_zero(self, index: int) -> bool:
        """Whether a part was seen to be zeroes."""
        return self._of(index) == _ZERO

    def zeroes_until(self, index: int, end: int) -> int:
        """The first part, from one on, that was not; `end` at most."""
        states = self._state[index:end]
        return index + len(states) - len(states.lstrip(bytes((_ZERO,))))

    def _of(self, index: int) -> int:
        return self._state[index] if index < len(self._state) else _NOTHING

    def zeroes_of(self, index: int, length: int) -> bytes:
        """So many, the same ones each time, where a part was seen to be zeroes; else none."""
        return self._zeroes[:length] if self.is_zero(index) else b""

    def get(self, index: int, length: int) -> bytes | None:
        """Content of a part that was kept.

        Raises:
            OSError: as the system says.
        """
        if zeroes := self.zeroes_of(index, length):
            return zeroes
        state = self._of(index)
        if state == _SPOOLED:
            return os.pread(self._fd, length, index * self._part)
        return None

    def put(self, index: int, content: bytes) -> None:
        """Keep the content of a whole part, if there is room."""
        if self._of(index):
            return
        if index >= len(self._state):
            self._state.extend(bytes(index + 1 - len(self._state)))
        if content == self._zeroes[: len(content)]:
            self._state[index] = _ZERO
        elif self._wanted:
            try:
                self._spool(index, content)
            except OSError as exc:
                self._give_up(describe_error(exc))

    def _spool(self, index: int, content: bytes) -> None:
        if self._fd < 0:
            folder = os.environ.get("TMPDIR", "/var/tmp")
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                self._fd = os.dup(file.fileno())
        if not index & 255:
            room = os.fstatvfs(self._fd)
            if room.f_bavail * _ROOM_LEFT < room.f_blocks:
                self._give_up("the file system is nearly full")
                return
        if os.pwrite(self._fd, content, index * self._part) == len(content):
            self._state[index] = _SPOOLED

    def _give_up(self, why: str) -> None:
        self._wanted = False
        log.warning("what is unpacked is no longer kept, and reads become slow: %s", why)

    def close(self) -> None:
        """Give the temporary file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
