"""Refcounts and COPIED flags as the references demand, written where they are.

Refcounts go up before anything that they count is pointed to, and down at the very end.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from tap_qcow2.ondisk.refcountblock import RefcountBlock
from tap_qcow2.tables.copiedflags import set_flags, write_changed

if TYPE_CHECKING:
    from tap_qcow2.check.analysis import Analysis
    from tap_qcow2.check.walk import Walk
    from tap_qcow2.image import Image

Way: TypeAlias = Literal["up", "down", "exact"]


def write_refcounts(image: Image, analysis: Analysis, way: Way) -> None:
    """Change refcounts in place that are not what was counted, and wait for the disk.

    Args:
        image: open for writing.
        analysis: of it.
        way: only those that have to go "up", or "down"; "exact": all.

    Raises:
        OSError: as the system says.
    """
    counts, comparison = analysis.walk.counts, analysis.comparison
    bits = image.refcounts.per_block_bits
    pages = counts.by_block(bits)
    for number in sorted(comparison.wrong | comparison.stale):
        offset = comparison.blocks[number] if number < len(comparison.blocks) else 0
        if not offset or counts.get(offset >> image.cluster_bits) != 1:
            continue
        content = image.file.read_metadata(offset, image.geometry.cluster_size)
        right = counts.block(number, bits, image.refcounts.order, pages.get(number, []))
        if way != "exact":
            right = _chosen(image.refcounts.order, content, right, max if way == "up" else min)
        write_changed(image.file, offset, content, right)
    image.metadata.flush()


_PIECE: Final = 512
"""Bytes of a refcount block that are unpacked at once: a block of single bits has 16 Mi counts."""


def _chosen(order: int, stored: bytes, wanted: bytes, choose: Callable[[int, int], int]) -> bytes:
    """A refcount block of which each count is one of two."""
    chosen = bytearray(stored)
    for at in range(0, len(stored), _PIECE):
        a, b = stored[at : at + _PIECE], wanted[at : at + _PIECE]
        if a != b:
            block = RefcountBlock.parse(order, 0, a)
            other = RefcountBlock.parse(order, 0, b).values
            block.values = array(block.values.typecode, map(choose, block.values, other))
            chosen[at : at + _PIECE] = block.serialize()
    return bytes(chosen)


def write_flags(image: Image, walk: Walk) -> None:
    """Let the COPIED flags of the active tables be what the references demand.

    Raises:
        OSError: as the system says.
    """
    low = image.geometry.cluster_size - 1
    active = [offset for offset, uses in walk.l2_tables.items() if uses.active and not offset & low]
    set_flags(image.metadata, walk.rules, sorted(active), walk.counts)
