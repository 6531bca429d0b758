"""gzip's members, unpacked from front to back.

Source: RFC 1952, 2.3 (members).
"""

from __future__ import annotations

import zlib
from typing import Final, Protocol

from tap_zraw.packedfile import PackedFile
from tapcore import ImageFormatError

MAGIC: Final = b"\x1f\x8b\x08"
WITH_HEADER: Final = 31
"""For zlib: what comes has gzip's header and trailer."""
_INPUT_BYTES: Final = 16 << 10


class Decompressor(Protocol):
    """What `zlib.decompressobj` gives, as far as it is needed here."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, packed: bytes, most: int, /) -> bytes: ...


def damaged(exc: zlib.error) -> ImageFormatError:
    """What zlib says, of a file."""
    return ImageFormatError(f"is damaged ({exc})")


class MembersForward:
    """Unpacks all members of a file from front to back; see `Forward`.

    Args:
        file: that holds them.
        at: where to begin, bytes.
        decompressor: in the middle of a member; None: one begins there.
        trailer: bytes that follow a member, of which that decompressor does not know.
    """

    __slots__ = ("_at", "_decompressor", "_file", "_trailer")

    def __init__(
        self,
        file: PackedFile,
        at: int = 0,
        decompressor: Decompressor | None = None,
        *,
        trailer: int = 0,
    ) -> None:
        self._file = file
        self._at = at
        self._decompressor = decompressor or self._begin()
        self._trailer = trailer

    def _begin(self) -> Decompressor:
        """A decompressor for the next member."""
        return zlib.decompressobj(WITH_HEADER)

    def read(self, most: int) -> bytes:
        """See `Forward`."""
        while True:
            if self._decompressor.eof and not self._next_member():
                return b""
            packed = self._file.some(self._at, _INPUT_BYTES)
            try:
                content = self._decompressor.decompress(packed, most)
            except zlib.error as exc:
                raise damaged(exc) from None
            decompressor = self._decompressor
            rest = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
            self._at += len(packed) - len(rest)
            if content:
                return content
            if not packed and not decompressor.eof:
                raise ImageFormatError("is cut short: its last member has no end")

    def _next_member(self) -> bool:
        """Zeroes may follow (a tape's padding), and so may other members, but nothing else."""
        self._at, self._trailer = self._at + self._trailer, 0
        while packed := self._file.some(self._at, _INPUT_BYTES):
            rest = packed.lstrip(b"\0")
            self._at += len(packed) - len(rest)
            if rest:
                if not self._file.some(self._at, 3).startswith(MAGIC):
                    raise ImageFormatError(f"holds something else behind gzip, at {self._at:#x}")
                self._decompressor = self._begin()
                return True
        return False

    def copy(self) -> MembersForward | None:
        """With all that it has to remember."""
        copy = getattr(self._decompressor, "copy", None)
        if self._decompressor.eof or copy is None:
            return None
        return MembersForward(self._file, self._at, copy(), trailer=self._trailer)
