"""What a file must be besides beginning with a magic, where the magic alone is too little.

A trailer lies where a disk has its last sector, and bytes in the middle of a disk can be anything:
there a checksum, a version, lengths that fit the file have to agree. Each check gets a sample that
has the magic.
"""

from __future__ import annotations

import re
from typing import Final

from tapcore.formats.foreign.disks import gpt_starts, partition_starts, plain_disk
from tapcore.formats.foreign.sample import Sample

_PVD: Final = 32768
_PVD_SECTOR: Final = 64
_MOST_PADDING: Final = 1 << 20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_HTML: Final = (b"<!doctype html", b"<html", b"<head", b"<title", b"<body", b"<script", b"<!--")
_UTF16: Final = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_VMDK_NAME: Final = rb"(?i)[ \t\r\n]*#\s*disk\s*descriptor\s*file"
_VMDK_SKIPPED: Final = (
    rb"(?:[ \t]*(?:#[^\r\n]*)?[\r\n])*[ \t]*",
    rb"(?:[ \t\r]*(?:#[^\n]*)?\n)*[ \t\r]*",  # as QEMU ends lines
)
_VMDK_ENTRY: Final = (
    rb"(?i)version[ \t]*=[ \t]*\"?\d|"
    rb"(?:encoding|cid|parentcid|isnativesnapshot|createtype|parentfilenamehint)[ \t]*=|"
    rb"(?:rw|rdonly|noaccess)[ \t]+\d+[ \t]+[a-z]"
)
_BEFORE_WORDS: Final = (b" ", b"\t", b"\r", b"\n", b"#")
"""With what a descriptor may begin that is no letter."""
_VMDK_TEXT: Final = 20480
"""Bytes of a file in which a descriptor shows itself."""


# ---- disk images ----------------------------------------------------------------------------


def vhd_footer(sample: Sample) -> bool:
    """In the last sector; Virtual PC before 2004 wrote 511 bytes (VHD specification 1.0, Hard Disk
    Footer Format).

    A file system may keep a VHD in a file whose end is the disk's. So a fixed one has to be as long
    as its footer says; others have the same footer at their head, and where that is lost, nothing
    else there shows that it is a disk.
    """
    for length in (512, 511):
        if sample.has(-length, b"conectix"):
            return _is_vhd_footer(sample.tail[-length:], sample, sample.size - length)
    return False


def _is_vhd_footer(footer: bytes, sample: Sample, before: int) -> bool:
    if not any(footer[8:]):
        return True
    kind = int.from_bytes(footer[60:64], "big")
    if int.from_bytes(footer[12:16], "big") != 0x10000 or kind not in (2, 3, 4):
        return False
    if kind == 2:
        sizes = [int.from_bytes(footer[at : at + 8], "big") for at in (40, 48)]
        return any(0 <= before - size < _MOST_PADDING for size in sizes)
    return sample.has(0, b"conectix") or not plain_disk(sample)


def vhd_names_parent(sample: Sample) -> bool:
    """Whether the copy of the footer at the head says "differencing"."""
    return sample.has(0, b"conectix") and sample.big(60, 4) == 4


def dmg_trailer(sample: Sample) -> bool:
    """UDIF: version 4, its own length, and parts of which the last ends just before it."""
    block = sample.tail[-512:]
    if not any(block[4:]):
        return True
    if int.from_bytes(block[4:8], "big") != 4 or int.from_bytes(block[8:12], "big") != 512:
        return False
    # data fork, resource fork, property list, code signature
    parts = [_range(block, at) for at in (24, 40, 216, 296)]
    end = max(start + length for start, length in parts)
    if not end:
        return not plain_disk(sample)
    return 0 <= sample.size - 512 - end < _MOST_PADDING


def _range(block: bytes, at: int) -> tuple[int, int]:
    """Offset and length, 64 bits each."""
    start, length = block[at : at + 8], block[at + 8 : at + 16]
    return int.from_bytes(start, "big"), int.from_bytes(length, "big")


def encrypted_dmg(sample: Sample) -> bool:
    """At the head, or in old ones at the end of what shows nothing else."""
    return sample.has(0, b"encrcdsa") or not plain_disk(sample)


def qed_names_parent(sample: Sample) -> bool:
    """Feature bit 0 (QED specification, Header)."""
    return bool(sample.number(16, 8) & 1)


def uml_cow_names_parent(sample: Sample) -> bool:
    """The backing file's name follows magic and version; for QEMU's old format `cow` too."""
    return bool(sample.head[8:9].strip(b"\0"))


def sesparse(sample: Sample) -> bool:
    """There are two headers of a sector each."""
    return len(sample.head) >= 1024


def known_qcow(sample: Sample) -> bool:
    """Version 1, which another driver reads."""
    return sample.big(4, 4) == 1


def known_qcow2(sample: Sample) -> bool:
    """Versions 2 and 3."""
    return sample.big(4, 4) in (2, 3)


def unknown_qcow(sample: Sample) -> bool:
    """A version that nobody has heard of."""
    return not known_qcow(sample) and not known_qcow2(sample)


def vmdk_text(sample: Sample) -> bool:
    """A descriptor by whatever first line: a comment that names it, or, behind other comments and
    blank lines, an entry that only a descriptor has. tap-vmdk goes by the same rules (its tests
    compare the two)."""
    head = sample.head[:_VMDK_TEXT]
    for mark, encoding in _UTF16:
        if head.startswith(mark):
            head = head.decode(encoding, "replace").encode("utf-8", "replace")
    head = head.removeprefix(_BYTE_ORDER_MARK)
    if not (head[:1].isalpha() or head.startswith(_BEFORE_WORDS)):
        return False  # as most disks, for which the expressions need not be compiled
    if re.match(_VMDK_NAME, head):
        return True
    entry = re.compile(_VMDK_ENTRY)
    skipped = (re.match(lines, head) for lines in _VMDK_SKIPPED)
    return any(entry.match(head, each.end()) for each in skipped if each is not None)


# ---- optical media and read-only file systems -----------------------------------------------


def iso_9660(sample: Sample) -> bool:
    """A volume descriptor of version 1 or 2 (ECMA-119 section 8.1), on something that is not a disk
    which was partitioned or formatted later: there it is what a CD's image has left behind, or a
    piece of one that lies in the file system.

    A hybrid, made for CDs and for sticks, has a partition that begins with the CD itself: at its
    start, at the descriptor (in sectors of 512 or 2048 bytes), or right behind an MBR that is only
    there to protect it.
    """
    if sample.device:
        return False
    if not any(sample.head[:_PVD]):
        return True
    if sample.head[_PVD + 6 : _PVD + 7] not in (b"\1", b"\2"):
        return False
    if not plain_disk(sample):
        return sample.has(_PVD + 2049, b"CD001")
    guids = gpt_starts(sample)
    starts = guids or partition_starts(sample)
    return any(start in (0, 1, _PVD_SECTOR, _PVD_SECTOR // 4) for start in starts)


def not_a_device(sample: Sample) -> bool:
    """What lies bare on a block device is what the device is there for."""
    return not sample.device


def bare_file_system(sample: Sample) -> bool:
    """The same, and no disk that was partitioned or formatted later."""
    return not sample.device and not plain_disk(sample)


# ---- text -----------------------------------------------------------------------------------


def text_of_html(sample: Sample) -> bool:
    """What a web server sends instead of a file that is not there."""
    start = sample.head[:1024].removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    return start.startswith(_HTML)
