"""From an image with a LUKS header to the cipher and the place of its data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import attrs

from tapcore import Below, ImageFormatError, Keys, UsageError, passphrase_readings
from tapcore.luks import (
    HEADER_SIZE,
    LuksHeader,
    LuksInfo,
    WrongPassphraseError,
    open_luks,
    open_luks2,
    read_luks2,
)
from tapcore.sectorcipher import SectorCipher

log = logging.getLogger(__name__)

_MAGIC: Final = b"LUKS\xba\xbe"
_MOST_REGION: Final = 32 << 20
"""Bytes of a header of version 1 with its key slots; the usual ones have two."""

_NO_KEY: Final = "is encrypted: --key-file FILE names the file with its passphrase"


@attrs.define(eq=False)
class Image:
    """An image with a LUKS header.

    Attributes:
        below: the image.
        offset: of the data, bytes.
        size: of the data, bytes: whole sectors of the cipher.
        sector_size: bytes that are encrypted as one.
        info: what the header says, for people.
        cipher: None: nobody wants to read the data.
    """

    below: Below
    offset: int
    size: int
    sector_size: int
    info: dict[str, Any]
    cipher: SectorCipher | None = None

    def place(self, sector: int) -> int:
        """Where a sector lies in the image below, in bytes."""
        return self.offset + (sector << 9)


def open_encrypted(below: Below, keys: Keys, name: str, *, locked: bool) -> Image:
    """Look at the header, and open it with a passphrase.

    Args:
        below: the image.
        keys: passphrases.
        name: of the disk, by which one is chosen.
        locked: leave it encrypted.

    Raises:
        ImageFormatError: it has no header, or a damaged one.
        UsageError: there is no passphrase, or another one is needed.
        NotSupportedError: an algorithm is not supported, or a package is missing.
    """
    head = below.read(0, HEADER_SIZE) if below.size >= HEADER_SIZE else b""
    if head[:6] != _MAGIC:
        raise ImageFormatError("has no LUKS header")
    passphrase = None if locked else keys.passphrase(name)
    if passphrase is None and not locked:
        raise UsageError(_NO_KEY)
    make = _of_version_2 if head[6:8] == b"\0\2" else _of_version_1
    image, cipher_for = make(below, head)
    if passphrase is not None:
        image.cipher = _opened(cipher_for, passphrase)
    return image


_CipherFor = Callable[[bytes], SectorCipher]


def _opened(cipher_for: _CipherFor, passphrase: bytes) -> SectorCipher:
    *others, last = passphrase_readings(passphrase)
    for reading in others:
        try:
            return cipher_for(reading)
        except WrongPassphraseError:
            continue
    return cipher_for(last)


def _of_version_1(below: Below, head: bytes) -> tuple[Image, _CipherFor]:
    header = LuksHeader.parse(head)
    offset = header.payload_offset
    _check_place(below, offset)
    if offset > _MOST_REGION:
        raise ImageFormatError(f"has a LUKS header of {offset} bytes")
    size = (below.size - offset) // 512 * 512
    info = {"version": 1, **attrs.asdict(LuksInfo.of(head))}
    image = Image(below, offset, size, 512, info)
    return image, lambda passphrase: open_luks(below.read(0, offset), passphrase)


def _of_version_2(below: Below, head: bytes) -> tuple[Image, _CipherFor]:
    def read(offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > below.size:
            raise ImageFormatError("has a part of its LUKS header outside of the disk")
        return below.read(offset, length)

    header = read_luks2(read, below.name)
    segment = header.segment
    _check_place(below, segment.offset)
    there = below.size - segment.offset
    if segment.size is not None and segment.size > there:
        text = f"has {there} bytes of data, and its LUKS header speaks of {segment.size}"
        raise ImageFormatError(text)
    size = there if segment.size is None else segment.size
    size = size // segment.sector_size * segment.sector_size
    image = Image(below, segment.offset, size, segment.sector_size, header.as_dict())
    return image, lambda passphrase: open_luks2(header, read, passphrase)


def _check_place(below: Below, offset: int) -> None:
    if not HEADER_SIZE <= offset <= below.size:
        raise ImageFormatError(f"has its data at {offset}, which is not behind its LUKS header")
