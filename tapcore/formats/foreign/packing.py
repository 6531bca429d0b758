"""What archives and compressed data must be besides beginning with a magic."""

from __future__ import annotations

from typing import Literal

from tapcore.formats.foreign.disks import plain_disk
from tapcore.formats.foreign.sample import HEAD_BYTES, Sample

_END_OF_ZIP = b"PK\5\6"
_END_OF_ZIP_BYTES = 22


def tar(sample: Sample) -> bool:
    """The header has a name and a right checksum (POSIX.1, ustar interchange format; signed sums
    exist), or a magic on something that is no disk. Archives of before POSIX have no magic."""
    if sample.has(257, b"ustar") and not plain_disk(sample):
        return True
    block = sample.head[:512]
    digits = block[148:156].strip(b" \0")
    if len(block) < 512 or not block[0] or not digits or digits.strip(b"01234567"):
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in rest)
    return int(digits, 8) in (sum(rest), signed)


def ova(sample: Sample) -> bool:
    """The first member is the OVF description (DSP0243, OVF package)."""
    return tar(sample) and sample.head[:100].rstrip(b"\0").lower().endswith(b".ovf")


def gzip(sample: Sample) -> bool:
    """Deflate, and no flag that is reserved (RFC 1952)."""
    return len(sample.head) >= 10 and not sample.head[3] & 0xE0


def bzip2(sample: Sample) -> bool:
    """A block size."""
    return sample.head[3:4] in b"123456789" and len(sample.head) > 3


def unix_compress(sample: Sample) -> bool:
    """A possible width of codes."""
    return len(sample.head) > 3 and 9 <= sample.head[2] & 0x1F <= 16 and not sample.head[2] & 0x60


def lzip(sample: Sample) -> bool:
    """Version 0 or 1."""
    return sample.head[4:5] in (b"\0", b"\1")


def skippable_frame(sample: Sample) -> bool:
    """Of zstd or LZ4 (RFC 8878 section 3.1.2), and what follows is a frame again or lies further on
    than can be seen."""
    after = 8 + sample.number(4, 4)
    if after > sample.size:
        return False
    if after == sample.size or after + 4 > HEAD_BYTES:
        return True
    magic = sample.number(after, 4)
    return magic in (0xFD2FB528, 0x184D2204) or magic & 0xFFFFFFF0 == 0x184D2A50


def aff4(sample: Sample) -> bool:
    """A zip archive whose first member, or whose comment, says it (AFF4 Standard 1.0)."""
    return b"container.description" in sample.head[30:64] or b"aff4://" in sample.tail


def zip_behind_program(sample: Sample) -> bool:
    """A program, and at the file's end a directory that fits (APPNOTE 4.3.16)."""
    at = sample.tail.rfind(_END_OF_ZIP)
    end = sample.tail[at : at + _END_OF_ZIP_BYTES]
    if at < 0 or len(end) < _END_OF_ZIP_BYTES or plain_disk(sample):
        return False
    size, start, comment = (
        int.from_bytes(end[low:high], "little") for low, high in ((12, 16), (16, 20), (20, 22))
    )
    before = sample.size - len(sample.tail) + at
    return start + size <= before and at + _END_OF_ZIP_BYTES + comment == len(sample.tail)


def lzma(sample: Sample) -> bool:
    """Of before xz: a usual dictionary, a length or none, and the coder's first byte."""
    dictionary, length = sample.number(1, 4), sample.number(5, 8)
    usual = dictionary.bit_count() == 1 or dictionary == 0xFFFFFFFF
    possible = length == (1 << 64) - 1 or 0 < length < 1 << 40
    return len(sample.head) > 13 and usual and possible and not sample.head[13]


def old_cpio(sample: Sample) -> bool:
    """The binary header of 26 bytes, and a name that ends where it says (cpio(5))."""
    order: Literal["little", "big"] = "little" if sample.head[:1] == b"\xc7" else "big"
    length = int.from_bytes(sample.head[20:22], order)
    name = sample.head[26 : 26 + length]
    return 1 < length == len(name) < 1024 and name.find(b"\0") == length - 1
