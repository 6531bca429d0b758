"""LUKS version 2: two copies of a header, in each a description in JSON; and its key slots.

Read, never written. Source: LUKS2 On-Disk Format Specification, version 1.1.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from tapcore.errors import ImageFormatError, NotSupportedError, UsageError
from tapcore.formats.cipher import SectorCipher
from tapcore.formats.luks import keys
from tapcore.formats.luks.keyslots import WrongPassphraseError, most_rounds

log = logging.getLogger(__name__)

Read = Callable[[int, int], bytes]
"""`read(offset, length)` of the disk with the header, bytes; ImageFormatError: outside of it."""

_FIRST: Final = b"LUKS\xba\xbe"
_SECOND: Final = b"SKUL\xba\xbe"
_HEADER: Final = struct.Struct(">6sHQQ48s32s64s40s48sQ")
_BINARY: Final = 4096
_CHECKSUM: Final = slice(448, 512)
_SIZES: Final = tuple(1 << bits for bits in range(14, 23))
"""Of a copy, bytes: where the second one can lie."""

_MOST_KIBIBYTES: Final = 1 << 20
"""Of memory that a key slot may ask for: what cryptsetup asks for at most."""

_MOST_PASSES: Final = 16 << 20
"""Kibibytes that Argon2 may go over in all slots together: some ten seconds of a processor."""

_MOST_LANES: Final = 4
_MOST_AREA: Final = 1 << 20


@attrs.frozen
class Segment:
    """Where the data lies, and how it is encrypted.

    Attributes:
        offset: bytes.
        size: bytes; None: up to the end.
        encryption: "aes-xts-plain64".
        sector_size: bytes that are encrypted as one.
        first_iv: what the number of the first sector (of 512 bytes) is.
    """

    offset: int
    size: int | None
    encryption: str
    sector_size: int
    first_iv: int


@attrs.frozen
class Luks2Header:
    """What a header says.

    Attributes:
        uuid: text.
        label: text, often empty.
        segment: of the data.
        said: all of it, as it stands there.
    """

    uuid: str
    label: str
    segment: Segment
    said: Mapping[str, Any] = attrs.field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For people: what is worth knowing."""
        slots = self.said["keyslots"].values()
        return {
            "version": 2,
            "uuid": self.uuid,
            **({"label": self.label} if self.label else {}),
            "cipher": self.segment.encryption,
            "sector_size": self.segment.sector_size,
            "payload_offset": self.segment.offset,
            "key_slots": [str(slot["kdf"]["type"]) for slot in slots],
        }


# ---- the header ----------------------------------------------------------------------------------


def read_luks2(read: Read, image: str) -> Luks2Header:
    """Read the newer of the two headers that are whole.

    Args:
        read: of the disk.
        image: its name, for the log.

    Raises:
        ImageFormatError: none is whole, or it contradicts itself.
        NotSupportedError: it needs what is not here.
    """
    found: list[tuple[int, dict[str, Any], str, str]] = []
    problem: ImageFormatError | None = None
    for offset in (0, *_SIZES):
        if found and offset and offset != found[0][1]["size"]:
            continue
        try:
            copy = _copy(read, offset)
        except ImageFormatError as exc:
            problem = problem or exc
        else:
            if copy is not None:
                found.append(copy)
    if not found:
        raise problem or ImageFormatError("has no LUKS header where it should be")
    if len(found) == 1:
        log.warning("%s: one of its two LUKS headers is damaged; the other one is used", image)
    _, said, uuid, label = max(found, key=lambda copy: copy[0])
    try:
        return _checked(said["json"], uuid, label)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        if isinstance(exc, ImageFormatError):
            raise
        text = f"has a LUKS header that says nothing sensible: {type(exc).__name__}: {exc}"
        raise ImageFormatError(text) from None


def _copy(read: Read, offset: int) -> tuple[int, dict[str, Any], str, str] | None:
    """One copy: its number, what it says, the UUID and the label; None where there is none."""
    binary = read(offset, _BINARY)
    magic, version, size, number, label, algorithm, _, uuid, _, at = _HEADER.unpack_from(binary)
    if magic != (_SECOND if offset else _FIRST) or version != 2:
        if offset:
            return None
        raise ImageFormatError("has no LUKS header of version 2 where it should be")
    if size not in _SIZES or at != offset or (offset and size != offset):
        raise ImageFormatError(f"has a LUKS header of {size} bytes, said to lie at {at}")
    content = binary + read(offset + _BINARY, size - _BINARY)
    _check_sum(content, _text(algorithm))
    text = content[_BINARY:].partition(b"\0")[0]
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise ImageFormatError("has a LUKS header that is no JSON") from None
    return number, {"size": size, "json": said}, _text(uuid), _text(label)


def _check_sum(content: bytes, algorithm: str) -> None:
    zeroed = bytearray(content)
    zeroed[_CHECKSUM] = bytes(64)
    keys.digest_size(algorithm)
    found = hashlib.new(algorithm, zeroed).digest()
    if content[_CHECKSUM][: len(found)] != found:
        raise ImageFormatError("has a LUKS header whose checksum is wrong")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _checked(said: dict[str, Any], uuid: str, label: str) -> Luks2Header:
    required = said.get("config", {}).get("requirements", {}).get("mandatory", [])
    if required:
        needs = ", ".join(map(str, required))
        raise NotSupportedError(f"has a LUKS header that needs {needs}, which is not supported")
    segments = {n: s for n, s in said["segments"].items() if not s.get("flags")}
    if len(segments) != 1:
        text = f"has {len(segments)} LUKS segments: only one is supported"
        raise NotSupportedError(text)
    ((_, segment),) = segments.items()
    if segment["type"] != "crypt":
        text = f"has a LUKS segment of the type {segment['type']}, which is not supported"
        raise NotSupportedError(text)
    size = None if segment["size"] == "dynamic" else int(segment["size"])
    found = Segment(
        offset=int(segment["offset"]),
        size=size,
        encryption=str(segment["encryption"]),
        sector_size=int(segment["sector_size"]),
        first_iv=int(segment["iv_tweak"]),
    )
    if found.sector_size not in (512, 1024, 2048, 4096) or found.offset % 512 or found.offset < 0:
        raise ImageFormatError("has a LUKS segment with impossible values")
    if (size is not None and (size <= 0 or size % 512)) or found.first_iv < 0:
        raise ImageFormatError("has a LUKS segment with impossible values")
    if not said["keyslots"]:
        raise ImageFormatError("has no LUKS key slot in use: nothing can open it")
    for slot in said["keyslots"].values():
        slot["kdf"]["type"]  # is there
    return Luks2Header(uuid, label, found, said)


# ---- key slots -----------------------------------------------------------------------------------


def open_luks2(header: Luks2Header, read: Read, passphrase: bytes) -> SectorCipher:
    """Find the key of the data.

    Args:
        header: of the disk.
        read: of it.
        passphrase: to be tried.

    Returns:
        The cipher, for sectors counted from the segment's start, its IVs' first number added.

    Raises:
        WrongPassphraseError: it opens no slot.
        NotSupportedError: an algorithm is not supported, or a package is missing.
        ImageFormatError: the header is damaged, or asks for unreasonably much work.
    """
    try:
        return _open(header, read, passphrase)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as exc:
        if isinstance(exc, UsageError | ImageFormatError | NotSupportedError):
            raise
        text = f"has a LUKS key slot that says nothing sensible: {type(exc).__name__}: {exc}"
        raise ImageFormatError(text) from None


def _open(header: Luks2Header, read: Read, passphrase: bytes) -> SectorCipher:
    said, segment = header.said, header.segment
    digests = [d for d in said["digests"].values() if d["segments"]]
    if len(digests) != 1 or digests[0]["type"] != "pbkdf2":
        raise NotSupportedError("has LUKS digests that are not supported")
    digest = digests[0]
    work = _Work()
    refused: NotSupportedError | None = None
    for number in digest["keyslots"]:
        slot = said["keyslots"][number]
        if slot["type"] != "luks2":
            continue
        try:
            key = _key_in(slot, read, passphrase, work)
        except NotSupportedError as exc:
            refused = refused or exc
            continue
        salt, iterations = _bytes(digest["salt"]), int(digest["iterations"])
        wanted = _bytes(digest["digest"])
        work.count(digest["hash"], iterations, len(wanted))
        if hmac.compare_digest(
            keys.derive(digest["hash"], key, salt, iterations, len(wanted)), wanted
        ):
            return _cipher(segment.encryption, key, segment.sector_size, segment.first_iv)
    if refused is not None:
        raise refused
    raise WrongPassphraseError("is encrypted with another passphrase than the one given")


class _Work:
    """What deriving keys has cost so far: a file that asks for too much means to do harm."""

    def __init__(self) -> None:
        self._rounds = 0
        self._passes = 0

    def count(self, hash_name: str, iterations: int, length: int) -> None:
        """Before PBKDF2."""
        if iterations <= 0:
            raise ImageFormatError("has a LUKS key slot with impossible values")
        self._rounds += keys.rounds(hash_name, iterations, length)
        if self._rounds > most_rounds(hash_name):
            raise ImageFormatError("has LUKS key slots that take too long to try")

    def count_argon(self, time: int, memory: int, lanes: int) -> None:
        """Before Argon2."""
        if time <= 0 or not 0 < lanes <= _MOST_LANES or not 8 * lanes <= memory <= _MOST_KIBIBYTES:
            raise ImageFormatError(
                f"has a LUKS key slot that asks for {memory} KiB, {time} times, by {lanes} threads"
            )
        self._passes += time * memory
        if self._passes > _MOST_PASSES:
            raise ImageFormatError("has LUKS key slots that take too long to try")


def _key_in(slot: Mapping[str, Any], read: Read, passphrase: bytes, work: _Work) -> bytes:
    """What a slot holds for this passphrase: the data's key if that is the right one."""
    area, af = slot["area"], slot["af"]
    key_size, stripes = int(slot["key_size"]), int(af["stripes"])
    if af["type"] != "luks1" or area["type"] != "raw":
        raise NotSupportedError("has a LUKS key slot of a kind that is not supported")
    size = -(-key_size * stripes // 512) * 512
    if not 0 < key_size <= 64 or not 0 < stripes <= 4000 or not 0 < size <= _MOST_AREA:
        raise ImageFormatError("has a LUKS key slot with impossible values")
    keys.digest_size(af["hash"])
    slot_key = _derived(slot["kdf"], passphrase, int(area["key_size"]), work)
    cipher = _cipher(str(area["encryption"]), slot_key, 512, 0)
    content = cipher.decrypt(0, read(int(area["offset"]), size))
    return keys.merge(content[: key_size * stripes], stripes, af["hash"])


def _derived(kdf: Mapping[str, Any], passphrase: bytes, length: int, work: _Work) -> bytes:
    salt = _bytes(kdf["salt"])
    if not 0 < length <= 64:
        raise ImageFormatError("has a LUKS key slot with impossible values")
    if kdf["type"] == "pbkdf2":
        work.count(kdf["hash"], int(kdf["iterations"]), length)
        return keys.derive(kdf["hash"], passphrase, salt, int(kdf["iterations"]), length)
    time, memory, lanes = int(kdf["time"]), int(kdf["memory"]), int(kdf["cpus"])
    argon = _argon(str(kdf["type"]))
    work.count_argon(time, memory, lanes)
    made: bytes = argon(
        salt=salt, length=length, iterations=time, lanes=lanes, memory_cost=memory
    ).derive(passphrase)
    return made


def _argon(kind: str) -> Any:
    """The class of the library for `argon2i` or `argon2id`."""
    name = {"argon2i": "Argon2i", "argon2id": "Argon2id"}.get(kind)
    if name is None:
        raise NotSupportedError(f"has a LUKS key slot with {kind}, which is not supported")
    try:
        from cryptography.hazmat.primitives.kdf import argon2

        return getattr(argon2, name)
    except (ImportError, AttributeError):
        needs = "a newer release of the package cryptography: pip install -U cryptography"
        raise NotSupportedError(f"has a LUKS key slot with {kind}, which needs {needs}") from None


def _cipher(encryption: str, key: bytes, sector_size: int, first_iv: int) -> SectorCipher:
    name, _, rest = encryption.partition("-")
    mode, _, iv = rest.partition("-")
    return SectorCipher(
        key, cipher=name, mode=mode, iv=iv, sector_size=sector_size, first_iv=first_iv
    )


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
