"""LUKS version 1: the header, and where its eight key slots lie.

A slot holds the master key, encrypted with a key that is made of a passphrase. The master key
encrypts the data. It lies in a file or a partition, the data behind it; or in a region of a qcow2
image, where the sector numbers in the data's IVs are those of the image file.

Source: LUKS1 On-Disk Format Specification; qcow2.rst, "Full disk encryption header pointer".
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from tapcore.constants import DEFAULT_SECTOR_SIZE
from tapcore.errors import ImageFormatError, NotSupportedError, UsageError
from tapcore.formats.cipher import SectorCipher
from tapcore.formats.luks import keys

_MAGIC: Final = b"LUKS\xba\xbe"
_HEADER: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
SLOTS: Final = 8
_IN_USE: Final = 0x00AC71F3
_FREE: Final = 0x0000DEAD
STRIPES: Final = 4000
DIGEST_SIZE: Final = 20
HEADER_SIZE: Final = _HEADER.size + SLOTS * _SLOT.size
"""Bytes that `LuksHeader.parse` needs; key material lies behind them."""


@attrs.frozen
class KeySlot:
    """One of the eight places for the master key.

    Attributes:
        in_use: a passphrase opens it.
        iterations: of PBKDF2, from the passphrase to the slot's key.
        salt: for it.
        offset: of its key material in the header's region, bytes.
        stripes: how often larger than the key that is.
    """

    in_use: bool
    iterations: int
    salt: bytes
    offset: int
    stripes: int = STRIPES


@attrs.frozen
class LuksHeader:
    """The header proper ("phdr").

    Attributes:
        cipher_name: "aes".
        cipher_mode: mode and IVs, "xts-plain64".
        hash_name: for PBKDF2 and the stripes.
        payload_offset: bytes; where data follows in a LUKS file. In qcow2 the region ends there.
        key_size: bytes of the master key.
        digest: of the master key, to recognise it.
        digest_salt: for that.
        digest_iterations: for that.
        uuid: text.
        slots: the eight key slots.
    """

    cipher_name: str
    cipher_mode: str
    hash_name: str
    payload_offset: int
    key_size: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[KeySlot, ...]

    @classmethod
    def parse(cls, content: bytes | memoryview) -> LuksHeader:
        """Read the header.

        Args:
            content: at least the first HEADER_SIZE bytes of the region.

        Raises:
            ImageFormatError: it is no such header, or contradicts itself.
            NotSupportedError: another version.
        """
        if len(content) < HEADER_SIZE:
            raise ImageFormatError("has a LUKS header that is cut short")
        magic, version, cipher, mode, hash_name, payload, key_size, *rest = _HEADER.unpack_from(
            content
        )
        if magic != _MAGIC:
            raise ImageFormatError("has no LUKS header where it should be")
        if version != 1:
            raise NotSupportedError(f"has a LUKS header of version {version}; only 1 is supported")
        if not 0 < key_size <= 64:
            raise ImageFormatError(f"has a LUKS header with a key of {key_size} bytes")
        digest, digest_salt, digest_iterations, identity = rest
        return cls(
            cipher_name=_text(cipher),
            cipher_mode=_text(mode),
            hash_name=_text(hash_name),
            payload_offset=payload * DEFAULT_SECTOR_SIZE,
            key_size=key_size,
            digest=digest,
            digest_salt=digest_salt,
            digest_iterations=digest_iterations,
            uuid=_text(identity),
            slots=tuple(
                _parsed_slot(*_SLOT.unpack_from(content, _HEADER.size + n * _SLOT.size))
                for n in range(SLOTS)
            ),
        )

    def serialize(self) -> bytes:
        """The HEADER_SIZE bytes of it."""
        head = _HEADER.pack(
            _MAGIC,
            1,
            self.cipher_name.encode(),
            self.cipher_mode.encode(),
            self.hash_name.encode(),
            self.payload_offset // DEFAULT_SECTOR_SIZE,
            self.key_size,
            self.digest,
            self.digest_salt,
            self.digest_iterations,
            self.uuid.encode(),
        )
        return head + b"".join(
            _SLOT.pack(
                _IN_USE if slot.in_use else _FREE,
                slot.iterations,
                slot.salt,
                slot.offset // DEFAULT_SECTOR_SIZE,
                slot.stripes,
            )
            for slot in self.slots
        )

    def cipher(self, key: bytes) -> SectorCipher:
        """The image's algorithm with a key.

        Raises:
            NotSupportedError: it is not supported, or a package is missing.
            ImageFormatError: the algorithm has no such key.
        """
        mode, _, iv = self.cipher_mode.partition("-")
        try:
            return SectorCipher(key, cipher=self.cipher_name, mode=mode, iv=iv)
        except UsageError as exc:
            raise ImageFormatError(f"has an impossible LUKS header: {exc.message}") from exc

    def digest_of(self, key: bytes) -> bytes:
        """What `digest` is for the right master key."""
        return keys.derive(
            self.hash_name, key, self.digest_salt, self.digest_iterations, DIGEST_SIZE
        )

    @property
    def material_size(self) -> int:
        """Bytes that a slot's key material takes: whole sectors."""
        return rounded(self.key_size * STRIPES, DEFAULT_SECTOR_SIZE)


@attrs.frozen
class LuksInfo:
    """What is worth knowing of a LUKS header; `attrs.asdict` makes it JSON.

    Attributes:
        cipher: with the key's bits, "aes-256".
        mode: "xts", "cbc".
        iv: "plain64", "plain", "essiv:sha256".
        hash: for deriving keys.
        uuid: text.
        payload_offset: bytes; where the header's region ends.
        active_slots: numbers of the key slots in use, from 0.
        iterations: of each of them.
    """

    cipher: str
    mode: str
    iv: str
    hash: str
    uuid: str
    payload_offset: int
    active_slots: tuple[int, ...]
    iterations: tuple[int, ...]

    @classmethod
    def of(cls, content: bytes | memoryview) -> LuksInfo:
        """From the first HEADER_SIZE bytes of the region; raises as `LuksHeader.parse` does."""
        header = LuksHeader.parse(content)
        mode, _, iv = header.cipher_mode.partition("-")
        bits = header.key_size * (4 if mode == "xts" else 8)
        active = [n for n in range(SLOTS) if header.slots[n].in_use]
        return cls(
            cipher=f"{header.cipher_name}-{bits}",
            mode=mode,
            iv=iv,
            hash=header.hash_name,
            uuid=header.uuid,
            payload_offset=header.payload_offset,
            active_slots=tuple(active),
            iterations=tuple(header.slots[n].iterations for n in active),
        )


def _parsed_slot(state: int, iterations: int, salt: bytes, sector: int, stripes: int) -> KeySlot:
    if state not in (_IN_USE, _FREE):
        raise ImageFormatError("has a LUKS key slot that is neither in use nor free")
    return KeySlot(state == _IN_USE, iterations, salt, sector * DEFAULT_SECTOR_SIZE, stripes)


def _text(field: bytes) -> str:
    """A field of the header: ASCII up to the first zero byte."""
    try:
        return field.partition(b"\0")[0].decode("ascii")
    except UnicodeDecodeError:
        raise ImageFormatError("has a LUKS header with a damaged text") from None


def rounded(size: int, unit: int) -> int:
    """A size, up to the next multiple of a unit."""
    return -(-size // unit) * unit
