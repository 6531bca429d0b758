"""How a disk in gzip's members is laid out.

bgzip's members say how long they are, so they are found without unpacking (SAM specification, 4.1).
Of all others nothing is known before all was unpacked once; then the decoder's state is kept at
many places.

Source: RFC 1952, 2.3 (members).
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from tap_zraw.apart import PiecesApart
from tap_zraw.forward import PART, ForwardOnly
from tap_zraw.kept import KeptParts
from tap_zraw.layout import Layout
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tapcore import ImageFormatError

MAGIC: Final = b"\x1f\x8b\x08"
_BGZF: Final = struct.Struct("<4s8s2sHH")
"""Magic with flags, time and the like with the length of what is extra, its name and length, and
the length of the member, less one."""
_EXTRA: Final = b"\x1f\x8b\x08\x04"
_WITH_HEADER: Final = 31
_LARGEST_MEMBER: Final = 64 << 10
_INPUT_BYTES: Final = 16 << 10


def find_members(file: PackedFile) -> Pieces | None:
    """The members of a file that bgzip has made; None for others.

    Raises:
        ImageFormatError: it is damaged.
        OSError: as the system says.
    """
    pieces, at = Pieces(), 0
    while at < file.size:
        length = _member_length(file.some(at, _BGZF.size))
        if not length:
            return None
        content = int.from_bytes(file.read(at + length - 4, 4), "little")
        if content > _LARGEST_MEMBER:
            return None
        pieces.add(at, length, content)
        at += length
    return pieces


def _member_length(head: bytes) -> int:
    if len(head) < _BGZF.size:
        return 0
    magic, rest, name, width, less = _BGZF.unpack(head)
    if magic != _EXTRA or rest[6:8] != b"\6\0" or name != b"BC" or width != 2:
        return 0
    return less + 1 if less >= 26 else 0


def unpack_member(_index: int, packed: bytes, length: int) -> bytes:
    """The content of one member; raises ImageFormatError."""
    decompressor = zlib.decompressobj(_WITH_HEADER)
    try:
        content = decompressor.decompress(packed, length + 1)
    except zlib.error as exc:
        raise _damaged(exc) from None
    if len(content) != length or not decompressor.eof or decompressor.unused_data:
        raise ImageFormatError("has a member that holds more or less than it says")
    return content


def _damaged(exc: zlib.error) -> ImageFormatError:
    return ImageFormatError(f"is damaged ({exc})")


class MembersForward:
    """Unpacks all members of a file from front to back; see `Forward`.

    Args:
        file: that holds them.
    """

    __slots__ = ("_at", "_decompressor", "_file")

    def __init__(self, file: PackedFile) -> None:
        self._file = file
        self._at = 0
        self._decompressor = zlib.decompressobj(_WITH_HEADER)

    def read(self, most: int) -> bytes:
        """See `Forward`."""
        while True:
            if self._decompressor.eof and not self._next_member():
                return b""
            packed = self._file.some(self._at, _INPUT_BYTES)
            try:
                content = self._decompressor.decompress(packed, most)
            except zlib.error as exc:
                raise _damaged(exc) from None
            decompressor = self._decompressor
            rest = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
            self._at += len(packed) - len(rest)
            if content:
                return content
            if not packed and not decompressor.eof:
                raise ImageFormatError("is cut short: its last member has no end")

    def _next_member(self) -> bool:
        """Zeroes may follow (a tape's padding), and so may other members, but nothing else."""
        while packed := self._file.some(self._at, _INPUT_BYTES):
            rest = packed.lstrip(b"\0")
            self._at += len(packed) - len(rest)
            if rest:
                if not self._file.some(self._at, 3).startswith(MAGIC):
                    raise ImageFormatError(f"holds something else behind gzip, at {self._at:#x}")
                self._decompressor = zlib.decompressobj(_WITH_HEADER)
                return True
        return False

    def copy(self) -> MembersForward | None:
        """With all that it has to remember."""
        if self._decompressor.eof:
            return None
        other = MembersForward(self._file)
        other._at = self._at
        other._decompressor = self._decompressor.copy()
        return other


def lay_out(file: PackedFile) -> tuple[Layout, Pieces | None]:
    """The layout of an open file, and bgzip's members if it has such.

    Raises:
        ImageFormatError: it is damaged, or something else.
        NotSupportedError: it is too large.
        OSError: as the system says.
    """
    pieces = find_members(file)
    if pieces is not None:
        return PiecesApart(file, pieces, unpack_member), pieces
    kept = KeptParts(PART, spooled=False)
    return ForwardOnly.measured(lambda _: MembersForward(file), file.size, kept), None
