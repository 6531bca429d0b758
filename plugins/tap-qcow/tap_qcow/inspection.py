"""What the header says of an image, for people: of an open one, and of a file from a stranger."""

from __future__ import annotations

import os
from typing import Any

from tap_qcow.header import Header, read_header
from tap_qcow.layout import COMPRESSED, Geometry
from tap_qcow.tables import L2, l1_of
from tap_qcow.xen import XEN_SPARSE
from tapcore import SECTOR_SHIFT, Finding, Inspection, lost_content

_MOST_TABLES = 16 << 20
"""Bytes of L2 tables that are looked at, and of the L1 table."""


def format_facts(header: Header, *, little: bool) -> dict[str, Any]:
    """The `format` object of `info --json`.

    Args:
        header: of the image.
        little: its L1 table is little-endian.
    """
    facts: dict[str, Any] = {
        "version": 1,
        "cluster_size": header.geometry.cluster_size,
        "l2_entries": header.geometry.entry_mask + 1,
        "encryption": "aes" if header.encrypted else None,
        "backing_file": header.backing_file or None,
    }
    if header.xen is not None:
        facts["xen"] = {
            "sparse": bool(header.xen.flags & XEN_SPARSE),
            "min_cluster_alloc": header.xen.min_cluster_alloc,
            "l1_byte_order": "little" if little else "big",
        }
    return facts


def inspect(fd: int, size: int) -> Inspection:
    """What a file says of itself; reads its header, its parent's name, and what its tables say.

    Args:
        fd: open for reading.
        size: of the file, bytes.

    Raises:
        ImageFormatError: not a qcow image, or one that cannot be true.
        NotSupportedError: of a kind that is not known.
    """
    header = read_header(lambda at, length: os.pread(fd, length, at).ljust(length, b"\0"), size)
    features = []
    findings = []
    if header.xen is not None:
        features.append("Xen extension")
    if header.encrypted:
        features.append("AES encryption")
        text = "its encryption is weak: 128-bit AES with the passphrase as the key, predictable IVs"
        findings.append(Finding("note", text, "weak-encryption"))
    if header.backing_file:
        text = "does not say which format its parent has: that is guessed from the parent's content"
        findings.append(Finding("note", text, "parent-format-guessed"))
    if header.size & 511:
        text = f"its size is not whole sectors ({header.size} bytes)"
        findings.append(Finding("note", text, "odd-size"))
    findings += _losses(fd, header, size)
    return Inspection(
        header.sectors << SECTOR_SHIFT,
        tuple(features),
        (("parent", header.backing_file),) if header.backing_file else (),
        tuple(findings),
    )


def _losses(fd: int, header: Header, size: int) -> list[Finding]:
    """What the tables lead to, and the file is too short for."""
    geometry = header.geometry
    lost = tables = 0
    left = _MOST_TABLES
    length = min(header.l1_bytes, _MOST_TABLES)
    content = os.pread(fd, length, header.l1_offset).ljust(length, b"\0")
    l1 = l1_of(content, header.l1_offset, size)
    for offset in sorted(set(l1.entries) - {0}):
        if offset + geometry.table_bytes > size:
            tables += 1
        elif left >= geometry.table_bytes:
            left -= geometry.table_bytes
            content = os.pread(fd, geometry.table_bytes, offset)
            entries = L2.decode(content.ljust(geometry.table_bytes, b"\0"))
            lost += sum(_place(geometry, entry) >= size for entry in entries)
    return lost_content("L2 table", tables, "what they map is lost") + lost_content(
        "cluster", lost, "their content is lost", least=left < geometry.table_bytes
    )


def _place(geometry: Geometry, entry: int) -> int:
    return geometry.compressed(entry)[0] if entry & COMPRESSED else entry
