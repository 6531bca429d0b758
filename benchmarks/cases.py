"""The kinds of disks that are measured, and what is done with each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import images
from images import Maker
from lineup import Kind
from workloads import Row

Load = tuple[str, str, int, int] | tuple[str, str, int, int, int]
"""Size of a request, fio's word, depth, connections; behind how many writes a flush comes."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of disk.

    Attributes:
        name: in the tables.
        kind: as its servers are told.
        make: gives its image.
        loads: what is done with it.
        fresh: each turn gets a new image, which is written once from start to end.
        judged: the CPU time of a request is judged, and not only shown.
        where: the folder of its images; None: the run's.
    """

    name: str
    kind: Kind
    make: Maker
    loads: tuple[Load, ...]
    fresh: bool = False
    judged: bool = False
    where: Path | None = None

    def rows(self) -> list[Row]:
        """In the order of the table."""
        return [self._row(*load) for load in self.loads]

    def _row(self, bs: str, rw: str, depth: int, connections: int, flush: int = 0) -> Row:
        target = self._target(depth) if self.judged and not flush else None
        return Row(self.name, bs, rw, depth, connections, flush, target)

    @staticmethod
    def _target(depth: int) -> float:
        """Half of the best peer's CPU time; at depth 1, where both mostly wait, a little more.

        Where each waits for the disk, as long as that takes, only the speed is judged.
        """
        return 0.7 if depth == 1 else 0.5


def _small(*kinds: str) -> tuple[Load, ...]:
    depths = ((1, 1), (8, 1), (32, 1), (128, 1), (8, 4))
    return tuple(("4k", rw, depth, many) for rw in kinds for depth, many in depths)


_LARGE_READS: tuple[Load, ...] = (("64k", "randread", 16, 1), ("1m", "read", 8, 1))
_LARGE: tuple[Load, ...] = (
    ("64k", "randread", 16, 1),
    ("64k", "randwrite", 16, 1),
    ("1m", "read", 8, 1),
    ("1m", "write", 8, 1),
)
_FLUSHED: Load = ("4k", "randwrite", 32, 1, 32)
_ALL = (*_small("randread", "randwrite", "randrw"), *_LARGE, _FLUSHED)
_READS = (*_small("randread"), *_LARGE_READS)
_FEW: tuple[Load, ...] = (("4k", "randread", 32, 1), ("4k", "randwrite", 32, 1), *_LARGE)
_FILLING: tuple[Load, ...] = (
    ("4k", "write", 32, 1),
    ("64k", "write", 16, 1),
    ("1m", "write", 8, 1),
)

CASES = [
    Case("raw", Kind("aio", "raw"), images.raw, _ALL, judged=True),
    Case("direct", Kind("aio", "raw", direct=True), images.raw, _ALL, judged=True),
    Case("ram", Kind("ram", "raw", memory=True), images.raw, _ALL, where=Path("/dev/shm")),
    Case("qcow2", Kind("qcow2", "qcow2"), images.full("qcow2"), _ALL, judged=True),
    Case("qcow2-new", Kind("qcow2", "qcow2"), images.empty("qcow2"), _FILLING, True, judged=True),
    Case("qcow2-chain4", Kind("qcow2", "qcow2"), images.chain(4), _READS, judged=True),
    Case("qcow2-packed", Kind("qcow2", "qcow2"), images.packed, _READS, judged=True),
    Case("vmdk", Kind("vmdk", "vmdk"), images.full("vmdk"), _ALL),
    Case("vhdx", Kind("vhdx", "vhdx"), images.full("vhdx"), _FEW),
    Case("vhd", Kind("vhd", "vpc"), images.full("vpc"), _FEW),
    Case("vdi", Kind("vdi", "vdi"), images.full("vdi"), _FEW),
]

QUICK = {
    "raw-4k-randread-qd1",
    "raw-4k-randwrite-qd1",
    "raw-4k-randread-qd32",
    "raw-4k-randwrite-qd32",
    "raw-4k-randwrite-qd32-flush32",
    "raw-4k-randrw-qd8x4",
    "raw-64k-randread-qd16",
    "raw-64k-randwrite-qd16",
    "raw-1m-read-qd8",
    "raw-1m-write-qd8",
    "direct-4k-randread-qd32",
    "ram-4k-randread-qd32",
    "qcow2-4k-randread-qd1",
    "qcow2-4k-randread-qd32",
    "qcow2-4k-randwrite-qd32",
    "qcow2-new-64k-write-qd16",
    "qcow2-chain4-4k-randread-qd32",
    "qcow2-packed-1m-read-qd8",
    "vmdk-4k-randrw-qd32",
}
"""The rows of `--quick`: a few of each kind."""
