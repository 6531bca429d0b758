"""Small files of every foreign format, made from the formats' own descriptions; and real disks."""

import io
import struct
import tarfile
import zipfile
import zlib

SECTOR = 512
ISO_SIZE = 64 << 10


def vhd_footer(size: int, kind: int = 2, *, good: bool = True) -> bytes:
    """The 512 bytes at the end of a VHD with `size` bytes before it."""
    footer = bytearray(SECTOR)
    struct.pack_into(">8sIIQ", footer, 0, b"conectix", 2, 0x10000, (1 << 64) - 1)
    struct.pack_into(">QQ", footer, 40, size, size)
    struct.pack_into(">I", footer, 60, kind)
    total = ~sum(footer) & 0xFFFFFFFF
    struct.pack_into(">I", footer, 64, total if good else total ^ 1)
    return bytes(footer)


def dmg_trailer(size: int) -> bytes:
    """The `koly` block behind `size` bytes."""
    block = bytearray(SECTOR)
    struct.pack_into(">4sIII", block, 0, b"koly", 4, SECTOR, 1)
    struct.pack_into(">QQ", block, 24, 0, size)
    return bytes(block)


def archive(name: str, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar archive with one member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        member = tarfile.TarInfo(name)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    return out.getvalue()


def old_archive(name: str) -> bytes:
    """A tar archive of before POSIX: no magic, a checksum all the same."""
    block = bytearray(archive(name)[:SECTOR])
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(10240 - SECTOR)


def zip_behind(program: bytes, *, comment: bytes = b"", cut: int = 0) -> bytes:
    """A zip archive with something before it; of the archive's own start, bytes can be missing."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("disk.img", bytes(500))
        archive.comment = comment
    return program + out.getvalue()[cut:]


def old_cpio(order: str) -> bytes:
    """A cpio archive in the binary form of the first Unixes, with one empty member."""
    words = (0o70707, 0, 1, 0o100644, 0, 0, 1, 0, 0, 0, 6, 0, 0)
    return padded(struct.pack(f"{order}13H", *words) + b"a.img\0")


def iso(head: bytes = b"", more: bytes = b"") -> bytes:
    """A volume descriptor, behind a system area of any content, and perhaps the next one."""
    image = bytearray(ISO_SIZE)
    image[: len(head)] = head
    image[32768:32775] = b"\1CD001\1"
    image[34816 : 34816 + len(more)] = more
    return bytes(image)


def mbr(start: int = 2048, count: int = 8192, status: int = 0x80) -> bytes:
    """A partition table with one partition."""
    sector = bytearray(SECTOR)
    struct.pack_into("<B3sB3sII", sector, 446, status, b"", 0x83, b"", start, count)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def gpt(start: int = 2048) -> bytes:
    """A protective MBR, a header and one entry."""
    table = bytearray(3 * SECTOR)
    table[:SECTOR] = mbr(1, 0xFFFFFFFF, 0)
    table[450] = 0xEE
    table[512:520] = b"EFI PART"
    struct.pack_into("<QII", table, 584, 2, 128, 128)
    struct.pack_into("<16s16sQQ", table, 1024, b"t" * 16, b"g" * 16, start, start + 100)
    return bytes(table)


def padded(head: bytes, size: int = 8192) -> bytes:
    """A head with something behind it that is not zeroes."""
    return head + b"\xa5" * (size - len(head))


def at(offset: int, magic: bytes, size: int = 68 << 10) -> bytes:
    """Bytes in the middle of zeroes."""
    image = bytearray(size)
    image[offset : offset + len(magic)] = magic
    return bytes(image)


_QED = struct.pack("<4sIIIQ", b"QED\0", 65536, 4, 1, 0)
_QED_CHILD = struct.pack("<4sIIIQ", b"QED\0", 65536, 4, 1, 1)
_GZIP = zlib.compress(b"x" * 100, wbits=31)
_SKIP = struct.pack("<II", 0x184D2A50, 4) + b"skip" + b"\x28\xb5\x2f\xfd"

FOREIGN: dict[str, tuple[str, bytes]] = {
    "vhd-fixed": ("vhd", bytes(4096) + vhd_footer(4096)),
    "vhd-fixed-of-a-disk": ("vhd", padded(mbr()) + vhd_footer(8192)),
    "vhd-of-511": ("vhd", bytes(4096) + vhd_footer(4096)[:511]),
    "vhd-of-a-magic-alone": ("vhd", bytes(4096) + b"conectix".ljust(SECTOR, b"\0")),
    "vhd-dynamic-without-its-head": ("vhd", padded(b"") + vhd_footer(1 << 30, 3)),
    "vhd-with-a-wrong-sum": ("vhd", bytes(4096) + vhd_footer(4096, good=False)),
    "qed": ("qed", padded(_QED)),
    "qed-child": ("qed", padded(_QED_CHILD)),
    "parallels": ("parallels", padded(b"WithoutFreeSpace")),
    "parallels-ext": ("parallels", padded(b"WithouFreSpacExt")),
    "bochs": ("bochs", padded(b"Bochs Virtual HD Image\0")),
    "cloop": ("cloop", padded(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0\n")),
    "cow": ("cow", padded(b"OOOM\0\0\0\2" + bytes(100))),
    "cow-child": ("cow", padded(b"OOOM\0\0\0\2/etc/passwd\0")),
    "dmg": ("dmg", padded(b"BZh91AY&SY") + dmg_trailer(8192)),
    "dmg-of-a-disk": ("dmg", padded(mbr()) + dmg_trailer(8192)),
    "dmg-of-a-magic-alone": ("dmg", bytes(4096) + b"koly".ljust(SECTOR, b"\0")),
    "dmg-encrypted": ("dmg-encrypted", padded(b"encrcdsa\0\0\0\2")),
    "dmg-encrypted-of-old": ("dmg-encrypted", padded(b"") + b"cdsaencr"),
    "asif": ("asif", padded(b"shdw\0\0\0\1\0\0\2\0")),
    "sparseimage": ("sparseimage", padded(b"sprs\0\0\0\3")),
    "android": ("android-sparse", padded(b"\x3a\xff\x26\xed\1\0\0\0")),
    "cd-sectors": ("cd-sectors", padded(b"\0" + b"\xff" * 10 + b"\0\0\2\0\1")),
    "wim": ("wim", padded(b"MSWIM\0\0\0")),
    "wim-pipable": ("wim", padded(b"WLPWM\0\0\0")),
    "partclone": ("partclone", padded(b"partclone-image\0")),
    "partimage": ("partimage", padded(b"PaRtImAgE-VoLuMe\0")),
    "e01": ("ewf", padded(b"EVF\x09\x0d\x0a\xff\0\1\1\0\0\0")),
    "l01": ("ewf", padded(b"LVF\x09\x0d\x0a\xff\0\1\1\0\0\0")),
    "ex01": ("ewf", padded(b"EVF2\x0d\x0a\x81\0")),
    "aff": ("aff", padded(b"AFF10\r\n\0")),
    "aff4": ("aff4", padded(b"PK\3\4" + bytes(26) + b"container.description")),
    "gzip": ("gzip", _GZIP),
    "xz": ("xz", padded(b"\xfd7zXZ\0")),
    "zstd": ("zstd", padded(b"\x28\xb5\x2f\xfd\4")),
    "zstd-skippable": ("skippable-frame", padded(_SKIP)),
    "bzip2": ("bzip2", padded(b"BZh91AY&SY")),
    "bzip2-empty": ("bzip2", b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0"),
    "lzip": ("lzip", padded(b"LZIP\1\x17")),
    "lzma": ("lzma", padded(b"\x5d\0\0\x80\0" + b"\xff" * 8 + b"\0\x15")),
    "lzma-of-a-length": ("lzma", padded(b"\x5d\0\0\1\0" + b"\0\0\1\0\0\0\0\0" + b"\0\x15")),
    "lz4": ("lz4", padded(b"\x04\x22\x4d\x18\x64")),
    "lz4-legacy": ("lz4", padded(b"\x02\x21\x4c\x18")),
    "lzop": ("lzop", padded(b"\x89LZO\0\r\n\x1a\n")),
    "lrzip": ("lrzip", padded(b"LRZI\0\6")),
    "compress": ("compress", padded(b"\x1f\x9d\x90")),
    "snappy": ("snappy", padded(b"\xff\6\0\0sNaPpY")),
    "zip": ("zip", padded(b"PK\3\4\x14\0\0\0\x08\0" + bytes(20) + b"disk.img")),
    "zip-empty": ("zip", b"PK\5\6" + bytes(18)),
    "zip-behind-a-script": ("zip", zip_behind(b"#!/bin/sh\n")),
    "zip-behind-a-program": ("zip", zip_behind(b"MZ" + bytes(5000), comment=b"setup")),
    "7z": ("7z", padded(b"7z\xbc\xaf\x27\x1c\0\4")),
    "rar": ("rar", padded(b"Rar!\x1a\7\1\0")),
    "xar": ("xar", padded(b"xar!\0\x1c\0\1")),
    "ova": ("ova", archive("vm.ovf")),
    "ova-gnu": ("ova", archive("VM.OVF", tarfile.GNU_FORMAT)),
    "tar": ("tar", archive("disk.img")),
    "tar-of-a-magic-alone": ("tar", at(257, b"ustar\x0000")),
    "tar-old": ("tar", old_archive("disk.img")),
    "cpio": ("cpio", padded(b"070701000000")),
    "cpio-binary": ("cpio", old_cpio("<")),
    "cpio-binary-swapped": ("cpio", old_cpio(">")),
    "iso": ("iso9660", iso()),
    "iso-of-a-magic-alone": ("iso9660", at(32769, b"CD001")),
    "iso-with-other-boot-code": ("iso9660", iso(b"boot", more=b"\xffCD001\1")),
    "iso-hybrid": ("iso9660", iso(mbr(0))),
    "iso-hybrid-64": ("iso9660", iso(mbr(64))),
    "iso-protective": ("iso9660", iso(mbr(1))),
    "iso-hybrid-gpt": ("iso9660", iso(gpt(64))),
    "squashfs": ("squashfs", padded(b"hsqs" + bytes(24) + b"\4\0\0\0")),
    "squashfs-big-endian": ("squashfs", padded(b"sqsh")),
    "squashfs-lzma": ("squashfs", padded(b"qshs")),
    "erofs": ("erofs", at(1024, b"\xe2\xe1\xf5\xe0", 8192)),
    "lfs": ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "html": ("html", b"\r\n<!DOCTYPE HTML>\n<title>404</title>"),
    "html-bare": ("html", b"<HTML><body>"),
    "html-with-a-comment": ("html", b"<!-- saved -->\n<html>"),
    "xml": ("xml", b'<?xml version="1.0"?>\n<Envelope/>'),
    "qcow2-of-version-9": ("qcow-unknown", padded(b"QFI\xfb\0\0\0\x09")),
}
"""What each has to be recognised as, by its `Signature.code`, and the file."""

WITH_DRIVERS: dict[str, tuple[str, bytes]] = {
    "qcow": ("qcow", padded(b"QFI\xfb\0\0\0\1")),
    "qcow2": ("qcow2", padded(b"QFI\xfb\0\0\0\2")),
    "qcow2-v3": ("qcow2", padded(b"QFI\xfb\0\0\0\3")),
    "vhdx": ("vhdx", padded(b"vhdxfile")),
    "vdi": ("vdi", padded(at(0x40, b"\x7f\x10\xda\xbe", 512))),
    "vhd-dynamic": ("vhd", padded(vhd_footer(1 << 20, 3))),
    "vhd-child": ("vhd", padded(vhd_footer(1 << 20, 4))),
    "vmdk": ("vmdk", padded(b"KDMV\1\0\0\0")),
    "vmdk-cowd": ("vmdk", padded(b"COWD\1\0\0\0")),
    "vmdk-sesparse": ("vmdk", padded(b"\xbe\xba\xfe\xca\0\0\0\0\1\0\0\2")),
    "vmdk-text": ("vmdk", b"# Disk DescriptorFile\nversion=1\n"),
    "vmdk-text-bare": ("vmdk", b'# made by hand\n\nversion=1\ncreateType="monolithicFlat"\n'),
    "vmdk-text-utf16": ("vmdk", "version=1\nCID=1\n".encode("utf-16")),
    "vmdk-text-cid": ("vmdk", b"\r\n#\r\nCID=fffffffe\r\n"),
    "vmdk-text-bom": ("vmdk", b'\xef\xbb\xbfversion=1\nRW 2 FLAT "/etc/passwd" 0\n'),
}
"""The same for formats that have a driver somewhere."""

DISKS: dict[str, bytes] = {
    "zeroes": bytes(8192),
    "nothing-known": padded(b""),
    "mbr": padded(mbr(), 128 << 10),
    "gpt": padded(gpt(), 128 << 10),
    "boot-code": padded(b"\xeb\x63\x90".ljust(510, b"\x90") + b"\x55\xaa"),
    "fat": padded(at(54, b"FAT16   ", 510) + b"\x55\xaa"),
    "ntfs": padded(b"\xeb\x52\x90NTFS    ".ljust(510, b"\0") + b"\x55\xaa"),
    "ext4": at(1080, b"\x53\xef"),
    "xfs": padded(b"XFSB\0\0\x10\0"),
    "btrfs": at(65600, b"_BHRfS_M", 128 << 10),
    "lvm": at(512, b"LABELONE"),
    "swap": at(4086, b"SWAPSPACE2"),
    "vhd-at-the-end-of-jfs": at(32768, b"JFS1") + vhd_footer(1 << 30, 3),
    "vhd-at-the-end-of-udf": at(32769, b"BEA01") + vhd_footer(1 << 30, 3),
    "vhd-at-the-end-of-ocfs2": at(2048, b"OCFSV2") + vhd_footer(1 << 30, 4),
    "vhd-at-the-end-of-zfs": at(16408, b"version\0") + vhd_footer(1 << 30, 3),
    "program-before-a-zip-cut-short": zip_behind(b"MZ" + bytes(5000))[:-1],
    "program-before-a-zip-of-another-file": b"MZ" + bytes(50) + zip_behind(b"", cut=400),
    "lzma-by-chance": padded(b"\x5d\0\0\3\0" + b"\xff" * 8 + b"\0"),
    "cpio-by-chance": padded(b"\xc7\x71"),
    "encrypted-dmg-at-the-end": padded(mbr()) + b"cdsaencr",
    "iso-left-on-a-partitioned-stick": iso(mbr(2048)),
    "iso-left-under-gpt": iso(gpt(2048)),
    "iso-left-under-fat": iso(at(54, b"FAT16   ", 510) + b"\x55\xaa"),
    "iso-magic-without-a-version": b"data" + at(32769, b"CD001")[4:],
    "iso-descriptor-in-something": iso(b"data"),
    "iso-in-a-file-of-xfs": iso(b"XFSB", more=b"\xffCD001\1"),
    "iso-in-a-file-of-bcachefs": iso(at(4120, b"\xc6\x85\x73\xf6", 8192), more=b"\xffCD001\1"),
    "vhd-in-a-file-at-the-end": padded(mbr(), 4 << 20) + vhd_footer(1 << 20),
    "dynamic-vhd-in-a-file-at-the-end": padded(mbr()) + vhd_footer(1 << 30, 3),
    "dmg-in-a-file-at-the-end": padded(mbr(), 4 << 20) + dmg_trailer(1 << 20),
    "erofs-left-under-a-partition-table": mbr() + at(1024, b"\xe2\xe1\xf5\xe0")[512:],
    "last-sector-conectix": bytes(4096) + b"conectix".ljust(SECTOR, b"x"),
    "last-sector-conectix-of-another-size": bytes(4096) + vhd_footer(99999),
    "last-sector-koly": bytes(4096) + b"koly".ljust(SECTOR, b"x"),
    "koly-of-more-than-there-is": bytes(4096) + dmg_trailer(1 << 40),
    "footer-in-the-middle": bytes(4096) + vhd_footer(4096) + bytes(512),
    "ustar-in-boot-code": mbr()[:257] + b"ustar\x0000" + mbr()[265:],
    "no-bzip2": padded(b"BZhello"),
    "text": b"# a letter\n\nversions of it: 1\n",
    "short": b"x",
}
"""What has to be opened as raw."""
