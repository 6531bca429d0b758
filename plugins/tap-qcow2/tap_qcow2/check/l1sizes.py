"""L1 tables that say that they are longer than anything reads, and reach over something else.

What is wrong then is the size: it is set to what the disk needs. Entries behind that are not
touched, as they are something else's bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.snapshottable import ENTRY_L1_SIZE, needed_entries

if TYPE_CHECKING:
    from tap_qcow2.check.walk import Walk
    from tap_qcow2.image import Image


def cut_tables(image: Image, walk: Walk, notes: list[str]) -> bool:
    """Correct the sizes of L1 tables that are too long, in the header and in the snapshot table.

    Args:
        image: open for writing.
        walk: through it, finished.
        notes: gets what is to be said.

    Returns:
        Whether one was.

    Raises:
        OSError: as the system says.
    """
    header = image.header
    needed = image.geometry.l1_entries(header.size)
    some = False
    if needed and _reaches_too_far(image, walk, header.l1_table_offset, header.l1_size, needed):
        header.l1_size = needed
        image.header_writer.write_fields()
        notes.append(f"the L1 table reached over something else: it has {needed} entries now")
        some = True
    place = header.snapshots_offset
    for snapshot in walk.snapshots:
        needed = needed_entries(header, snapshot)
        offset, size = snapshot.l1_offset, snapshot.l1_size
        if needed and _reaches_too_far(image, walk, offset, size, needed):
            image.file.write_metadata(place + ENTRY_L1_SIZE, needed.to_bytes(4, "big"))
            name = snapshot.name[:60]
            notes.append(
                f"the L1 table of snapshot '{name}' reached over something else: "
                f"it has {needed} entries now"
            )
            some = True
        place += snapshot.stored_bytes
    if some:
        image.metadata.flush()
    return some


def _reaches_too_far(image: Image, walk: Walk, offset: int, size: int, needed: int) -> bool:
    bits = image.cluster_bits
    if size <= needed or offset & (image.geometry.cluster_size - 1):
        return False
    if size * 8 > layout.MAX_L1_BYTES or not walk.rules.inside(offset, size * 8):
        return True
    times = next((t.times for t in walk.l1_tables if (t.offset, t.size) == (offset, size)), 1)
    first = ((offset + needed * 8 - 1) >> bits) + 1
    last = (offset + size * 8 - 1) >> bits
    return any(walk.counts.get(cluster) != times for cluster in range(first, last + 1))
