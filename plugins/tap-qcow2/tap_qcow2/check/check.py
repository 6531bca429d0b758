"""Check and repair: what `qemu-img check [-r leaks|all]` does.

A check walks through everything that refers to host clusters, compares that with the refcounts, and
looks at the COPIED flags. A repair is made of steps, each crash-safe, with a fresh look in between.
It is rehearsed before it is done: what could be read reads the same afterwards, or nothing changes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from tap_qcow2.check.analysis import Analysis, analyse
from tap_qcow2.check.harm import HarmError, check_kept
from tap_qcow2.check.rehearsal import Rehearsal
from tap_qcow2.check.repair import give_back_leaks, raise_only, repair_all, repair_refcounts
from tap_qcow2.ondisk import layout
from tapcore import CheckResult, ImageOpenError

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tap_qcow2.ondisk.header import Header

_T = TypeVar("_T")


def check(image: Image, repair: str) -> CheckResult:
    """Check an image, and repair it.

    A repair is rehearsed first: it is done only if it comes to an end, and what could be read reads
    the same afterwards. Else less is tried, and in the end nothing is changed.

    Args:
        image: open, for writing where it is to be repaired, with nothing in flight.
        repair: "", "leaks" or "all".

    Raises:
        TapError, OSError: a repair failed in the middle; it can be done again.
    """
    image.clean()
    if not repair:
        return _told(analyse(image))
    result, less = _repaired(image, repair)
    for _ in range(_MOST_REPAIRS):
        if not less:
            break
        before = result
        result, less = _repaired(image, repair)
        result.leaks_fixed += before.leaks_fixed
        result.corruptions_fixed += before.corruptions_fixed
        result.messages = [*before.messages, "once more:", *result.messages]
    return result


def _repaired(image: Image, repair: str) -> tuple[CheckResult, bool]:
    """Repair, as far as that does no harm; and whether only less was done, so that more may be."""
    refused: list[str] = []
    for way in _WAYS[repair]:
        try:
            result, writes = rehearsed(image, partial(_rehearse, way=way))
        except HarmError as exc:
            refused.append(_REFUSED[way].format(exc))
            continue
        result.messages += refused
        return result, bool(refused and writes)
    result = _told(analyse(image))
    result.messages += [*refused, "nothing was changed"]
    return result, False


def _told(found: Analysis) -> CheckResult:
    result = found.report.result
    result.messages = found.report.all_messages()
    return result


def rehearsed(image: Image, act: Callable[[Image, Rehearsal], _T]) -> _T:
    """Do something to an image, if what can be read of it stays as it is.

    Args:
        image: open for writing, with nothing in memory changed.
        act: does it to an image that stands for this one.

    Returns:
        What `act` returned.

    Raises:
        HarmError: it would not stay so; nothing was changed.
        TapError, OSError: as `act`; or it failed in the middle, and the image is given up.
    """
    rehearsal = Rehearsal(image.file)
    image.metadata.forget()  # there may be much of them: not twice
    try:
        trial = image.over(rehearsal)
        try:
            found = act(trial, rehearsal)
        finally:
            trial.tables.release()
        if rehearsal.steps:
            check_kept(image, trial, rehearsal.written)
            _perform(image, rehearsal, trial.header)
    finally:
        rehearsal.forget()
        image.metadata.reload()
    return found


def _perform(image: Image, rehearsal: Rehearsal, header: Header) -> None:
    try:
        rehearsal.perform()
    except BaseException:
        image.header_writer.give_up()  # what is in memory is not what is on disk
        raise
    image.header.become(header)


def _rehearse(image: Image, rehearsal: Rehearsal, *, way: str) -> tuple[CheckResult, int]:
    """Repair an image that stands for the real one; raises HarmError where that makes it worse."""
    first = analyse(image)
    if first.report.result.check_errors:
        result = _told(first)
        result.messages.append("nothing was repaired, since not all could be checked")
        return result, 0
    notes: list[str] = []
    last = _repair(image, rehearsal, first, way, notes)
    if last.report.result.check_errors:
        raise HarmError("then it could not be checked any more")
    if last.report.result.corruptions > first.report.result.corruptions:
        raise HarmError("then more would be wrong than now")
    if not last.report.result.corruptions:
        _mark_clean(image)
    if last is first and not notes:
        return _told(first), rehearsal.writes
    return _after_repair(first, last, notes), rehearsal.writes


def _repair(
    image: Image, rehearsal: Rehearsal, first: Analysis, way: str, notes: list[str]
) -> Analysis:
    """Repair until nothing more is to be done; returns what is found then."""
    last = first
    for _ in range(_MOST_REPAIRS):
        if last.clean and not last.comparison.stale:
            return last
        writes = rehearsal.writes
        for note in _REPAIRS[way](image, last):
            if note not in notes:
                notes.append(note)
        last = analyse(image)
        if rehearsal.writes == writes:
            return last
    raise HarmError("that does not come to an end")


_MOST_REPAIRS: Final = 4

_REPAIRS: Final = {"all": repair_all, "refcounts": raise_only, "leaks": give_back_leaks}

_WAYS: Final = {"all": ("all", "refcounts"), "leaks": ("leaks",)}
"""What is tried, one after the other."""

_REFUSED: Final = {
    "all": "not all of it is repaired: {}",
    "refcounts": "refcounts are not raised: {}",
    "leaks": "leaked clusters are not given back: {}",
}


def _after_repair(first: Analysis, last: Analysis, notes: list[str]) -> CheckResult:
    before, result = first.report.result, last.report.result
    result.leaks_fixed = max(before.leaks - result.leaks, 0)
    result.corruptions_fixed = max(before.corruptions - result.corruptions, 0)
    result.messages = [*first.report.all_messages(), *notes]
    if last.report.messages:
        result.messages += ["after the repair:", *last.report.all_messages()]
    return result


def _mark_clean(image: Image) -> None:
    header = image.header
    if header.dirty or header.corrupt:
        header.incompatible &= ~(layout.INCOMPAT_DIRTY | layout.INCOMPAT_CORRUPT)
        image.header_writer.write_fields()


def repair_dirty(image: Image) -> None:
    """Put refcounts and COPIED flags right after a crash, and clear the dirty bit.

    Args:
        image: open for writing, nothing written yet.

    Raises:
        ImageOpenError: it is damaged in another way too.
        OSError: as the system says.
    """
    try:
        rehearsed(image, _repair_dirty)
    except HarmError:
        raise _damaged_too() from None


def _repair_dirty(image: Image, rehearsal: Rehearsal) -> None:
    found = analyse(image)
    damaged = found.tables_damaged or found.walk.hidden or found.comparison.overflow
    if found.report.result.check_errors or damaged:
        raise _damaged_too()
    repair_refcounts(image, found, [])
    image.header.incompatible &= ~layout.INCOMPAT_DIRTY
    image.header_writer.write_fields()


def _damaged_too() -> ImageOpenError:
    return ImageOpenError(
        "was not closed, and is damaged: check --repair all, or open it read-only",
        errno=errno.EROFS,
    )
