"""The eight key slots: opening one with a passphrase, and a new header with one of them in use.

A slot holds the master key, encrypted with a key that is made of a passphrase.

Source: LUKS1 On-Disk Format Specification.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from typing import Final

import attrs

from tapcore.constants import DEFAULT_SECTOR_SIZE
from tapcore.errors import ImageFormatError, NotSupportedError, UsageError
from tapcore.formats.cipher import SectorCipher
from tapcore.formats.luks import keys
from tapcore.formats.luks.header import (
    DIGEST_SIZE,
    HEADER_SIZE,
    SLOTS,
    STRIPES,
    KeySlot,
    LuksHeader,
    rounded,
)

CIPHERS: Final = ("aes-128", "aes-192", "aes-256")
MODES: Final = ("xts", "cbc")
HASHES: Final = keys.HASHES

_SALT_SIZE: Final = 32
_ALIGNMENT: Final = 4096  # bytes; of each slot's key material

MAX_ROUNDS: Final = 3 << 23
"""How much deriving of keys one opening does at most: some ten seconds of a processor.

Writers aim at one or two seconds for a slot: up to ten million rounds of SHA-256 where that is an
instruction. A file that asks for much more means to do harm. SHA-384 and SHA-512 may take two
fifths of it: a round of theirs costs as much as two and a half of the others.
"""


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
    keys.digest_size(header.hash_name)
    header.cipher(bytes(range(header.key_size)))  # what is not supported is said before the work
    if passphrase is None:
        raise UsageError("is encrypted: --key-file FILE names the file with its passphrase")
    active = [n for n in range(SLOTS) if header.slots[n].in_use]
    if not active:
        raise ImageFormatError("has no LUKS key slot in use: nothing can open it")
    for n in active:
        _check_slot(header, n, len(region))
    work, most = 0, most_rounds(header.hash_name)
    for n in active:
        work += keys.rounds(header.hash_name, header.slots[n].iterations, header.key_size)
        work += keys.rounds(header.hash_name, header.digest_iterations, DIGEST_SIZE)
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
    if key_size * STRIPES % DEFAULT_SECTOR_SIZE:
        # Readers differ in what they do with the last sector; QEMU's stops with a failed assertion.
        raise NotSupportedError(f"{cipher}-{mode} has no key material of whole sectors")
    header = _new_header(key_size, f"{mode}-{iv}", hash_name, seconds)
    key = secrets.token_bytes(key_size)
    header = attrs.evolve(header, digest=header.digest_of(key))
    slot = header.slots[0]
    area = keys.split(key, STRIPES, hash_name)
    slot_key = keys.derive(hash_name, passphrase, slot.salt, slot.iterations, key_size)
    region = bytearray(header.payload_offset)
    region[:HEADER_SIZE] = header.serialize()
    region[slot.offset : slot.offset + len(area)] = header.cipher(slot_key).encrypt(0, area)
    return bytes(region), header.cipher(key)


def _new_header(key_size: int, cipher_mode: str, hash_name: str, seconds: float) -> LuksHeader:
    """A header with the first slot in use; the master key's digest is still to come."""
    area = rounded(key_size * STRIPES, _ALIGNMENT)
    iterations = keys.iterations_for(hash_name, key_size, seconds)
    return LuksHeader(
        cipher_name="aes",
        cipher_mode=cipher_mode,
        hash_name=hash_name,
        payload_offset=_ALIGNMENT + SLOTS * area,
        key_size=key_size,
        digest=bytes(DIGEST_SIZE),
        digest_salt=secrets.token_bytes(_SALT_SIZE),
        digest_iterations=max(iterations // 8, keys.MIN_ITERATIONS),
        uuid=str(uuid.uuid4()),
        slots=tuple(
            KeySlot(
                in_use=n == 0,
                iterations=iterations if n == 0 else 0,
                salt=secrets.token_bytes(_SALT_SIZE) if n == 0 else bytes(_SALT_SIZE),
                offset=_ALIGNMENT + n * area,
            )
            for n in range(SLOTS)
        ),
    )


def most_rounds(hash_name: str) -> int:
    """How many rounds of a hash one opening does at most."""
    wide = keys.digest_size(hash_name) > 32
    return MAX_ROUNDS * 2 // 5 if wide else MAX_ROUNDS


def _check_slot(header: LuksHeader, n: int, region_size: int) -> None:
    slot = header.slots[n]
    if slot.stripes != STRIPES or slot.iterations == 0 or header.digest_iterations == 0:
        raise ImageFormatError(f"has a LUKS key slot ({n}) with impossible values")
    if slot.offset < HEADER_SIZE or slot.offset + header.material_size > region_size:
        raise ImageFormatError(f"has a LUKS key slot ({n}) that lies outside of the header")


def _opened(
    header: LuksHeader, slot: KeySlot, region: bytes | memoryview, passphrase: bytes
) -> bytes:
    """What the slot holds for this passphrase: the master key if that is the right one."""
    key = keys.derive(header.hash_name, passphrase, slot.salt, slot.iterations, header.key_size)
    material = region[slot.offset : slot.offset + header.material_size]
    area = header.cipher(key).decrypt(0, material)
    return keys.merge(area[: header.key_size * STRIPES], STRIPES, header.hash_name)
