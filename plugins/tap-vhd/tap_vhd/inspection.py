"""What an image says of itself, for people: an open one, and a file from a stranger."""

from __future__ import annotations

import os
from typing import Any, Final

from tap_vhd.blocks import BlockImage
from tap_vhd.footer import (
    BY_CURRENT_SIZE,
    BY_GEOMETRY,
    DIFFERENCING,
    FIXED,
    TYPES,
    Footer,
)
from tap_vhd.footers import ReadAt, read_footers
from tap_vhd.header import UNUSED, Header, read_header
from tap_vhd.image import Image
from tap_vhd.parentnames import recorded_names
from tapcore import SECTOR_SHIFT, Finding, Inspection, lost_content
from tapcore.clusters import Coding

_MOST_TABLE: Final = 16 << 20
"""Bytes of the block table that are looked at."""


def format_facts(image: Image) -> dict[str, Any]:
    """The `format` object of `info --json`."""
    footer = image.footers.footer
    facts: dict[str, Any] = {
        "type": TYPES[footer.disk_type],
        "creator": _text(footer.creator),
        "creator_version": f"{footer.creator_version:#x}",
        "unique_id": footer.unique_id.hex(),
        "geometry": "/".join(map(str, footer.geometry)),
        "size_by": "geometry" if footer.by_geometry else "current size",
        "current_size": footer.current_size,
        "footer": "at the end" if image.footers.end else "copy at the front",
    }
    if isinstance(image, BlockImage):
        unused = image.blocks.entries.count(UNUSED)
        facts["block_size"] = image.header.block_size
        facts["blocks"] = len(image.blocks.entries)
        facts["blocks_stored"] = len(image.blocks.entries) - unused
        if image.footers.footer.disk_type == DIFFERENCING:
            facts["parent_id"] = image.header.parent_id.hex()
            facts["parent_names"] = image.parents
    return facts


def _text(letters: bytes) -> str:
    return letters.rstrip(b"\0 ").decode("ascii", "backslashreplace")


def inspect(fd: int, size: int) -> Inspection:
    """What a file says of itself.

    Args:
        fd: open for reading.
        size: of the file, bytes.

    Raises:
        ImageFormatError: it is no VHD, or one that cannot be true.
        NotSupportedError: of a kind that is not known.
    """

    def read(at: int, length: int) -> bytes:
        return os.pread(fd, length, at).ljust(length, b"\0")

    footers = read_footers(read, size)
    footer = footers.footer
    findings = []
    if footers.damage:
        code = "not-closed" if not footers.end else "corrupt"
        findings.append(Finding("note", footers.damage, code))
    findings += _sizes(footer)
    if footer.disk_type == FIXED:
        if footer.sectors << SECTOR_SHIFT > footers.at:
            text = "the file is too short for its disk: the rest is lost"
            findings.append(Finding("note", text, "content-lost"))
        return Inspection(footer.sectors << SECTOR_SHIFT, ("fixed",), (), tuple(findings))
    header = read_header(read, footer.data_offset, footer.sectors, size)
    findings += _losses(read, header, footer, footers.at)
    names = recorded_names(read, header) if footer.disk_type == DIFFERENCING else []
    if footer.disk_type == DIFFERENCING and not names:
        text = "has a parent, and does not say where"
        findings.append(Finding("note", text, "parent-not-recorded"))
    return Inspection(
        footer.sectors << SECTOR_SHIFT,
        (TYPES[footer.disk_type], f"blocks of {header.block_size} bytes"),
        tuple(("parent", name) for name in names),
        tuple(findings),
    )


def _sizes(footer: Footer) -> list[Finding]:
    if footer.current_size % (1 << SECTOR_SHIFT):
        text = f"its size is not whole sectors ({footer.current_size} bytes)"
        return [Finding("note", text, "odd-size")]
    less = footer.sectors - footer.geometry_sectors
    if less > 0 and footer.creator not in (*BY_GEOMETRY, *BY_CURRENT_SIZE) and footer.has_geometry:
        text = f"QEMU goes by the geometry, and leaves out the last {less} sectors"
        return [Finding("note", text, "size-by-creator")]
    return []


def _losses(read: ReadAt, header: Header, footer: Footer, end: int) -> list[Finding]:
    """Blocks that the file is too short for."""
    length = min(4 * header.entries_for(footer.sectors), _MOST_TABLE)
    table = Coding("I", "big").decode(read(header.table_offset, length))
    most = (end - header.bitmap_bytes - header.block_size) >> SECTOR_SHIFT
    lost = sum(most < entry != UNUSED for entry in table)
    return lost_content("block", lost, "content is lost", partly=True)
