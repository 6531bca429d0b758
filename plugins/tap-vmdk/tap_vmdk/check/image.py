"""Checking and repairing: the tables of sparse files, and the descriptor against its extents."""

from __future__ import annotations

import os

import attrs

from tap_vmdk.check.file import FileCheck
from tap_vmdk.check.repair import carry_out
from tap_vmdk.descriptor.disktypes import own_sectors
from tap_vmdk.descriptor.place import NOT_NAMED, name_in_header, place_in
from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.identity import extent_lines, stands_alone
from tap_vmdk.image import Image
from tap_vmdk.openimage import open_extent
from tap_vmdk.parts.part import Part
from tap_vmdk.sparse.header import FLAG_NEWLINE, NEWLINES
from tap_vmdk.sparse.writable import WritableGrainMap
from tapcore import (
    CheckResult,
    DiskDriver,
    ImageFormatError,
    NotSupportedError,
    TapError,
    describe_error,
)


def check(dd: DiskDriver, repair: str) -> CheckResult:
    """As `td_check`."""
    image: Image = dd.private
    result = CheckResult()
    if image.descriptor is not None and image.place is None:
        _name_descriptor(image, result, repair)
    if not image.parts:
        _open_extents(dd, image, result)
    checks = [_check_part(image, part, result, repair) for part in list(image.parts)]
    done = [check for check in checks if check is not None]
    _check_embedded(image, result, repair, hides=any(check.hides for check in done))
    if repair and result.leaks:
        _give_back(image, result, sum(check.hides for check in done))
    return result


def _check_part(image: Image, part: Part, result: CheckResult, repair: str) -> FileCheck | None:
    """Check, and mend, one part; None where it has no tables."""
    if part.map is None:
        if part.file is not None:
            result.image_end_offset = max(result.image_end_offset, part.file.size)
        return None
    check = FileCheck(part.map, has_parent=_has_parent(image))
    found = check.run()
    hides = check.hides
    if repair == "all" and check.plan and isinstance(part.map, WritableGrainMap):
        try:
            part = carry_out(part, part.map, check.plan)
        except NotSupportedError as exc:
            found.messages.append(f"nothing was changed: {exc.message}")
        else:
            _put(image, part)
            assert part.map is not None
            check = FileCheck(part.map, has_parent=_has_parent(image))
            left = check.run()
            left.corruptions_fixed = max(found.corruptions - left.corruptions, 0)
            left.messages = found.messages
            found = left
            check.hides = max(hides, 1)  # in doubt: it was damaged a moment ago
    _add(result, found)
    return check


def _put(image: Image, part: Part) -> None:
    """Let a part take the place of the one that has its sectors."""
    image.set_parts([part if each.start == part.start else each for each in image.parts])
    if image.header is not None and isinstance(part.map, WritableGrainMap):
        image.header = part.map.header


def _has_parent(image: Image) -> bool:
    try:
        return image.descriptor is not None and image.descriptor.has_parent
    except ImageFormatError:
        return True  # what it says of one makes no sense


def _give_back(image: Image, result: CheckResult, hides: int) -> None:
    """Free what nothing refers to, unless it may belong to what is damaged."""
    if hides or result.corruptions or result.corruptions_fixed or result.check_errors:
        result.messages.append(
            "what nothing refers to was kept: it may belong to what is, or was, damaged"
        )
        return
    maps = [part.map for part in image.parts if isinstance(part.map, WritableGrainMap)]
    for map in maps:
        check = FileCheck(map)
        found = check.run()
        if found.leaks:
            check.give_back()
            map.tables.forget()
            left = FileCheck(map).run()
            result.leaks += left.leaks - found.leaks
            result.leaks_fixed += found.leaks - left.leaks
            result.image_end_offset = max(left.image_end_offset, 0)
            map.file.make_safe()


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


def _name_descriptor(image: Image, result: CheckResult, repair: str) -> None:
    """A header has to say where its descriptor is: first of all, so that nothing is put there."""
    assert image.header is not None
    result.messages.append(NOT_NAMED)
    if repair != "all":
        result.corruptions += 1
        return
    name_in_header(image.file, image.header)
    image.place = place_in(image.file, image.header)
    result.corruptions_fixed += 1


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


def _check_embedded(image: Image, result: CheckResult, repair: str, *, hides: bool) -> None:
    """A descriptor within a sparse file says how long the disk is, and so does its header.

    Which of the two is right cannot be told where the tables are damaged too.
    """
    header, descriptor = image.header, image.descriptor
    if header is None:
        return
    if header.flags & FLAG_NEWLINE and header.newlines != NEWLINES:
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
    cut = image.place.is_cut()
    if cut:
        result.messages.append(
            "the descriptor is kept as it is: it goes on behind a zero byte, or past its room"
        )
    if repair != "all" or hides or cut:
        result.corruptions += 1
        return
    name = lines[0].name if lines else os.path.basename(image.file.path)
    access = lines[0].access if lines else "RW"
    descriptor.replace_extents([ExtentLine(access, header.capacity, "SPARSE", name)])
    image.place.write(descriptor)
    result.corruptions_fixed += 1
