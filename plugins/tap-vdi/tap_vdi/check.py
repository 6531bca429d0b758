"""Checking and repairing the block map.

What nothing lies in any more is given back by moving the last blocks there, and cutting the file:
so does VirtualBox compact an image. Blocks that have become holes of the file are dropped besides.
"""

from __future__ import annotations

from tap_vdi.blockmap import places_there, stored_blocks
from tap_vdi.header import FIXED
from tap_vdi.image import Image, gaps
from tap_vdi.moving import cut, drop, move, record_stored
from tap_vdi.scan import Scan, scan
from tapcore import CheckResult


def check(image: Image, repair: str) -> CheckResult:
    """As `td_check`."""
    found = scan(image.header, image.file)
    result = _result(image, found)
    if repair == "all" and result.corruptions:
        _mend(image, found)
        found = scan(image.header, image.file)
        before, result = result, _result(image, found)
        result.messages = before.messages
        result.corruptions_fixed = before.corruptions - result.corruptions
    if repair:
        _compact(image, found, result)
    return result


def _result(image: Image, found: Scan) -> CheckResult:
    header, file = image.header, image.file
    result = CheckResult(
        corruptions=len(found.astray) + found.lost,
        total_clusters=header.blocks,
        allocated_clusters=found.stored,
        image_end_offset=header.data_at + found.end * header.place_bytes,
        messages=list(found.said),
    )
    if not found.end <= image.recorded <= header.blocks:
        result.corruptions += 1
        result.messages.append(
            f"the header counts {image.recorded} places that are given out, and it must be "
            f"from {found.end} to {header.blocks}: other programs write over blocks, or refuse it"
        )
    there = max(found.end, min(image.recorded, header.blocks), places_there(header, file.size))
    result.leaks = there - found.used.count(1)
    return result


def _mend(image: Image, found: Scan) -> None:
    """Give each block that has none a place of its own, and let the header count right."""
    header, file = image.header, image.file
    free = gaps(found.used, header.blocks)
    moves = [(block, place, next(free)) for block, place in found.astray]
    end = max(found.end, *(target + 1 for _, _, target in moves), 0)
    move(header, file, moves, end)
    if not end <= image.recorded <= header.blocks or moves:
        record_stored(file, end)
        image.recorded = end


def _compact(image: Image, found: Scan, result: CheckResult) -> None:
    """Leave no place that nothing lies in, and no block that holds nothing."""
    header, file = image.header, image.file
    if not found.whole:
        result.messages.append("what nothing refers to was kept: it may belong to what is damaged")
        return
    empty = [] if header.disk_type == FIXED else _empty_blocks(image)
    if not empty and not result.leaks:
        return
    drop(header, file, [block for block, _ in empty])
    for _, place in empty:
        found.used[place] = 0
    stored = found.used.count(1)
    free = gaps(found.used, stored)
    behind = [
        each for each in stored_blocks(header, file.read_metadata, file.size) if each[1] >= stored
    ]
    move(header, file, [(block, place, next(free)) for block, place in behind], found.end)
    cut(header, file, stored)
    image.recorded = stored
    if empty:
        result.messages.append(f"{len(empty)} blocks of zeroes were dropped")
    result.leaks_fixed, result.leaks = result.leaks, 0
    result.allocated_clusters = stored
    result.image_end_offset = header.data_at + stored * header.place_bytes


def _empty_blocks(image: Image) -> list[tuple[int, int]]:
    """Blocks of which all is a hole of the file, each with its place."""
    header, file = image.header, image.file

    def empty(place: int) -> bool:
        runs = file.runs(header.where(place), header.block_size)
        return not any(data for _, _, data in runs)

    return [each for each in stored_blocks(header, file.read_metadata, file.size) if empty(each[1])]
