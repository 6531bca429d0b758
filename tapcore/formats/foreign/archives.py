"""The table's rows of archives and compressed data: what has to be unpacked first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tapcore.formats.foreign import packing as when
from tapcore.formats.foreign.sample import Sample
from tapcore.formats.foreign.signature import Signature, at_start


def _packed(
    code: str,
    name: str,
    magics: tuple[tuple[int, bytes], ...],
    command: str,
    also: Callable[[Sample], bool] | None = None,
    *suffixes: str,
    by: str = "",
) -> Signature:
    """Something that has to be unpacked, unless a driver does it."""
    return Signature(
        code,
        name,
        magics,
        also,
        image=False,
        remedy=f"{command} it first",
        suffixes=suffixes,
        unpacked_by=by,
    )


PACKED: Final = (
    _packed(
        "gzip",
        "gzip-compressed",
        at_start(b"\x1f\x8b\x08"),
        "gunzip",
        when.gzip,
        ".gz",
        by="zraw",
    ),
    _packed("xz", "xz-compressed", at_start(b"\xfd7zXZ\0"), "unxz", None, ".xz", by="zraw"),
    _packed(
        "zstd",
        "zstd-compressed",
        at_start(b"\x28\xb5\x2f\xfd"),
        "unzstd",
        None,
        ".zst",
        by="zraw",
    ),
    _packed("bzip2", "bzip2-compressed", at_start(b"BZh"), "bunzip2", when.bzip2, ".bz2"),
    _packed("lzip", "lzip-compressed", at_start(b"LZIP"), "lzip -d", when.lzip, ".lz"),
    _packed("lzma", "LZMA-compressed", at_start(b"\x5d\0\0"), "unlzma", when.lzma, ".lzma"),
    _packed(
        "lz4",
        "LZ4-compressed",
        at_start(b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"),
        "unlz4",
        None,
        ".lz4",
    ),
    _packed(
        "skippable-frame",
        "compressed (zstd or LZ4)",
        tuple((0, bytes((low, 0x2A, 0x4D, 0x18))) for low in range(0x50, 0x60)),
        "unzstd or unlz4",
        when.skippable_frame,
    ),
    _packed("lzop", "lzop-compressed", at_start(b"\x89LZO\0\r\n\x1a\n"), "lzop -d", None, ".lzo"),
    _packed("lrzip", "lrzip-compressed", at_start(b"LRZI\0"), "lrunzip", None, ".lrz"),
    _packed(
        "compress",
        "compressed (compress, .Z)",
        at_start(b"\x1f\x9d"),
        "uncompress",
        when.unix_compress,
    ),
    _packed("snappy", "snappy-compressed", at_start(b"\xff\6\0\0sNaPpY"), "unpack", None, ".sz"),
    _packed(
        "zip",
        "a zip archive",
        at_start(b"PK\3\4", b"PK\5\6", b"PK\7\x08PK\3\4"),
        "unzip",
        None,
        ".zip",
    ),
    _packed(
        "zip",
        "a zip archive that unpacks itself",
        at_start(b"MZ", b"#!", b"\x7fELF"),
        "unzip",
        when.zip_behind_program,
    ),
    _packed("7z", "a 7-Zip archive", at_start(b"7z\xbc\xaf\x27\x1c"), "7z x", None, ".7z"),
    _packed("rar", "a RAR archive", at_start(b"Rar!\x1a\7"), "unrar x", None, ".rar"),
    _packed("xar", "a xar archive", at_start(b"xar!\0\x1c"), "unpack", None),
    Signature(
        "ova",
        "an OVA",
        at_start(b""),
        also=when.ova,
        image=False,
        remedy="tar xf it first: the disks are in it",
        suffixes=(".ova",),
    ),
    _packed("tar", "a tar archive", at_start(b""), "tar xf", when.tar, ".tar"),
    _packed("cpio", "a cpio archive", at_start(b"070701", b"070702", b"070707"), "unpack"),
    _packed("cpio", "a cpio archive", at_start(b"\xc7\x71", b"\x71\xc7"), "unpack", when.old_cpio),
)
