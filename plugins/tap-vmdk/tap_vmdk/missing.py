"""Grains that lie past the end of their file: somebody cut it, or it never grew so far."""

from __future__ import annotations

from collections.abc import Iterator

from tap_vmdk.grains import DAMAGED_TABLE, GrainMap


def why_damaged(map: GrainMap, at: int) -> tuple[str, bool]:
    """Of a sector (of the file's disk) that `GrainMap.run` calls damaged.

    Returns:
        The reason, and whether it is that the file is too short.
    """
    if map.why_damaged:
        return map.why_damaged, True
    table = map.damaged.get(at >> map.table_shift)
    if table is None:
        return DAMAGED_TABLE, False
    place = table[(at >> map.grain_shift) & map.entry_mask]
    if place < map.layout.first_grain:
        return f"has an impossible entry ({place}) in a grain table", False
    return f"its grain, at sector {place} of the file, lies past the end of the file", True


def tables_with_something(map: GrainMap) -> Iterator[tuple[int, int]]:
    """The numbers and places of the tables that may have entries; those in holes of the file are
    passed over, so that time follows what the file really holds."""
    index, count = 0, len(map.directory)
    while index < count:
        if empty := map.empty_tables(index, count):
            index += empty
            continue
        if map.table_at(map.directory[index]):
            yield index, map.directory[index]
        index += 1


def lost_grains(map: GrainMap) -> Iterator[tuple[int, int]]:
    """Grains that lie past the end of the file as it was opened, by the tables in it.

    Those that lie further than all of the disk would reach are left out: nothing ever was there,
    nor will be.

    Yields:
        The first sector of a grain on the file's disk, and its place in the file.

    Raises:
        OSError: a table cannot be read.
    """
    layout = map.layout
    likely = (map.file.size >> 9) + 2 * layout.capacity + 2048
    for index, where in tables_with_something(map):
        table = layout.decode_table(map.file.read_metadata(where * 512, layout.table_bytes))
        last = max(table)
        if last < layout.first_grain or map.place_possible(last):
            continue
        for number, place in enumerate(table):
            if layout.first_grain <= place <= likely and not map.place_possible(place):
                yield (index << map.table_shift) + (number << map.grain_shift), place
