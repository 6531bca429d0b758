"""What an image says of itself, for people: an open one, and a file from a stranger."""

from __future__ import annotations

import os
from typing import Any

from tap_vhdx.headers import NOTHING, creator_of
from tap_vhdx.image import Image
from tap_vhdx.items import Disk
from tap_vhdx.layout import Layout, read_layout
from tap_vhdx.locator import linkages, read_locator
from tap_vhdx.losses import losses_of
from tap_vhdx.parentnames import recorded_names
from tapcore import SECTOR_SHIFT, Finding, ImageFormatError, Inspection


def kind_of(disk: Disk) -> str:
    """Which of the three it is."""
    if disk.locator is not None:
        return "differencing"
    return "fixed" if disk.fixed else "dynamic"


def format_facts(image: Image) -> dict[str, Any]:
    """The `format` object of `info --json`."""
    layout, disk = image.layout, image.layout.disk
    header = layout.headers.current
    facts: dict[str, Any] = {
        "type": kind_of(disk),
        "creator": creator_of(image.file.read_metadata),
        "block_size": disk.block_size,
        "logical_sector": disk.logical,
        "physical_sector": disk.physical,
        "blocks": disk.blocks,
        "disk_id": str(disk.id),
        "file_write": str(header.file_write),
        "last_change": str(header.data_write),
        "log_size": header.log_length,
        "log": "to be replayed" if layout.overlay.starts else "empty",
    }
    if disk.locator is not None:
        pairs = read_locator(disk.locator)
        facts["parent_last_change"] = str(linkages(pairs)[0])
        facts["parent_names"] = recorded_names(pairs)
    return facts


def inspect(fd: int, size: int) -> Inspection:
    """What a file says of itself.

    Args:
        fd: open for reading.
        size: of the file, bytes.

    Raises:
        ImageFormatError: it is no VHDX, or one that cannot be true.
        NotSupportedError: of a kind that is not known.
    """

    def read(at: int, length: int) -> bytes:
        return os.pread(fd, length, at).ljust(length, b"\0")

    layout = read_layout(read, size)
    disk = layout.disk
    features = (
        kind_of(disk),
        f"blocks of {disk.block_size} bytes",
        f"sectors of {disk.logical} bytes",
    )
    names: list[str] = []
    findings = _findings(layout) + losses_of(read, size, layout)
    if disk.locator is not None:
        names = recorded_names(read_locator(disk.locator))
        if not names:
            text = "has a parent, and does not say where"
            findings.append(Finding("note", text, "parent-not-recorded"))
    parents = tuple(("parent", name) for name in names)
    return Inspection(disk.sectors << SECTOR_SHIFT, features, parents, tuple(findings))


def _findings(layout: Layout) -> list[Finding]:
    found = [
        Finding("note", f"its {damage}", "corrupt")
        for damage in (layout.headers.damage, layout.regions.damage)
        if damage
    ]
    if layout.headers.current.log != NOTHING:
        changes = "changes that are not in their place yet" if layout.overlay.starts else "nothing"
        text = f"was not closed: its log has {changes}"
        found.append(Finding("note", text, "not-closed"))
    if layout.disk.locator is not None:
        try:
            linkages(read_locator(layout.disk.locator))
        except ImageFormatError as exc:
            found.append(Finding("note", exc.message, "corrupt"))
    return found
