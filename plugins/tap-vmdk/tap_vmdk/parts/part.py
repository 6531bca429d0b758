"""The parts that a disk consists of: an extent line of the descriptor, open."""

from __future__ import annotations

from typing import Any

import attrs

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.movers import Reader, Writer
from tap_vmdk.sparse.grainmap import GrainMap
from tapcore import ImageFile


@attrs.define(eq=False)
class Part:
    """One extent of a disk, and what reads and writes it.

    Attributes:
        line: as the descriptor has it.
        start: its first sector on the disk.
        reader: reads it.
        writer: writes it, or refuses to.
        file: that it lies in, None where it has none.
        map: of its grains, if that is a sparse file.
        unit: bytes in which it must be written.
        reason: why it cannot be written, where it cannot.
        end: first sector past it.
    """

    line: ExtentLine
    start: int
    reader: Reader
    writer: Writer = attrs.field(factory=Writer)
    file: ImageFile | None = None
    map: GrainMap | None = None
    unit: int = 512
    reason: str = ""
    end: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.end = self.start + self.line.sectors

    @property
    def cluster(self) -> int:
        """Bytes in which space is taken; 0 where that does not matter."""
        return 0 if self.map is None else self.map.layout.grain * 512

    def describe(self) -> dict[str, Any]:
        """For `info`."""
        found = describe_line(self.line)
        return found if self.map is None else {**found, "grain_size": self.cluster}


def describe_line(line: ExtentLine) -> dict[str, Any]:
    """For `info`, of an extent that is not open."""
    found: dict[str, Any] = {
        "type": line.kind,
        "access": line.access,
        "size": line.sectors * 512,
    }
    if line.name:
        found["filename"] = line.name
    return found
