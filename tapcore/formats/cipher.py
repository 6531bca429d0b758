"""AES over 512-byte sectors, each with an IV made from its number: what encrypted disks use.

The package cryptography does the work (`pip install 'tapcore[crypt]'`); it is loaded when the
first cipher is made.

Disks differ from what its interface is made for: thousands of short pieces, each with an IV of its
own. What is below was chosen by measuring: for XTS a context a sector, of one cipher object whose
IV is a buffer that changes, is twice as quick as a cipher object a sector, and quicker than all
sectors at once by arithmetic on long integers. CBC is decrypted all at once, and put right where
sectors meet.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import struct
import sys
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tapcore.constants import DEFAULT_SECTOR_SIZE
from tapcore.errors import NotSupportedError, UsageError
from tapcore.interface.keys import FilePassphrase

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext, modes

Buffer: TypeAlias = bytes | bytearray | memoryview
_Work: TypeAlias = Callable[[Buffer, bytes], bytes]  # content of sectors, their IVs in a row

_BLOCK = 16  # bytes of an AES block and of an IV
_BLOCKS = DEFAULT_SECTOR_SIZE // _BLOCK
_WORDS = DEFAULT_SECTOR_SIZE // 8  # 64-bit words of a sector; two are a block
_KEY_SIZES = {"cbc": (16, 24, 32), "xts": (32, 48, 64)}  # bytes; XTS has two keys in a row
_each_iv = struct.Struct(f"{_BLOCK}s").iter_unpack


class SectorCipher:
    """Encrypts and decrypts whole sectors. Nothing in it changes: threads may share it.

    Args:
        key: for XTS both keys, the one for the data first.
        cipher: "aes".
        mode: "xts" or "cbc".
        iv: what becomes of a sector's number: "plain" (its low 32 bits, little endian, padded with
            zeroes), "plain64" (all 64), "essiv:HASH" (that, encrypted by AES with the key's hash).
        sector_size: bytes that are encrypted as one; numbers are of sectors of 512 all the same.
        first_iv: is added to each sector's number.

    Raises:
        NotSupportedError: an algorithm that is not here, or the package is not installed.
        UsageError: the algorithm has no such key.
    """

    __slots__ = ("_decrypt", "_encrypt", "_ivs")

    def __init__(
        self,
        key: bytes,
        *,
        cipher: str = "aes",
        mode: str = "xts",
        iv: str = "plain64",
        sector_size: int = DEFAULT_SECTOR_SIZE,
        first_iv: int = 0,
    ) -> None:
        if cipher != "aes" or mode not in _KEY_SIZES:
            raise NotSupportedError(f"the cipher {cipher}-{mode} is not supported")
        if len(key) not in _KEY_SIZES[mode]:
            raise UsageError(f"{cipher}-{mode} has no keys of {len(key) * 8} bits")
        if mode == "xts" and key[: len(key) // 2] == key[len(key) // 2 :]:
            raise UsageError("both halves of an XTS key are the same")
        _require_cryptography()
        self._ivs = _iv_maker(key, iv)
        if sector_size == DEFAULT_SECTOR_SIZE and not first_iv:
            self._encrypt, self._decrypt = (_cbc if mode == "cbc" else _xts)(key)
            return
        if mode == "xts" and len(key) == 48:
            raise NotSupportedError(f"the cipher {cipher}-{mode} with keys of 384 bits is not here")
        self._ivs = _each_of(self._ivs, sector_size // DEFAULT_SECTOR_SIZE, first_iv)
        self._encrypt, self._decrypt = _of_size(key, mode, sector_size)

    def encrypt(self, first_sector: int, data: Buffer) -> bytes:
        """Encrypt.

        Args:
            first_sector: number of the first sector, from which the IVs are made.
            data: whole sectors.

        Raises:
            ValueError: not whole sectors.
        """
        return self._encrypt(data, self._ivs(first_sector, _sectors_in(data)))

    def decrypt(self, first_sector: int, data: Buffer) -> bytes:
        """The reverse of `encrypt`."""
        return self._decrypt(data, self._ivs(first_sector, _sectors_in(data)))


def legacy_aes(passphrase: bytes) -> SectorCipher:
    """The first encryption of qcow and qcow2: AES-128-CBC with the passphrase itself as the key.

    Its sectors are counted on the disk, not in the file. Whether the passphrase is right cannot be
    told, and those of more than 16 bytes are cut.
    """
    if isinstance(passphrase, FilePassphrase) and passphrase.had_line_end:
        log.warning(
            "the newline at the end of the key file is not taken for a part of the passphrase; "
            "with this encryption it cannot be told whether that is right"
        )
    return SectorCipher(passphrase[:16].ljust(16, b"\0"), mode="cbc", iv="plain64")


def _require_cryptography() -> None:
    try:
        import cryptography.hazmat.primitives.ciphers  # noqa: F401
    except ImportError:
        raise NotSupportedError(
            "encryption needs the package cryptography: pip install cryptography"
        ) from None


def _sectors_in(data: Buffer) -> int:
    if len(data) % DEFAULT_SECTOR_SIZE:
        raise ValueError(f"{len(data)} bytes are not whole sectors")
    return len(data) // DEFAULT_SECTOR_SIZE


# ---- IVs -----------------------------------------------------------------------------------


def _iv_maker(key: bytes, iv: str) -> Callable[[int, int], bytes]:
    """The function that makes the IVs of sectors, in a row; its arguments: the first, how many."""
    if iv == "plain64":
        return _plain64
    if iv == "plain":
        return _plain
    kind, _, hash_name = iv.partition(":")
    try:
        salt = hashlib.new(hash_name, key).digest() if kind == "essiv" else b""
    except (TypeError, ValueError):  # not available here, or of any length
        salt = b""
    if len(salt) not in _KEY_SIZES["cbc"]:
        raise NotSupportedError(f"IVs of the kind {iv} are not supported")
    encrypt = _ecb(salt, False)
    return lambda first, count: encrypt(_plain64(first, count))


def _plain64(first: int, count: int) -> bytes:
    return _numbered(array("Q", range(first, first + count)))


def _plain(first: int, count: int) -> bytes:
    return _numbered(array("Q", (n & 0xFFFF_FFFF for n in range(first, first + count))))


def _numbered(numbers: array[int]) -> bytes:
    """Each number as a block: 64 bits, little endian, and zeroes."""
    if sys.byteorder == "big":
        numbers.byteswap()
    words = array("Q", bytes(len(numbers) * _BLOCK))
    words[::2] = numbers
    return words.tobytes()


def _each_of(
    ivs: Callable[[int, int], bytes], step: int, first_iv: int
) -> Callable[[int, int], bytes]:
    """The same for larger sectors: that of the first of the small ones in each."""
    if step == 1:
        return lambda first, count: ivs(first + first_iv, count)

    def of_larger(first: int, count: int) -> bytes:
        every = ivs(first + first_iv, count)
        size = step * _BLOCK
        return b"".join([every[at : at + _BLOCK] for at in range(0, len(every), size)])

    return of_larger


# ---- ways to do the work -------------------------------------------------------------------


def _cbc(key: bytes) -> tuple[_Work, _Work]:
    from cryptography.hazmat.primitives.ciphers import modes

    return _sector_by_sector(key, modes.CBC, False), _cbc_decryptor(key)


def _xts(key: bytes) -> tuple[_Work, _Work]:
    from cryptography.hazmat.primitives.ciphers import modes

    if len(key) == 48:  # AES-192, which the library does not have
        return _xts_by_blocks(key, False), _xts_by_blocks(key, True)
    return _sector_by_sector(key, modes.XTS, False), _sector_by_sector(key, modes.XTS, True)


def _of_size(key: bytes, mode: str, size: int) -> tuple[_Work, _Work]:
    """For sectors of any size: encrypt, decrypt."""
    from cryptography.hazmat.primitives.ciphers import modes

    kind = modes.CBC if mode == "cbc" else modes.XTS
    encrypt = _sector_by_sector(key, kind, False, size)
    decrypt = _sector_by_sector(key, kind, True, size)

    def whole(work: _Work) -> _Work:
        def checked(data: Buffer, ivs: bytes) -> bytes:
            if len(data) % size:
                raise ValueError(f"{len(data)} bytes are not whole sectors of {size}")
            return work(data, ivs)

        return checked

    return whole(encrypt), whole(decrypt)


def _sector_by_sector(
    key: bytes,
    mode: type[modes.XTS | modes.CBC],
    decrypting: bool,
    size: int = DEFAULT_SECTOR_SIZE,
) -> _Work:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    aes = algorithms.AES(key)
    read_late = _iv_is_read_late(mode)

    def context_starter(iv: bytearray) -> Callable[[], CipherContext]:
        """A function that makes a new context, with what `iv` holds at that moment."""
        if read_late:
            cipher = Cipher(aes, mode(iv))
            return cipher.decryptor if decrypting else cipher.encryptor

        def start() -> CipherContext:
            cipher = Cipher(aes, mode(bytes(iv)))
            return cipher.decryptor() if decrypting else cipher.encryptor()

        return start

    def work(data: Buffer, ivs: bytes) -> bytes:
        iv = bytearray(_BLOCK)
        start = context_starter(iv)
        pieces = []
        offset = 0
        for (iv[:],) in _each_iv(ivs):
            pieces.append(start().update(data[offset : offset + size]))
            offset += size
        return b"".join(pieces)

    return work


@functools.cache
def _iv_is_read_late(mode: type[modes.XTS | modes.CBC]) -> bool:
    """Whether a cipher object looks at its IV again for each context.

    All known releases do, but none promises it, and to be wrong would cost all data.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    aes, iv = algorithms.AES(bytes(range(32))), bytearray(_BLOCK)
    early = Cipher(aes, mode(iv))
    early.encryptor().update(bytes(_BLOCK))
    iv[0] = 1
    late = Cipher(aes, mode(bytes(iv)))
    return early.encryptor().update(bytes(_BLOCK)) == late.encryptor().update(bytes(_BLOCK))


def _cbc_decryptor(key: bytes) -> _Work:
    """All sectors as one message, then put right where they meet."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    aes = algorithms.AES(key)

    def work(data: Buffer, ivs: bytes) -> bytes:
        if not ivs:
            return b""
        content = Cipher(aes, modes.CBC(ivs[:_BLOCK])).decryptor().update(data)
        if len(ivs) == _BLOCK:
            return content
        # The first block of each later sector was combined with the block before it.
        plain = memoryview(bytearray(content)).cast("Q")
        source = memoryview(data).cast("B").cast("Q")
        first = _gathered(plain[_WORDS:], 0)
        before = _gathered(source[:-_WORDS], _WORDS - 2)
        _scatter(plain[_WORDS:], 0, _xor(_xor(first, before), ivs[_BLOCK:]))
        return plain.tobytes()

    return work


def _xts_by_blocks(key: bytes, decrypting: bool) -> _Work:
    """XTS from single blocks of AES (IEEE 1619): for keys that the library does not take.

    Tweaks of all sectors are computed together, as lanes of 128 bits in one long integer: first
    those of each sector's first block, from them the second, then the third and fourth, and so on.
    """
    half = len(key) // 2
    crypt, encrypt_ivs = _ecb(key[:half], decrypting), _ecb(key[half:], False)

    def work(data: Buffer, ivs: bytes) -> bytes:
        count = len(ivs) // _BLOCK
        tweaks = int.from_bytes(encrypt_ivs(ivs), "little")
        for step in range(_BLOCKS.bit_length() - 1):
            done = 1 << step  # blocks of each sector
            tweaks |= _multiplied(tweaks, done, count * done) << (count * done * 128)
        by_block = memoryview(tweaks.to_bytes(len(data), "little"))
        by_sector = memoryview(bytearray(len(data))).cast("Q")
        for block in range(_BLOCKS):
            start = block * count * _BLOCK
            _scatter(by_sector, 2 * block, by_block[start : start + count * _BLOCK])
        mask = by_sector.tobytes()
        return _xor(crypt(_xor(data, mask)), mask)

    return work


def _multiplied(lanes: int, times: int, count: int) -> int:
    """`count` elements of GF(2^128), each multiplied `times` (at most 16) times by x."""
    ones = int.from_bytes((b"\1" + bytes(_BLOCK - 1)) * count, "little")
    low = ones * ((1 << times) - 1)  # of each lane the bits that come from the lane before
    over = (lanes >> (128 - times)) & low
    # x^128 is x^7 + x^2 + x + 1
    return ((lanes << times) & ~low & ((1 << (128 * count)) - 1)) ^ (
        over ^ over << 1 ^ over << 2 ^ over << 7
    )


def _ecb(key: bytes, decrypting: bool) -> Callable[[bytes], bytes]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(key), modes.ECB())
    start = cipher.decryptor if decrypting else cipher.encryptor
    return lambda data: start().update(data)


def _xor(a: Buffer, b: Buffer) -> bytes:
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


def _gathered(sectors: memoryview[int], word: int) -> bytes:
    """The block that begins at `word` of each sector, in a row."""
    blocks = memoryview(bytearray(len(sectors) * _BLOCK // _WORDS)).cast("Q")
    blocks[0::2] = sectors[word::_WORDS]
    blocks[1::2] = sectors[word + 1 :: _WORDS]
    return blocks.tobytes()


def _scatter(sectors: memoryview[int], word: int, blocks: Buffer) -> None:
    """The reverse of `_gathered`."""
    words = memoryview(blocks).cast("Q")
    sectors[word::_WORDS] = words[0::2]
    sectors[word + 1 :: _WORDS] = words[1::2]
