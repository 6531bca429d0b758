"""How a disk in gzip's members is laid out.

bgzip's members say how long they are, so they are found without unpacking (SAM specification, 4.1).
Of all others nothing is known before all was unpacked once; then the decoder's state is kept at
many places.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from tap_zraw.apart import PiecesApart
from tap_zraw.beside import Beside
from tap_zraw.forward import PART, ForwardOnly
from tap_zraw.gzip.members import WITH_HEADER, MembersForward, damaged
from tap_zraw.kept import KeptParts
from tap_zraw.layout import Layout
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tapcore import ImageFormatError

_BGZF: Final = struct.Struct("<4s8s2sHH")
"""Magic with flags, time and the like with the length of what is extra, its name and length, and
the length of the member, less one."""
_EXTRA: Final = b"\x1f\x8b\x08\x04"
_LARGEST_MEMBER: Final = 64 << 10


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
    decompressor = zlib.decompressobj(WITH_HEADER)
    try:
        content = decompressor.decompress(packed, length + 1)
    except zlib.error as exc:
        raise damaged(exc) from None
    if len(content) != length or not decompressor.eof or decompressor.unused_data:
        raise ImageFormatError("has a member that holds more or less than it says")
    return content


def lay_out(file: PackedFile, beside: Beside | None) -> tuple[Layout, Pieces | None]:
    """The layout of an open file, and bgzip's members if it has such.

    Args:
        file: the one.
        beside: keeps the places at which a decoder can begin.

    Raises:
        ImageFormatError: it is damaged, or something else.
        NotSupportedError: it is too large.
        OSError: as the system says.
    """
    pieces = find_members(file)
    if pieces is not None:
        if beside is not None:
            beside.needless("bgzip's members are found without one")
        return PiecesApart(file, pieces, unpack_member), pieces
    if beside is not None:
        from tap_zraw.gzip.inflater import is_there

        if is_there():
            from tap_zraw.gzip.indexed import lay_out_by_points

            return lay_out_by_points(file, beside), None
        beside.needless("zlib is not there as a library (libz.so.1)")
    kept = KeptParts(PART, spooled=False)
    return ForwardOnly.measured(lambda _: MembersForward(file), file.size, kept), None
