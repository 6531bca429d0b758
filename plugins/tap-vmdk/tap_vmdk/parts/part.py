"""The parts that a disk consists of: an extent line of the descriptor, open."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import attrs

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.sparse.grainmap import GrainMap
from tapcore import DiskDriver, ImageFile
from tapcore.clusters import ClusterMap, Clusters, WritableClusters


@attrs.define(eq=False, slots=False)
class Part:
    """One extent of a disk, and what moves its bytes.

    Attributes:
        dd: the disk.
        line: as the descriptor has it.
        start: its first sector on the disk.
        bytes: where they lie.
        mover: what is made of that to move them.
        file: that it lies in, None where it has none.
        unit: bytes in which it must be written.
        reason: why it cannot be written, where it cannot.
        end: first sector past it.
    """

    dd: DiskDriver
    line: ExtentLine
    start: int
    bytes: ClusterMap
    mover: type[Clusters]
    file: ImageFile | None = None
    unit: int = 512
    reason: str = ""
    end: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.end = self.start + self.line.sectors

    @cached_property
    def clusters(self) -> Clusters:
        """What moves its bytes; made when it is needed, as there may be very many parts."""
        return self.mover(self.dd, self.bytes, self.start)

    @property
    def map(self) -> GrainMap | None:
        """Of its grains, if it lies in a sparse file."""
        return self.bytes if isinstance(self.bytes, GrainMap) else None

    @property
    def writable(self) -> bool:
        """Whether it can be written."""
        return issubclass(self.mover, WritableClusters)

    @property
    def writing(self) -> WritableClusters | None:
        """What moves its bytes, where it can be written."""
        return self.clusters if isinstance(self.clusters, WritableClusters) else None

    @property
    def cluster(self) -> int:
        """Bytes in which space is taken; 0 where that does not matter."""
        return 0 if self.map is None else self.map.layout.grain * 512

    def describe(self) -> dict[str, Any]:
        """For `info`."""
        found = self.line.describe()
        return found if self.map is None else {**found, "grain_size": self.cluster}
