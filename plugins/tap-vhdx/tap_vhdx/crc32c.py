"""CRC-32C, the checksum of all structures; Python's library has only the other polynomial's.

It is linear, so a long input is taken in lanes side by side: a step moves one byte of all lanes
through the table at once, with `bytes.translate`. Zeroes at the end, which most structures consist
of, are a matrix.

Source: MS-VHDX 2.2.2 (Checksum); RFC 3720, appendix B.4 for the polynomial.
"""

from __future__ import annotations

from functools import cache
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
_ALL: Final = 0xFFFFFFFF
_LANE: Final = 64
"""Bytes of a lane."""
_LONG: Final = 1024
"""Bytes from which on lanes are quicker."""


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE: Final = tuple(map(_entry, range(256)))
_BYTES_OF_TABLE: Final = [
    bytes(each >> shift & 0xFF for each in _TABLE) for shift in (0, 8, 16, 24)
]

Matrix = tuple[int, ...]
"""What a number of zero bytes makes of each bit of a state."""


def crc32c(content: bytes | bytearray) -> int:
    """The checksum of some bytes."""
    kept = bytes(content.rstrip(b"\0"))
    state, whole = _ALL, 0
    if len(kept) >= _LONG:
        whole = len(kept) // _LANE * _LANE
        one, two, three, four = _lane_tables()
        for lane in _lanes(kept[:whole]):
            state = (
                one[state & 0xFF]
                ^ two[state >> 8 & 0xFF]
                ^ three[state >> 16 & 0xFF]
                ^ four[state >> 24]
                ^ lane
            )
    for byte in kept[whole:]:
        state = _TABLE[(state ^ byte) & 0xFF] ^ state >> 8
    return _zeroes(state, len(content) - len(kept)) ^ _ALL


def checksum_of(content: bytes, at: int) -> int:
    """The checksum of a structure that holds it itself, as zero, at an offset (bytes)."""
    return crc32c(content[:at] + bytes(4) + content[at + 4 :])


def _lanes(content: bytes) -> list[int]:
    """The states after each lane of whole ones, each begun with zero."""
    count = len(content) // _LANE
    number = int.from_bytes
    first = second = third = fourth = 0
    for at in range(_LANE):
        column = number(content[at::_LANE], "little")
        index = (first ^ column).to_bytes(count, "little")
        a, b, c, d = (number(index.translate(each), "little") for each in _BYTES_OF_TABLE)
        first, second, third, fourth = second ^ a, third ^ b, fourth ^ c, d
    parts = (each.to_bytes(count, "little") for each in (first, second, third, fourth))
    return [a | b << 8 | c << 16 | d << 24 for a, b, c, d in zip(*parts, strict=True)]


@cache
def _lane_tables() -> list[list[int]]:
    """What the zero bytes of a lane make of a state: for each of its bytes, of each value."""
    matrix = _matrix(_LANE.bit_length() - 1)
    return [[_times(matrix, byte << place) for byte in range(256)] for place in (0, 8, 16, 24)]


@cache
def _matrix(power: int) -> Matrix:
    """Of 2**power zero bytes."""
    if power:
        half = _matrix(power - 1)
        return tuple(_times(half, column) for column in half)
    return tuple(_TABLE[1 << bit] if bit < 8 else 1 << bit - 8 for bit in range(32))


def _times(matrix: Matrix, state: int) -> int:
    product = 0
    for column in matrix:
        if state & 1:
            product ^= column
        state >>= 1
    return product


def _zeroes(state: int, count: int) -> int:
    """The state after so many zero bytes."""
    power = 0
    while count:
        if count & 1:
            state = _times(_matrix(power), state)
        count, power = count >> 1, power + 1
    return state
