"""The partitions of a disk, for a person and for a program."""

from __future__ import annotations

from collections.abc import Sequence

from tapcore.cli.output import table_lines
from tapcore.errors import printable
from tapcore.sizes import format_size
from tapcore.tools.filesystems import Volume


def volume_lines(volumes: Sequence[Volume]) -> list[str]:
    """A table, or one line where there are none."""
    if not volumes:
        return ["partitions:   none"]
    rows = [
        (str(each.number), format_size(each.size), each.format or "-", printable(each.label) or "-")
        for each in volumes
    ]
    table = table_lines(("NUMBER", "SIZE", "FORMAT", "LABEL"), rows)
    return ["partitions:", *(f"    {line}" for line in table)]


def volume_as_dict(volume: Volume) -> dict[str, object]:
    """An item of `partitions` of `info --partitions --json`."""
    return {
        "number": volume.number,
        "size": volume.size,
        "format": volume.format or None,
        "label": volume.label or None,
    }
