"""Recognising what a file holds, for people at a prompt.

The drivers are asked first. What none of them knows is a raw disk, unless it says itself that it is
something else, or its name does: then it is refused, with what it is and what to do.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from tapcore.errors import ImageFormatError, TapError, describe, open_error
from tapcore.files.byname import open_host_fd
from tapcore.formats.foreign import Sample, read_sample
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.magic import HEAD_BYTES, TAIL_BYTES
from tapcore.interface.options import DiskId
from tapcore.interface.registry import Registry
from tapcore.opening.names import RAW_HANDLES, RAW_SUFFIXES, has_suffix, raw_handle

if TYPE_CHECKING:
    from tapcore.formats.foreign import Signature

log = logging.getLogger(__name__)


def probe(
    path: str, registry: Registry, bound: BoundFile | None = None, *, expected: str = ""
) -> str:
    """The handle of the driver that recognises a file; the raw one where it is a plain disk.

    Args:
        path: an existing file or block device.
        registry: the drivers to ask.
        bound: the file, where it was found before.
        expected: the code of a raw disk's content that is not warned of.

    Raises:
        ImageFormatError: it is something else than a disk, as far as can be seen; the text says
            what, and what to do.
        TapError: the file cannot be read, or no driver for raw files is installed.
    """
    try:
        fd = open_host_fd(path, os.O_RDONLY, bound)
        try:
            sample = read_sample(fd)
        finally:
            os.close(fd)
        return judge(path, sample, registry, expected)
    except (TapError, OSError) as exc:
        raise open_error(exc, path) from None


def warn_of_broken(found: DiskId, registry: Registry) -> None:
    """A format that nobody recognises is raw, or one whose driver could not be asked.

    Args:
        found: the image, with the handle that probing gave it.
        registry: the drivers that were asked.
    """
    for info in registry.broken() if found.drivertype in RAW_HANDLES else ():
        log.warning(
            "%s: taken as raw, but the driver '%s' could not be asked: %s",
            found.name,
            info.handle,
            info.error,
        )


def judge(path: str, sample: Sample, registry: Registry, expected: str = "") -> str:
    """As `probe`, of a file that was looked at.

    Args:
        path: of the file; its suffix is heard, too.
        sample: what it holds at both ends.
        registry: the drivers to ask.
        expected: as there.
    """
    handle = recognise(path, sample, registry)
    if handle:
        if text := odd_name(path, sample, handle, registry):
            log.warning("%s: %s", path, text)
        return handle
    from tapcore.formats.foreign import what_it_says_it_is

    found = what_it_says_it_is(sample)
    if found is not None and not found.raw:
        raise ImageFormatError(refusal(found, registry))
    text = f"is {found.advice}" if found is not None and found.code != expected else ""
    if text := text or odd_name(path, sample, "", registry):
        log.warning("%s: %s", path, text)
    return raw_handle(registry)


def recognise(name: str, sample: Sample, registry: Registry) -> str:
    """The handle of the first driver that recognises these ends of a file, or "".

    Args:
        name: path of the file.
        sample: what it holds at both ends.
        registry: the drivers to ask.
    """
    head, tail = sample.head[:HEAD_BYTES], sample.tail[-TAIL_BYTES:]
    for info in registry.drivers():
        if recognises(info, name, head, tail):
            return info.handle
    return ""


def recognises(info: DiskInfo, name: str, head: bytes, tail: bytes) -> bool:
    """Whether a file is of a driver's format; the driver is not loaded where its magic tells.

    Args:
        info: the driver's row.
        name: path of the file.
        head: its first bytes.
        tail: its last bytes.
    """
    if info.magic:
        named = has_suffix(name, info.suffixes)
        looked_for = [magic for magic in info.magic if named or not magic.named]
        shown = (magic.sure for magic in looked_for if magic.shown_by(head, tail))
        sure = next(shown, None)  # the first mostly tells: others may be slow expressions
        if sure is None:
            return False
        if sure or any(shown):
            return True
    drv = info.drv
    if drv is None or "td_probe" not in drv.implemented:
        return False
    try:
        return bool(drv.td_probe(name, head, tail))
    except Exception as exc:  # one driver's bug must not keep the others from being asked
        log.warning("the driver %s failed to look at a file: %s", info.handle, describe(exc))
        return False


def refusal(found: Signature, registry: Registry) -> str:
    """Why a file is not opened that no driver recognised, in one line.

    Args:
        found: what it says it is.
        registry: the drivers that were asked.
    """
    if found.handle in registry:
        if found.remedy:
            return f"is {found.name}: {found.remedy}"
        return f"is {found.name} of a kind that the driver '{found.handle}' does not know"
    if found.handle and registry.knows(found.handle):
        try:
            registry.get(found.handle)
        except TapError as exc:
            return f"is {found.name}, and {exc.message}"
    if found.unpacked_by in registry:
        return f"is {found.advice}, or, if a raw disk is in it, write {found.unpacked_by}:PATH"
    return f"is {found.advice}"


# ---- the name ------------------------------------------------------------------------------------


def odd_name(path: str, sample: Sample, handle: str, registry: Registry) -> str:
    """What to say of a file's suffix, where it speaks of another format than the content; or "".

    Args:
        path: of the file.
        sample: what it holds at both ends.
        handle: of the driver that recognised it, "" for none.
        registry: the drivers that were asked.

    Raises:
        ImageFormatError: it is no disk by any sign, and is called like another format: damaged,
            empty, or named wrongly.
    """
    if handle and handle not in RAW_HANDLES and _has_suffix_of(path, handle, registry):
        return ""
    suffix = os.path.splitext(path)[1].lower()
    promised = "" if sample.device else _promised(path, suffix, registry)
    if handle in RAW_HANDLES or not handle:
        return _odd_name_of_raw(promised, sample)
    if suffix in RAW_SUFFIXES and not sample.device:
        promised = "a raw disk"
    if not promised or _may_be_named(path, handle):
        return ""
    return f"is named like {promised}, but holds {handle}; opened as that"


def _has_suffix_of(path: str, handle: str, registry: Registry) -> bool:
    return has_suffix(path, registry.get(handle).suffixes)


def _may_be_named(path: str, handle: str) -> bool:
    """Whether a file's suffix is one of what a format reads packed."""
    from tapcore.formats.foreign import suffix_owner

    owner = suffix_owner(path)
    return owner is not None and owner.unpacked_by == handle


def _odd_name_of_raw(promised: str, sample: Sample) -> str:
    if not promised:
        return ""
    if not sample.size:
        raise ImageFormatError(f"is empty, and so not {promised}, as its name says")
    from tapcore.formats.foreign import plain_disk

    if sign := plain_disk(sample):
        return f"is named like {promised}, but holds {sign}; opened as raw"
    raise ImageFormatError(
        f"is named like {promised}, but does not hold one: it is damaged, or a raw disk, "
        "which its handle has to say (aio:PATH)"
    )


def _promised(path: str, suffix: str, registry: Registry) -> str:
    """What a file's suffix says that it is, with an article; "" where it says nothing."""
    if not suffix or suffix in RAW_SUFFIXES:
        return ""
    from tapcore.formats.foreign import is_part_of_image, suffix_owner

    if is_part_of_image(path):
        return ""
    owner = suffix_owner(path)
    if owner is not None:
        return owner.name
    for info in registry.drivers():
        if has_suffix(path, info.suffixes) and info.handle not in RAW_HANDLES:
            return f"a {info.handle} image"
    return ""
