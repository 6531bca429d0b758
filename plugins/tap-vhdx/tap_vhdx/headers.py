"""The two headers, of which the one with the larger sequence number counts.

A new state goes over the other one, so there is always a good header; written twice, both say the
same of the log.

Source: MS-VHDX 2.2.1 (File Type Identifier), 2.2.2 (Headers). All numbers are little-endian, and so
are those in a GUID.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from uuid import UUID

import attrs

from tap_vhdx.crc32c import checksum_of
from tapcore import ImageFile, ImageFormatError, NotSupportedError

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Reads the file: offset and length in bytes; zeroes behind its end."""

MIB: Final = 1 << 20
SIGNATURE: Final = b"vhdxfile"
CREATOR_BYTES: Final = 512
CREATOR: Final = "tapcore"

HEADERS_AT: Final = (64 << 10, 128 << 10)
HEADER_BYTES: Final = 4096
HEADER: Final = struct.Struct("<4sIQ16s16s16sHHIQ")
"""Signature, checksum, sequence number; what was written last to the file, and to the disk, and
which log it has; version of the log and of the format; length and offset of the log."""
HEADER_SIGNATURE: Final = b"head"
CHECKSUM_AT: Final = 4
VERSION: Final = 1
NOTHING: Final = UUID(int=0)


@attrs.frozen(kw_only=True)
class Header:
    """What a header says.

    Attributes:
        sequence: its number.
        file_write: changes with each opening in which something was written.
        data_write: the same, where the disk's content may have changed: what children go by.
        log: entries of this id may have to be replayed; `NOTHING`: there are none.
        log_version: of their format.
        log_length: bytes.
        log_offset: bytes.
    """

    sequence: int
    file_write: UUID
    data_write: UUID
    log: UUID = NOTHING
    log_version: int = 0
    log_length: int
    log_offset: int

    def pack(self) -> bytes:
        """Its bytes."""
        ids = (each.bytes_le for each in (self.file_write, self.data_write, self.log))
        place = (self.log_version, VERSION, self.log_length, self.log_offset)
        fields = HEADER.pack(HEADER_SIGNATURE, 0, self.sequence, *ids, *place)
        content = fields.ljust(HEADER_BYTES, b"\0")
        return with_checksum(content)


def with_checksum(content: bytes) -> bytes:
    """A structure, with its checksum where all structures have it."""
    checksum = checksum_of(content, CHECKSUM_AT).to_bytes(4, "little")
    return content[:CHECKSUM_AT] + checksum + content[CHECKSUM_AT + 4 :]


def checksum_is_right(content: bytes) -> bool:
    """Whether a structure is as it was written."""
    (stored,) = struct.unpack_from("<I", content, CHECKSUM_AT)
    return bool(stored == checksum_of(content, CHECKSUM_AT))


def is_vhdx(head: bytes) -> bool:
    """Whether a file that begins so says that it is one."""
    return head.startswith(SIGNATURE)


def identifier() -> bytes:
    """What a new file begins with."""
    return SIGNATURE + CREATOR.encode("utf-16-le").ljust(CREATOR_BYTES, b"\0")


def creator_of(read: ReadAt) -> str:
    """Who made a file, as it says."""
    said = read(len(SIGNATURE), CREATOR_BYTES).decode("utf-16-le", "replace")
    return said.split("\0")[0]


@attrs.define
class Headers:
    """The headers of a file.

    Attributes:
        current: what counts.
        at: which of the two it is: 0 or 1.
        damage: what is wrong with the other one; empty: nothing is.
    """

    current: Header
    at: int
    damage: str = ""

    def change(self, file: ImageFile, **changes: Any) -> None:
        """Let both headers say something else, on disk when this returns.

        Args:
            file: that they are of.
            changes: attributes of `Header`.

        Raises:
            OSError: as the system says; what was before counts, or what is to be.
        """
        header = attrs.evolve(self.current, **changes)
        for _ in HEADERS_AT:
            self.damage = "is being written"
            header = attrs.evolve(header, sequence=header.sequence + 1)
            file.write_metadata(HEADERS_AT[1 - self.at], header.pack())
            file.make_safe()
            self.current, self.at = header, 1 - self.at
        self.damage = ""


def read_headers(read: ReadAt) -> Headers:
    """The headers of a file.

    Args:
        read: reads it.

    Raises:
        ImageFormatError: it is no VHDX, or has no good header.
        NotSupportedError: of a version that is not known.
    """
    if not is_vhdx(read(0, len(SIGNATURE))):
        raise ImageFormatError("is not a VHDX image")
    found = [_unpack(read(at, HEADER_BYTES)) for at in HEADERS_AT]
    first, second = found
    if first is None and second is None:
        raise ImageFormatError("has no header whose checksum is right")
    if first is not None and second is not None:
        if first.sequence == second.sequence and first != second:
            raise ImageFormatError("has two headers with one sequence number that differ")
        at, damage = int(second.sequence > first.sequence), ""
    else:
        at = int(first is None)
        damage = f"{('first', 'second')[1 - at]} header is damaged; the other one is used"
    current = found[at]
    assert current is not None
    _check_log(current)
    return Headers(current, at, damage)


def _unpack(content: bytes) -> Header | None:
    fields = HEADER.unpack_from(content)
    if fields[0] != HEADER_SIGNATURE or not checksum_is_right(content):
        return None
    if fields[7] != VERSION:
        raise NotSupportedError(f"is a VHDX of version {fields[7]}")
    ids = [UUID(bytes_le=each) for each in fields[3:6]]
    return Header(
        sequence=fields[2],
        file_write=ids[0],
        data_write=ids[1],
        log=ids[2],
        log_version=fields[6],
        log_length=fields[8],
        log_offset=fields[9],
    )


def _check_log(header: Header) -> None:
    if header.log_offset % MIB or header.log_length % MIB or 0 < header.log_offset < MIB:
        raise ImageFormatError("has a log at an impossible place")
    if header.log == NOTHING:
        return
    if header.log_version:
        raise NotSupportedError(f"has a log of version {header.log_version}")
    if not header.log_offset or not header.log_length:
        raise ImageFormatError("has a log that is nowhere")
