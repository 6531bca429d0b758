"""LUKS version 1, as it lies in a qcow2 image: header, eight key slots, and their key material.

A slot holds the master key, encrypted with a key that is made of a passphrase. The master key
encrypts the data; the sector numbers in its IVs are those of the image file.

Source: LUKS1 On-Disk Format Specification; qcow2.rst, "Full disk encryption header pointer".
"""

from __future__ import annotations

import hmac
import secrets
import struct
import uuid
from typing import Final

import attrs

from tap_qcow2 import luks_keys
from tapcore import DEFAULT_SECTOR_SIZE, ImageFormatError, NotSupportedError, UsageError
from tapcore.sectorcipher import SectorCipher

CIPHERS: Final = ("aes-128", "aes-192", "aes-256")
MODES: Final = ("xts", "cbc")
HASHES: Final = luks_keys.HASHES

_MAGIC: Final = b"LUKS\xba\xbe"
_HEADER: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_SLOTS: Final = 8
_IN_USE: Final = 0x00AC71F3
_FREE: Final = 0x0000DEAD
_STRIPES: Final = 4000
_DIGEST_SIZE: Final = 20
_SALT_SIZE: Final = 32
_ALIGNMENT: Final = 4096  # bytes; of each slot's key material
HEADER_SIZE: Final = _HEADER.size + _SLOTS * _SLOT.size
"""Bytes that `LuksHeader.parse` needs; key material lies behind them."""

MAX_ROUNDS: Final = 3 << 23
"""How much deriving of keys one opening does at most: some ten seconds of a processor.

Writers aim at one or two seconds for a slot: up to ten million rounds of SHA-256 where that is an
instruction. A file that asks for much more means to do harm. SHA-384 and SHA-512 may take two
fifths of it: a round of theirs costs as much as two and a half of the others.
"""


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
    stripes: int = _STRIPES


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
                for n in range(_SLOTS)
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
        return luks_keys.derive(
            self.hash_name, key, self.digest_salt, self.digest_iterations, _DIGEST_SIZE
        )

    @property
    def material_size(self) -> int:
        """Bytes that a slot's key material takes: whole sectors."""
        return _rounded(self.key_size * _STRIPES, DEFAULT_SECTOR_SIZE)


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
        active = [n for n in range(_SLOTS) if header.slots[n].in_use]
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


class WrongPassphraseError(UsageError):
    """A passphrase that opens no slot."""


def open_luks(region: bytes | memoryview, passphrase: bytes | None) -> SectorCipher:
    """Find the master key.

    Args:
        region: the whole region that the image names: header and key material.
        passphrase: None where the user gave none.

    Returns:
        The cipher for the data; sectors are counted in the image file.

    Raises:
        UsageError: there is no passphrase.
        WrongPassphraseError: it opens no slot.
        NotSupportedError: an algorithm is not supported, or a package is missing.
        ImageFormatError: the header is damaged, or asks for unreasonably much work.
    """
    header = LuksHeader.parse(region)
    luks_keys.digest_size(header.hash_name)
    header.cipher(bytes(range(header.key_size)))  # what is not supported is said before the work
    if passphrase is None:
        raise UsageError("is encrypted: --key-file FILE names the file with its passphrase")
    active = [n for n in range(_SLOTS) if header.slots[n].in_use]
    if not active:
        raise ImageFormatError("has no LUKS key slot in use: nothing can open it")
    for n in active:
        _check_slot(header, n, len(region))
    work, most = 0, most_rounds(header.hash_name)
    for n in active:
        work += luks_keys.rounds(header.hash_name, header.slots[n].iterations, header.key_size)
        work += luks_keys.rounds(header.hash_name, header.digest_iterations, _DIGEST_SIZE)
        if work > most:
            raise ImageFormatError(
                f"has a LUKS key slot ({n}) that takes too long to try: {work} rounds of "
                f"{header.hash_name} with those before it, and {most} are the most"
            )
        key = _opened(header, header.slots[n], region, passphrase)
        if hmac.compare_digest(header.digest_of(key), header.digest):
            return header.cipher(key)
    raise WrongPassphraseError("is encrypted with another passphrase than the one given")


def create_luks(
    passphrase: bytes,
    *,
    cipher: str = "aes-256",
    mode: str = "xts",
    iv: str = "plain64",
    hash_name: str = "sha256",
    seconds: float = 0.3,
) -> tuple[bytes, SectorCipher]:
    """Make a header with a new master key and one key slot; the defaults are QEMU's.

    Args:
        passphrase: opens it.
        cipher: one of CIPHERS.
        mode: one of MODES.
        iv: "plain64", "plain", "essiv:sha256".
        hash_name: one of HASHES.
        seconds: how long trying a passphrase shall take a processor like this one.

    Returns:
        The region that the image has to hold, and the cipher for the data.

    Raises:
        UsageError: a value that does not exist, or an empty passphrase.
        NotSupportedError: they do not go together, or a package is missing.
    """
    for name, value, known in (
        ("cipher", cipher, CIPHERS),
        ("mode", mode, MODES),
        ("hash", hash_name, HASHES),
    ):
        if value not in known:
            raise UsageError(f"{value} is no {name}: there are {', '.join(known)}")
    if not passphrase:
        raise UsageError("the passphrase is empty")
    key_size = int(cipher.removeprefix("aes-")) // 8 * (2 if mode == "xts" else 1)
    if key_size * _STRIPES % DEFAULT_SECTOR_SIZE:
        # Readers differ in what they do with the last sector; QEMU's stops with a failed assertion.
        raise NotSupportedError(f"{cipher}-{mode} has no key material of whole sectors")
    header = _new_header(key_size, f"{mode}-{iv}", hash_name, seconds)
    key = secrets.token_bytes(key_size)
    header = attrs.evolve(header, digest=header.digest_of(key))
    slot = header.slots[0]
    area = luks_keys.split(key, _STRIPES, hash_name)
    slot_key = luks_keys.derive(hash_name, passphrase, slot.salt, slot.iterations, key_size)
    region = bytearray(header.payload_offset)
    region[:HEADER_SIZE] = header.serialize()
    region[slot.offset : slot.offset + len(area)] = header.cipher(slot_key).encrypt(0, area)
    return bytes(region), header.cipher(key)


def _new_header(key_size: int, cipher_mode: str, hash_name: str, seconds: float) -> LuksHeader:
    """A header with the first slot in use; the master key's digest is still to come."""
    area = _rounded(key_size * _STRIPES, _ALIGNMENT)
    iterations = luks_keys.iterations_for(hash_name, key_size, seconds)
    return LuksHeader(
        cipher_name="aes",
        cipher_mode=cipher_mode,
        hash_name=hash_name,
        payload_offset=_ALIGNMENT + _SLOTS * area,
        key_size=key_size,
        digest=bytes(_DIGEST_SIZE),
        digest_salt=secrets.token_bytes(_SALT_SIZE),
        digest_iterations=max(iterations // 8, luks_keys.MIN_ITERATIONS),
        uuid=str(uuid.uuid4()),
        slots=tuple(
            KeySlot(
                in_use=n == 0,
                iterations=iterations if n == 0 else 0,
                salt=secrets.token_bytes(_SALT_SIZE) if n == 0 else bytes(_SALT_SIZE),
                offset=_ALIGNMENT + n * area,
            )
            for n in range(_SLOTS)
        ),
    )


def most_rounds(hash_name: str) -> int:
    """How many rounds of a hash one opening does at most."""
    wide = luks_keys.digest_size(hash_name) > 32
    return MAX_ROUNDS * 2 // 5 if wide else MAX_ROUNDS


def _check_slot(header: LuksHeader, n: int, region_size: int) -> None:
    slot = header.slots[n]
    if slot.stripes != _STRIPES or slot.iterations == 0 or header.digest_iterations == 0:
        raise ImageFormatError(f"has a LUKS key slot ({n}) with impossible values")
    if slot.offset < HEADER_SIZE or slot.offset + header.material_size > region_size:
        raise ImageFormatError(f"has a LUKS key slot ({n}) that lies outside of the header")


def _opened(
    header: LuksHeader, slot: KeySlot, region: bytes | memoryview, passphrase: bytes
) -> bytes:
    """What the slot holds for this passphrase: the master key if that is the right one."""
    key = luks_keys.derive(
        header.hash_name, passphrase, slot.salt, slot.iterations, header.key_size
    )
    material = region[slot.offset : slot.offset + header.material_size]
    area = header.cipher(key).decrypt(0, material)
    return luks_keys.merge(area[: header.key_size * _STRIPES], _STRIPES, header.hash_name)


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


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
