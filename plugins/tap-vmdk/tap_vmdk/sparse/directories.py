"""Grain directories of sparse files: read within bounds, and what their entries tell at once."""

from __future__ import annotations

from array import array
from itertools import islice
from operator import lt
from typing import Final

from tap_vmdk.sparse.layout import Layout
from tapcore import ImageFile

MAX_REPEATS: Final = 64
"""Tables that a directory may name again. None ever should; but what few damaged entries hide is
not all that there is, and what very many claim would be looked at for hours."""
_CHUNK: Final = 4096


def read_directories(file: ImageFile, layout: Layout) -> list[tuple[array[int], str]]:
    """The directories as they are in a file, each with what is wrong with it, if anything.

    Args:
        file: open.
        layout: of it.

    Raises:
        OSError: as the system says.
    """
    found = [_read_directory(file, layout, which) for which in range(len(layout.directories))]
    if len(found) > 1 and not any(fault for _, fault in found):
        (first, _), (other, _) = found
        if any(other) and not any(first):
            found[0] = first, "holds nothing, and the redundant one does"
    return found


def _read_directory(file: ImageFile, layout: Layout, which: int) -> tuple[array[int], str]:
    offset, size = layout.directories[which], layout.directory_bytes
    if not 0 < offset <= file.size - size:
        return array("I"), "lies outside the file"
    directory = layout.decode_directory(file.read_metadata(offset, size))[: layout.tables]
    if repeats(directory) > MAX_REPEATS:
        return directory, "names the same tables over and over"
    return directory, "lies over other metadata" if _lies_over(layout, which) else ""


def _lies_over(layout: Layout, which: int) -> bool:
    """Whether a directory lies over the header, the descriptor, or the one before it."""
    start, end = layout.directory_range(which)
    others = [*layout.reserved, *map(layout.directory_range, range(which))]
    return any(start < other_end and other < end for other, other_end in others)


def repeats(directory: array[int]) -> int:
    """How often a directory names a table again; counted no further than is of interest."""
    if all(map(lt, directory, islice(directory, 1, None))):
        return 0
    parts = len(directory) // (1 << 18) + 1  # so that no set becomes large
    count = 0
    for part in range(parts):
        mine = [place for place in directory if place and place % parts == part]
        count += len(mine) - len(set(mine))
        if count > MAX_REPEATS:
            break
    return count


def without_tables(directory: array[int], index: int, end: int) -> int:
    """How many entries from one on say that there is no table.

    Args:
        directory: entries.
        index: of the first.
        end: of those that are of interest.
    """
    start = index
    while index < end and not directory[index]:
        chunk = directory[index : min(index + _CHUNK, end)].tobytes()
        none = (len(chunk) - len(chunk.lstrip(b"\0"))) // directory.itemsize
        index += none
        if none < len(chunk) // directory.itemsize:
            break
    return index - start


def in_sequence(directory: array[int], index: int, step: int, end: int) -> int:
    """How many tables from one on lie behind each other in the file.

    Args:
        directory: entries.
        index: of the first, which is there.
        step: sectors of a table.
        end: of those that are of interest.
    """
    place, count, ahead = directory[index], 1, 16
    while index + count < end:
        ahead = min(ahead, end - index - count)
        found = directory[index + count : index + count + ahead]
        expected = range(place + count * step, place + (count + ahead) * step, step)
        if expected[-1] < 1 << (8 * directory.itemsize) and found == array(
            directory.typecode, expected
        ):
            count += ahead
            ahead = min(2 * ahead, 1 << 16)
            continue
        pairs = enumerate(zip(found, expected, strict=True))
        return count + next((n for n, (one, other) in pairs if one != other), ahead)
    return count
