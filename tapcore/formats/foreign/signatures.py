"""The table: how each format shows itself, what it is called, and what to do with such a file.

From the formats' own specifications. Trailers stand first: what lies before them is content.
"""

from __future__ import annotations

import os
import re
from typing import Final

from tapcore.formats.foreign import packing
from tapcore.formats.foreign import wellformed as when
from tapcore.formats.foreign.archives import PACKED
from tapcore.formats.foreign.sample import Sample
from tapcore.formats.foreign.signature import Signature, at_start

_QEMU_IMG: Final = "qemu-img can convert it"
_AS_A_DISK: Final = "with the handle 'aio:' it is a raw disk"


_IMAGES: Final = (
    Signature(
        "vhd",
        "a VHD image",
        ((-512, b"conectix"), (-511, b"conectix")),
        also=when.vhd_footer,
        remedy="the drivers are not shown its end: its handle has to say so (vhd:PATH)",
        handle="vhd",
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
        "dmg-encrypted",
        "an encrypted Apple disk image (DMG)",
        ((0, b"encrcdsa"), (-8, b"cdsaencr")),
        also=when.encrypted_dmg,
        remedy="hdiutil of macOS can convert it",
    ),
    Signature(
        "qcow2",
        "a qcow2 image",
        at_start(b"QFI\xfb"),
        also=when.known_qcow2,
        handle="qcow2",
        suffixes=(".qcow2",),
    ),
    Signature(
        "qcow",
        "a qcow image",
        at_start(b"QFI\xfb"),
        also=when.known_qcow,
        handle="qcow",
        suffixes=(".qcow",),
    ),
    Signature(
        "qcow-unknown",
        "a qcow image of an unknown version",
        at_start(b"QFI\xfb"),
        when.unknown_qcow,
    ),
    Signature(
        "vmdk",
        "a VMDK image",
        at_start(b"KDMV", b"COWD"),
        handle="vmdk",
        suffixes=(".vmdk",),
        plain_names=r"-(flat|f\d{3,}|rdm|rdmp)\.vmdk$",
    ),
    Signature(
        "vmdk",
        "a VMDK image",
        at_start(b"\xbe\xba\xfe\xca\0\0\0\0"),
        also=when.sesparse,
        handle="vmdk",
    ),
    Signature("vmdk", "a VMDK image", at_start(b""), also=when.vmdk_text, handle="vmdk"),
    Signature(
        "vhd",
        "a VHD image",
        at_start(b"conectix"),
        handle="vhd",
        names_file=when.vhd_names_parent,
    ),
    Signature(
        "vhdx",
        "a VHDX image",
        at_start(b"vhdxfile"),
        handle="vhdx",
        suffixes=(".vhdx", ".avhdx"),
    ),
    Signature(
        "vdi",
        "a VDI image",
        ((0x40, b"\x7f\x10\xda\xbe"),),
        handle="vdi",
        suffixes=(".vdi",),
    ),
    Signature(
        "qed",
        "a QED image",
        at_start(b"QED\0"),
        remedy=_QEMU_IMG,
        suffixes=(".qed",),
        names_file=when.qed_names_parent,
    ),
    Signature(
        "parallels",
        "a Parallels image",
        at_start(b"WithoutFreeSpace", b"WithouFreSpacExt"),
        remedy=_QEMU_IMG,
    ),
    Signature("bochs", "a Bochs image", at_start(b"Bochs Virtual HD Image"), remedy=_QEMU_IMG),
    Signature(
        "cloop",
        "a compressed loop image (cloop)",
        at_start(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
        remedy=_QEMU_IMG,
    ),
    Signature(
        "cow",
        "a User Mode Linux COW image",
        at_start(b"OOOM\0\0\0", b"MOOO\1\0\0\0"),
        names_file=when.uml_cow_names_parent,
    ),
    Signature(
        "asif",
        "an Apple sparse image (ASIF)",
        at_start(b"shdw"),
        remedy="diskutil of macOS can convert it",
    ),
    Signature(
        "sparseimage",
        "an Apple sparse image",
        at_start(b"sprs"),
        remedy="hdiutil of macOS can convert it",
        suffixes=(".sparseimage",),
    ),
    Signature(
        "android-sparse",
        "an Android sparse image",
        at_start(b"\x3a\xff\x26\xed"),
        remedy="simg2img makes a raw disk of it",
    ),
    Signature(
        "cd-sectors",
        "a CD image with raw sectors of 2352 bytes",
        at_start(b"\0" + b"\xff" * 10 + b"\0"),
        remedy="bchunk makes an ISO of it",
    ),
    Signature(
        "wim",
        "a Windows image (WIM)",
        at_start(b"MSWIM\0\0\0", b"WLPWM\0\0\0"),
        remedy="wimlib can unpack it",
        suffixes=(".wim", ".esd"),
    ),
    Signature(
        "partclone",
        "a partclone image",
        at_start(b"partclone-image"),
        remedy="partclone.restore makes a raw disk of it",
    ),
    Signature(
        "partimage",
        "a Partimage image",
        at_start(b"PaRtImAgE-VoLuMe"),
        remedy="partimage makes a raw disk of it",
    ),
)

_FORENSIC: Final = (
    Signature(
        "ewf",
        "an EnCase image (EWF)",
        at_start(
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
        at_start(b"AFF10\r\n\0", b"AFF10\n\0"),
        remedy="affconvert makes a raw disk of it",
        suffixes=(".aff",),
    ),
    Signature("aff4", "an AFF4 image", at_start(b"PK\3\4"), also=packing.aff4, suffixes=(".aff4",)),
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
        at_start(b"hsqs", b"sqsh", b"shsq", b"qshs"),
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
        at_start(b"version https://git-lfs.github.com/spec/"),
        image=False,
        remedy="git lfs pull fetches that",
    ),
    Signature(
        "html",
        "an HTML page, not a disk",
        at_start(b""),
        also=when.text_of_html,
        image=False,
        remedy="perhaps what a web server said instead of sending one",
    ),
    Signature(
        "xml",
        "an XML document, not a disk",
        at_start(b"<?xml", b"\xef\xbb\xbf<?xml"),
        image=False,
        remedy="perhaps it describes one that lies beside it",
    ),
    Signature(
        "luks",
        "a disk encrypted with LUKS",
        at_start(b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2"),
        image=False,
        remedy="it is taken as raw, encrypted as it is",
        raw=True,
    ),
)

SIGNATURES: Final = (*_IMAGES, *_FORENSIC, *PACKED, *_OTHERS)
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
