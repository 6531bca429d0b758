"""How LUKS makes a key of a passphrase, and hides the master key in a large area.

The area ("anti-forensic stripes") is such that the key is lost when any part of it is overwritten.

Source: LUKS1 On-Disk Format Specification, "PBKDF2" and "AF Splitter".
"""

from __future__ import annotations

import functools
import hashlib
import secrets
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from tapcore.errors import NotSupportedError

HASHES: Final = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "md5")
MIN_ITERATIONS: Final = 1000
"""Fewer are never written: the specification's least."""

_INDEX = struct.Struct(">I")
_TRIAL_SECONDS = 0.02
_TRIAL_LIMIT = 1 << 22  # iterations, should the clock stand still


def digest_size(hash_name: str) -> int:
    """Bytes of a hash's digest.

    Raises:
        NotSupportedError: the hash is not one of LUKS's, or not available on this machine.
    """
    if hash_name in HASHES:
        try:
            return hashlib.new(hash_name).digest_size
        except ValueError:
            pass
    raise NotSupportedError(f"is encrypted with the hash {hash_name}, which is not supported here")


def derive(hash_name: str, secret: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """PBKDF2: `length` bytes made of a secret; other threads run meanwhile."""
    return hashlib.pbkdf2_hmac(hash_name, secret, salt, iterations, length)


def rounds(hash_name: str, iterations: int, length: int) -> int:
    """How often `derive` goes through its inner loop: what it costs."""
    return iterations * -(-length // digest_size(hash_name))


def iterations_for(hash_name: str, length: int, seconds: float) -> int:
    """How many iterations `derive` does in that time on this machine, at least MIN_ITERATIONS.

    Args:
        hash_name: for PBKDF2.
        length: bytes to be made.
        seconds: of one processor.
    """
    if seconds <= 0:
        return MIN_ITERATIONS
    trial = 1 << 12
    while True:
        start = time.thread_time()
        derive(hash_name, b"trial", bytes(32), trial, length)
        took = time.thread_time() - start
        if took >= _TRIAL_SECONDS or trial >= _TRIAL_LIMIT:
            break
        trial *= 2
    return max(int(trial * seconds / max(took, _TRIAL_SECONDS)), MIN_ITERATIONS)


def split(key: bytes, stripes: int, hash_name: str) -> bytes:
    """The area that hides a key: `len(key) * stripes` bytes."""
    diffuse = _diffuser(hash_name, len(key))
    parts = []
    mixed = 0
    for _ in range(stripes - 1):
        part = secrets.token_bytes(len(key))
        parts.append(part)
        mixed = diffuse(mixed ^ int.from_bytes(part, "big"))
    parts.append((mixed ^ int.from_bytes(key, "big")).to_bytes(len(key), "big"))
    return b"".join(parts)


def merge(area: bytes, stripes: int, hash_name: str) -> bytes:
    """The reverse of `split`."""
    size = len(area) // stripes
    diffuse = _diffuser(hash_name, size)
    mixed = 0
    for at in range(0, size * (stripes - 1), size):
        mixed = diffuse(mixed ^ int.from_bytes(area[at : at + size], "big"))
    last = int.from_bytes(area[size * (stripes - 1) :], "big")
    return (mixed ^ last).to_bytes(size, "big")


def _diffuser(hash_name: str, size: int) -> Callable[[int], int]:
    """A function that hashes a big-endian number of `size` bytes, digest by digest."""
    new: Callable[[bytes], Any] = getattr(
        hashlib, hash_name, functools.partial(hashlib.new, hash_name)
    )
    step = digest_size(hash_name)
    pieces = [(_INDEX.pack(n), at, at + step) for n, at in enumerate(range(0, size, step))]

    def diffuse(number: int) -> int:
        content = number.to_bytes(size, "big")
        hashed = b"".join(
            [new(index + content[start:end]).digest() for index, start, end in pieces]
        )
        return int.from_bytes(hashed[:size], "big")

    return diffuse
