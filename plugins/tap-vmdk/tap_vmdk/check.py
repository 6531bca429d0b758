"""Checking and repairing: the tables of sparse files, and the descriptor against its extents."""

from __future__ import annotations

import os

import attrs

from tap_vmdk import sparse
from tap_vmdk.checkpart import PartCheck
from tap_vmdk.descriptor import ExtentLine
from tap_vmdk.grainwrite import WritablePart
from tap_vmdk.image import Image
from tap_vmdk.kinds import own_sectors
from tap_vmdk.opening import extent_lines, open_extent, stands_alone
from tap_vmdk.parts import Part
from tap_vmdk.resize import mend_directories
from tap_vmdk.sparseparts import SparsePart
from tapcore import CheckResult, DiskDriver, ImageFormatError, TapError, describe_error


def check(dd: DiskDriver, repair: str) -> CheckResult:
    """As `td_check`."""
    image: Image = dd.private
    result = CheckResult()
    if not image.parts:
        _open_extents(dd, image, result)
    _check_embedded(image, result, repair)
    for part in list(image.parts):
        if isinstance(part, SparsePart):
            _check_part(image, part, result, repair)
        elif part.file is not None:
            result.image_end_offset = max(result.image_end_offset, part.file.size)
    if repair and image.changed:
        image.flusher.flush_blocking()
    return result


def _check_part(image: Image, part: SparsePart, result: CheckResult, repair: str) -> None:
    if repair and isinstance(part, WritablePart):
        found = PartCheck(part).run()
        if (found.corruptions and repair == "all") or found.leaks:
            image.begin_writing()
            if repair == "all" and not part.map.whole_directories:
                part = _mended(image, part)
            PartCheck(part, repair=repair).run()
            left = PartCheck(part).run()
            left.corruptions_fixed = max(found.corruptions - left.corruptions, 0)
            left.leaks_fixed = max(found.leaks - left.leaks, 0)
            left.messages = found.messages
            found = left
    else:
        found = PartCheck(part).run()
    _add(result, found)


def _mended(image: Image, part: WritablePart) -> WritablePart:
    """The part with a new directory in the place of one that lies outside the file."""
    again = mend_directories(part)
    image.set_parts([again if each is part else each for each in image.parts])
    if image.header is not None:
        image.header = again.header
    return again


def _add(result: CheckResult, found: CheckResult) -> None:
    for field in attrs.fields(CheckResult):
        name = field.name
        if name == "image_end_offset":
            result.image_end_offset = max(result.image_end_offset, found.image_end_offset)
        elif name == "messages":
            result.messages += found.messages
        else:
            setattr(result, name, getattr(result, name) + getattr(found, name))


# ---- the descriptor ------------------------------------------------------------------------------


def _open_extents(dd: DiskDriver, image: Image, result: CheckResult) -> None:
    """Open those that can be opened; what cannot is what the check is about."""
    parts: list[Part] = []
    start = 0
    for line in extent_lines(image):
        try:
            parts.append(open_extent(dd, image, line, start))
        except (TapError, OSError) as exc:
            if isinstance(exc, ImageFormatError):
                result.corruptions += 1
            else:
                result.check_errors += 1
            result.messages.append(f"extent {line.name!r}: {describe_error(exc)}")
        start += line.sectors
    if parts:
        image.set_parts(parts)
        image.sectors = start


def _check_embedded(image: Image, result: CheckResult, repair: str) -> None:
    """A descriptor within a sparse file says how long the disk is, and so does its header."""
    header, descriptor = image.header, image.descriptor
    if header is None:
        return
    if header.flags & sparse.FLAG_NEWLINE and header.newlines != sparse.NEWLINES:
        result.corruptions += 1
        result.messages.append("line ends in the file were changed, as transfers of text do")
    if descriptor is None or image.place is None or not stands_alone(image):
        return
    lines: list[ExtentLine] = []
    try:
        lines = descriptor.extents()
    except ImageFormatError as exc:
        result.messages.append(exc.message)
    else:
        lines = [line for line in lines if line.sectors]
        sectors = sum(line.sectors for line in lines)
        said = own_sectors(descriptor, header.capacity, header.grain)
        if len(lines) == 1 and sectors == said:
            return
        result.messages.append(
            f"the descriptor says {sectors} sectors in {len(lines)} extents, "
            f"and the header {header.capacity}"
        )
    if repair != "all":
        result.corruptions += 1
        return
    name = lines[0].name if lines else os.path.basename(image.file.path)
    access = lines[0].access if lines else "RW"
    image.begin_writing()
    descriptor.replace_extents([ExtentLine(access, header.capacity, "SPARSE", name)])
    image.place.write(descriptor)
    result.corruptions_fixed += 1
