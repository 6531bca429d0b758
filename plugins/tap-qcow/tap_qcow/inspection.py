"""What the header says of an image, for people: of an open one, and of a file from a stranger."""

from __future__ import annotations

import os
from typing import Any

from tap_qcow.header import XEN_SPARSE, Header, read_header
from tapcore import SECTOR_SHIFT, Finding, Inspection


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
    """What a file says of itself; reads its header and its parent's name.

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
    return Inspection(
        header.sectors << SECTOR_SHIFT,
        tuple(features),
        (("parent", header.backing_file),) if header.backing_file else (),
        tuple(findings),
    )
