"""Checking and repairing headers, region tables and the block table."""

from __future__ import annotations

import attrs

from tap_vhdx.image import Image
from tap_vhdx.moving import close_gaps, drop, length_of, move
from tap_vhdx.regions import TABLES_AT
from tap_vhdx.survey import BLOCK, Survey, survey, unpacked
from tapcore import CheckResult


def check(image: Image, repair: str) -> CheckResult:
    """As `td_check`."""
    found = survey(image.pages)
    result = _result(image, found)
    if image.layout.overlay.starts:
        result.messages.append("its log has changes that are not in their place yet")
    if repair == "all" and result.corruptions:
        _mend(image, found)
        found = survey(image.pages)
        before, result = result, _result(image, found)
        result.messages = before.messages
        result.corruptions_fixed = before.corruptions - result.corruptions
    if repair:
        _compact(image, found, result)
    return result


def _damage(image: Image) -> list[str]:
    layout = image.layout
    return [f"its {each}" for each in (layout.headers.damage, layout.regions.damage) if each]


def _result(image: Image, found: Survey) -> CheckResult:
    block, damage = image.layout.disk.block_size, _damage(image)
    return CheckResult(
        corruptions=len(found.astray) + found.lost + len(damage),
        leaks=0 if image.layout.disk.fixed else _leaks(found, block),
        total_clusters=image.layout.disk.blocks,
        allocated_clusters=found.stored,
        image_end_offset=found.last,
        messages=[*damage, *found.said],
    )


def _leaks(found: Survey, block: int) -> int:
    """Blocks that there would be room for, or part of one at the end; smaller gaps are usual."""
    inside = sum(length // block for at, length in found.gaps if at < found.last)
    return inside - (found.last - found.end) // block


def _mend(image: Image, found: Survey) -> None:
    """Write what is damaged again, and give each block that has none a place of its own."""
    layout = image.layout
    if layout.regions.damage:
        table = layout.regions.pack()
        image.log.commit([(at, table) for at in TABLES_AT], content=False)
        layout.regions = attrs.evolve(layout.regions, damage="")
    image.log.begin(content=False)  # both headers are written again
    end, moves = found.end, []
    for used in found.astray:
        moves.append((used, end))
        end += length_of(image, used)
    move(image, moves)
    image.log.end()


def _compact(image: Image, found: Survey, result: CheckResult) -> None:
    """Leave no place that nothing lies in, and no block that holds nothing."""
    if image.layout.disk.fixed:
        return
    if not found.whole:
        result.messages.append("what nothing refers to was kept: it may belong to what is damaged")
        return
    empty = _empty_blocks(image, found)
    if not empty and not result.leaks:
        return
    drop(image, empty)
    close_gaps(image)
    if empty:
        result.messages.append(f"{len(empty)} blocks of zeroes were dropped")
    after = _result(image, survey(image.pages))
    result.leaks_fixed, result.leaks = result.leaks - after.leaks, after.leaks
    result.allocated_clusters = after.allocated_clusters
    result.image_end_offset = after.image_end_offset


def _empty_blocks(image: Image, found: Survey) -> list[int]:
    """Blocks of which all is a hole of the file."""
    block, file = image.layout.disk.block_size, image.file
    if image.differs:
        return []

    def empty(used: int) -> bool:
        place, _, kind = unpacked(used)
        return kind == BLOCK and not any(data for _, _, data in file.runs(place, block))

    return [used for used in found.used if empty(used)]
