"""Signs that a file is a disk after all: partition tables, and file systems that lie bare on it.

These make nothing raw that would not be raw anyway. They decide where something else speaks against
it: a name that says otherwise, or the remains of a CD on a stick that was partitioned later.
"""

from __future__ import annotations

from typing import Final

from tapcore.formats.foreign.sample import Sample

_SECTOR = 512

_MAGICS: Final = (
    ("a partition table (GPT)", 512, b"EFI PART"),
    ("a partition table (GPT)", 4096, b"EFI PART"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("a FAT file system", 54, b"FAT12   "),
    ("a FAT file system", 54, b"FAT16   "),
    ("a FAT file system", 82, b"FAT32   "),
    ("an XFS file system", 0, b"XFSB"),
    ("an ext file system", 1080, b"\x53\xef"),
    ("a btrfs file system", (64 << 10) + 64, b"_BHRfS_M"),
    ("an f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
    ("an HFS+ file system", 1024, b"H+\0\4"),
    ("an HFS+ file system", 1024, b"HX\0\5"),
    ("a NILFS2 file system", 1030, b"\x34\x34"),
    ("part of a bcache or bcachefs", 4120, b"\xc6\x85\x73\xf6"),
    ("a ReFS file system", 3, b"ReFS"),
    ("a ReiserFS file system", (64 << 10) + 52, b"ReIsEr"),
    ("a GFS2 file system", 64 << 10, b"\x01\x16\x19\x70"),
    ("an OCFS2 file system", 1024, b"OCFSV2"),
    ("an OCFS2 file system", 2048, b"OCFSV2"),
    ("an OCFS2 file system", 4096, b"OCFSV2"),
    ("an OCFS2 file system", 8192, b"OCFSV2"),
    ("a JFS file system", 32768, b"JFS1"),
    ("a UDF file system", 32769, b"BEA01"),
    ("a ZFS pool", (16 << 10) + 24, b"version\0"),
    ("a UFS file system", 8192 + 1372, b"\x54\x19\x01\0"),
    ("a UFS file system", (64 << 10) + 1372, b"\x19\x01\x54\x19"),
    ("a store of Ceph", 0, b"bluestore block device"),
    ("part of a RAID", 0, b"\xfc\x4e\x2b\xa9"),
    ("an APFS container", 32, b"NXSB"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("part of a RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("an encrypted disk (LUKS)", 0, b"LUKS\xba\xbe"),
)


def plain_disk(sample: Sample) -> str:
    """What shows that the content is a disk, in words for people; "" where nothing does."""
    for name, offset, magic in _MAGICS:
        if sample.has(offset, magic):
            return name
    return "a partition table (MBR)" if partition_starts(sample) else ""


def partition_starts(sample: Sample) -> list[int]:
    """First sectors of the partitions in the MBR, where it is a possible one (Intel, UEFI 2.10
    section 5.2.1: signature at 510, four records of 16 bytes from 446)."""
    if not sample.has(510, b"\x55\xaa"):
        return []
    records = [sample.head[at : at + 16] for at in range(446, 510, 16)]
    if any(record[0] & 0x7F for record in records):  # active or not, and nothing else
        return []
    return [
        int.from_bytes(record[8:12], "little")
        for record in records
        if record[4] and int.from_bytes(record[12:16], "little")
    ]


def gpt_starts(sample: Sample) -> list[int]:
    """First sectors of the partitions in a GPT of 512-byte sectors (UEFI 2.10 section 5.3)."""
    if not sample.has(_SECTOR, b"EFI PART"):
        return []
    table, count, size = sample.number(584, 8), sample.number(592, 4), sample.number(596, 4)
    if size < 128 or size % 128 or table > 64:
        return []
    found = []
    for index in range(min(count, 128)):
        at = table * _SECTOR + index * size
        if any(sample.head[at : at + 16]):
            found.append(sample.number(at + 32, 8))
    return found
