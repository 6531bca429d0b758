"""Bytes by which a file shows what it holds: data, so that no driver need be loaded to look."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEAD_BYTES: Final = 64 << 10
"""How much of a file's start a driver is shown."""

TAIL_BYTES: Final = 4096
"""How much of its end."""


class Magic(NamedTuple):
    """Bytes at a place of a file that make it an image of a format.

    Attributes:
        content: the bytes; a regular expression where `pattern` says so.
        offset: where they lie, in bytes: from the start, or (negative) from the end.
        named: only in a file that has one of the format's suffixes.
        pattern: `content` is a regular expression for what lies from the offset on.
        sure: they are enough. False: they say that `td_probe` has to be asked.
    """

    content: bytes
    offset: int = 0
    named: bool = False
    pattern: bool = False
    sure: bool = True

    def shown_by(self, head: bytes, tail: bytes) -> bool:
        """Whether a file with these ends has them.

        Args:
            head: its first bytes, HEAD_BYTES where it has them.
            tail: its last bytes, TAIL_BYTES where it has them.
        """
        end = head if self.offset >= 0 else tail
        at = self.offset if self.offset >= 0 else len(tail) + self.offset
        if at < 0:
            return False
        if self.pattern:
            return re.compile(self.content).match(end, at) is not None
        return end.startswith(self.content, at)
