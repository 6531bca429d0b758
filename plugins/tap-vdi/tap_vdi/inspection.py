"""What an image says of itself, for people: an open one, and a file from a stranger."""

from __future__ import annotations

import os
from typing import Any

from tap_vdi.blockmap import stored_blocks
from tap_vdi.header import NOTHING, TYPES, Header, ReadAt, read_header
from tap_vdi.image import Image
from tapcore import SECTOR_SHIFT, Finding, Inspection, lost_content


def format_facts(image: Image) -> dict[str, Any]:
    """The `format` object of `info --json`."""
    header = image.header
    facts: dict[str, Any] = {
        "type": TYPES[header.disk_type],
        "version": f"{header.version >> 16}.{header.version & 0xFFFF}",
        "creator": header.text.decode("ascii", "backslashreplace").strip("<> \n"),
        "comment": header.comment.decode("utf-8", "backslashreplace"),
        "uuid": str(header.id),
        "last_change": str(image.modified),
        "block_size": header.block_size,
        "blocks": header.blocks,
        "blocks_stored": image.stored,
    }
    if header.differs:
        facts["parent_uuid"] = str(header.parent)
        facts["parent_last_change"] = str(image.parent_modified)
    return facts


def inspect(fd: int, size: int) -> Inspection:
    """What a file says of itself.

    Args:
        fd: open for reading.
        size: of the file, bytes.

    Raises:
        ImageFormatError: it is no VDI, or one that cannot be true.
        NotSupportedError: of a kind that is not known.
    """

    def read(at: int, length: int) -> bytes:
        return os.pread(fd, length, at).ljust(length, b"\0")

    header = read_header(read, size)
    features = (TYPES[header.disk_type], f"blocks of {header.block_size} bytes")
    findings = tuple(_findings(header, read, size))
    return Inspection(header.sectors << SECTOR_SHIFT, features, (), findings)


def _findings(header: Header, read: ReadAt, size: int) -> list[Finding]:
    found = []
    if header.disk_size % (1 << SECTOR_SHIFT):
        text = f"its size is not whole sectors ({header.disk_size} bytes)"
        found.append(Finding("note", text, "odd-size"))
    if header.differs:
        text = f"has a parent, the VDI with the id {header.parent}, and does not say where"
        found.append(Finding("note", text, "parent-not-recorded"))
    elif header.parent != NOTHING:
        text = "names a parent, but is not a differencing image: the parent is not read"
        found.append(Finding("note", text, "corrupt"))
    stored = stored_blocks(header, read, size)
    lost = sum(not header.holds(size, block, place) for block, place in stored)
    return found + lost_content("block", lost, "content is lost", partly=True)
