"""The table: how each format shows itself, what it is called, and what to do with such a file.

From the formats' own specifications. Trailers stand first: what lies before them is content.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

import attrs

from tapcore.formats import wellformed as when
from tapcore.formats.sample import Sample

_QEMU_IMG: Final = "qemu-img can convert it"
_AS_A_DISK: Final = "with the handle 'aio:' it is a raw disk"


@attrs.frozen
class Signature:
    """One format.

    Attributes:
        code: a word for programs; never changes.
        name: with its article, after "is".
        magics: any of these bytes, each at its offset: from the start, or (negative) from the end.
        also: what must hold besides.
        image: of a disk, so that a driver for it could be; no archive or the like.
        remedy: what to do, for people.
        handle: of the driver that reads it; "" where there is none that is known of.
        suffixes: of files of this format and of no other; in small letters.
        plain_names: what files with such a suffix are called that hold a plain disk.
        names_file: whether such a file names another one, which other programs would open.
        raw: is a raw disk all the same, and it is enough to say so.
    """

    code: str
    name: str
    magics: tuple[tuple[int, bytes], ...]
    also: Callable[[Sample], bool] | None = None
    image: bool = True
    remedy: str = ""
    handle: str = ""
    suffixes: tuple[str, ...] = ()
    plain_names: str = ""
    names_file: Callable[[Sample], bool] | None = None
    raw: bool = False

    @property
    def distribution(self) -> str:
        """What to install for its driver; "" where there is none that is known of."""
        return f"tap-{self.handle}" if self.handle else ""

    @property
    def advice(self) -> str:
        """What is, and what to do: in a sentence for people."""
        if self.handle:
            return f"{self.name}: pip install {self.distribution}"
        parts = [self.name + ("; no driver for it is installed" if self.image else ""), self.remedy]
        return ": ".join(filter(None, parts))

    def matches(self, sample: Sample) -> bool:
        """Whether a file is of this format."""
        for offset, magic in self.magics:
            if sample.has(offset, magic):
                return self.also is None or self.also(sample)
        return False


def _packed(
    code: str,
    name: str,
    magics: tuple[tuple[int, bytes], ...],
    command: str,
    also: Callable[[Sample], bool] | None = None,
    *suffixes: str,
) -> Signature:
    """Something that has to be unpacked."""
    remedy = f"{command} it first"
    return Signature(code, name, magics, also, image=False, remedy=remedy, suffixes=suffixes)


def _at_start(*magics: bytes) -> tuple[tuple[int, bytes], ...]:
    return tuple((0, magic) for magic in magics)


_IMAGES: Final = (
    Signature(
        "vhd",
        "a VHD image",
        ((-512, b"conectix"), (-511, b"conectix")),
        also=when.vhd_footer,
        remedy=_QEMU_IMG,
        suffixes=(".vhd", ".vpc"),
        names_file=when.vhd_names_parent,
    ),
    Signature(
        "dmg",
        "an Apple disk image (DMG)",
        ((-512, b"koly"),),
        also=when.dmg_trailer,
        remedy=_QEMU_IMG,
    ),
    Signature(
        "qcow2",
        "a qcow2 image",
        _at_start(b"QFI\xfb"),
        also=when.known_qcow2,
        handle="qcow2",
        suffixes=(".qcow2",),
    ),
    Signature(
        "qcow",
        "a qcow image",
        _at_start(b"QFI\xfb"),
        also=when.known_qcow,
        handle="qcow",
        suffixes=(".qcow",),
    ),
    Signature(
        "qcow-unknown",
        "a qcow image of an unknown version",
        _at_start(b"QFI\xfb"),
        when.unknown_qcow,
    ),
    Signature(
        "vmdk",
        "a VMDK image",
        _at_start(b"KDMV", b"COWD"),
        handle="vmdk",
        suffixes=(".vmdk",),
        plain_names=r"-(flat|f\d{3,}|rdm|rdmp)\.vmdk$",
    ),
    Signature(
        "vmdk",
        "a VMDK image",
        _at_start(b"\xbe\xba\xfe\xca\0\0\0\0"),
        also=when.sesparse,
        handle="vmdk",
    ),
    Signature("vmdk", "a VMDK image", _at_start(b""), also=when.vmdk_text, handle="vmdk"),
    Signature(
        "vhd",
        "a VHD image",
        _at_start(b"conectix"),
        remedy=_QEMU_IMG,
        names_file=when.vhd_names_parent,
    ),
    Signature(
        "vhdx",
        "a VHDX image",
        _at_start(b"vhdxfile"),
        remedy=_QEMU_IMG,
        suffixes=(".vhdx", ".avhdx"),
    ),
    Signature(
        "vdi", "a VDI image", ((0x40, b"\x7f\x10\xda\xbe"),), remedy=_QEMU_IMG, suffixes=(".vdi",)
    ),
    Signature(
        "qed",
        "a QED image",
        _at_start(b"QED\0"),
        remedy=_QEMU_IMG,
        suffixes=(".qed",),
        names_file=when.qed_names_parent,
    ),
    Signature(
        "parallels",
        "a Parallels image",
        _at_start(b"WithoutFreeSpace", b"WithouFreSpacExt"),
        remedy=_QEMU_IMG,
    ),
    Signature("bochs", "a Bochs image", _at_start(b"Bochs Virtual HD Image"), remedy=_QEMU_IMG),
    Signature(
        "cloop",
        "a compressed loop image (cloop)",
        _at_start(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
        remedy=_QEMU_IMG,
    ),
    Signature(
        "cow",
        "a User Mode Linux COW image",
        _at_start(b"OOOM\0\0\0", b"MOOO\1\0\0\0"),
        names_file=when.uml_cow_names_parent,
    ),
    Signature(
        "asif",
        "an Apple sparse image (ASIF)",
        _at_start(b"shdw"),
        remedy="diskutil of macOS can convert it",
    ),
    Signature(
        "sparseimage",
        "an Apple sparse image",
        _at_start(b"sprs"),
        remedy="hdiutil of macOS can convert it",
        suffixes=(".sparseimage",),
    ),
    Signature(
        "android-sparse",
        "an Android sparse image",
        _at_start(b"\x3a\xff\x26\xed"),
        remedy="simg2img makes a raw disk of it",
    ),
    Signature(
        "cd-sectors",
        "a CD image with raw sectors of 2352 bytes",
        _at_start(b"\0" + b"\xff" * 10 + b"\0"),
        remedy="bchunk makes an ISO of it",
    ),
    Signature(
        "wim",
        "a Windows image (WIM)",
        _at_start(b"MSWIM\0\0\0"),
        remedy="wimlib can unpack it",
        suffixes=(".wim", ".esd"),
    ),
    Signature(
        "partclone",
        "a partclone image",
        _at_start(b"partclone-image"),
        remedy="partclone.restore makes a raw disk of it",
    ),
    Signature(
        "partimage",
        "a Partimage image",
        _at_start(b"PaRtImAgE-VoLuMe"),
        remedy="partimage makes a raw disk of it",
    ),
)

_FORENSIC: Final = (
    Signature(
        "ewf",
        "an EnCase image (EWF)",
        _at_start(
            b"EVF\x09\x0d\x0a\xff\0",
            b"LVF\x09\x0d\x0a\xff\0",
            b"EVF2\x0d\x0a\x81\0",
            b"LEF2\x0d\x0a\x81\0",
        ),
        remedy="ewfexport makes a raw disk of it",
        suffixes=(".e01", ".ex01", ".l01", ".lx01", ".s01"),
    ),
    Signature(
        "aff",
        "an AFF image",
        _at_start(b"AFF10\r\n\0", b"AFF10\n\0"),
        remedy="affconvert makes a raw disk of it",
        suffixes=(".aff",),
    ),
    Signature("aff4", "an AFF4 image", _at_start(b"PK\3\4"), also=when.aff4, suffixes=(".aff4",)),
)

_PACKED: Final = (
    _packed("gzip", "gzip-compressed", _at_start(b"\x1f\x8b\x08"), "gunzip", when.gzip, ".gz"),
    _packed("xz", "xz-compressed", _at_start(b"\xfd7zXZ\0"), "unxz", None, ".xz"),
    _packed("zstd", "zstd-compressed", _at_start(b"\x28\xb5\x2f\xfd"), "unzstd", None, ".zst"),
    _packed("bzip2", "bzip2-compressed", _at_start(b"BZh"), "bunzip2", when.bzip2, ".bz2"),
    _packed("lzip", "lzip-compressed", _at_start(b"LZIP"), "lzip -d", when.lzip, ".lz"),
    _packed(
        "lz4",
        "LZ4-compressed",
        _at_start(b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"),
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
    _packed("lzop", "lzop-compressed", _at_start(b"\x89LZO\0\r\n\x1a\n"), "lzop -d", None, ".lzo"),
    _packed("lrzip", "lrzip-compressed", _at_start(b"LRZI\0"), "lrunzip", None, ".lrz"),
    _packed(
        "compress",
        "compressed (compress, .Z)",
        _at_start(b"\x1f\x9d"),
        "uncompress",
        when.unix_compress,
    ),
    _packed("snappy", "snappy-compressed", _at_start(b"\xff\6\0\0sNaPpY"), "unpack", None, ".sz"),
    _packed(
        "zip",
        "a zip archive",
        _at_start(b"PK\3\4", b"PK\5\6", b"PK\7\x08PK\3\4"),
        "unzip",
        None,
        ".zip",
    ),
    _packed("7z", "a 7-Zip archive", _at_start(b"7z\xbc\xaf\x27\x1c"), "7z x", None, ".7z"),
    _packed("rar", "a RAR archive", _at_start(b"Rar!\x1a\7"), "unrar x", None, ".rar"),
    _packed("xar", "a xar archive", _at_start(b"xar!\0\x1c"), "unpack", None),
    Signature(
        "ova",
        "an OVA",
        _at_start(b""),
        also=when.ova,
        image=False,
        remedy="tar xf it first: the disks are in it",
        suffixes=(".ova",),
    ),
    _packed("tar", "a tar archive", _at_start(b""), "tar xf", when.tar, ".tar"),
    _packed("cpio", "a cpio archive", _at_start(b"070701", b"070702", b"070707"), "unpack"),
)

_OTHERS: Final = (
    Signature(
        "iso9660",
        "an ISO 9660 image, of a CD",
        ((32769, b"CD001"),),
        also=when.iso_9660,
        image=False,
        remedy=_AS_A_DISK,
    ),
    Signature(
        "squashfs",
        "a squashfs image",
        _at_start(b"hsqs", b"sqsh"),
        also=when.not_a_device,
        image=False,
        remedy=_AS_A_DISK,
    ),
    Signature(
        "erofs",
        "an EROFS image",
        ((1024, b"\xe2\xe1\xf5\xe0"),),
        also=when.bare_file_system,
        image=False,
        remedy=_AS_A_DISK,
    ),
    Signature(
        "lfs",
        "a pointer of Git LFS, not the file itself",
        _at_start(b"version https://git-lfs.github.com/spec/"),
        image=False,
        remedy="git lfs pull fetches that",
    ),
    Signature(
        "html",
        "an HTML page, not a disk",
        _at_start(b""),
        also=when.text_of_html,
        image=False,
        remedy="perhaps what a web server said instead of sending one",
    ),
    Signature(
        "xml",
        "an XML document, not a disk",
        _at_start(b"<?xml", b"\xef\xbb\xbf<?xml"),
        image=False,
        remedy="perhaps it describes one that lies beside it",
    ),
    Signature(
        "luks",
        "a disk encrypted with LUKS",
        _at_start(b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2"),
        image=False,
        remedy="it is taken as raw, encrypted as it is",
        raw=True,
    ),
)

SIGNATURES: Final = (*_IMAGES, *_FORENSIC, *_PACKED, *_OTHERS)
"""In the order in which they are asked."""


def what_it_says_it_is(sample: Sample) -> Signature | None:
    """The first format that a file shows itself to be of; None for a raw disk, as far as is known.

    Args:
        sample: of the file.
    """
    for signature in SIGNATURES:
        if signature.matches(sample):
            return signature
    return None


def suffix_owner(path: str) -> Signature | None:
    """The format that a file's name promises, by its suffix; None where any content will do."""
    suffix = os.path.splitext(path)[1].lower()
    for signature in SIGNATURES:
        if suffix and suffix in signature.suffixes:
            return signature
    return None


def is_part_of_image(path: str) -> bool:
    """Whether a file is called as those parts of an image are that hold a plain disk."""
    owner = suffix_owner(path)
    return bool(owner and owner.plain_names and re.search(owner.plain_names, path.lower()))
