"""What an image says of itself, for `info`."""

from __future__ import annotations

import itertools
from typing import Any, Final

from tap_vmdk.descriptor.disktypes import SPARSE_KINDS
from tap_vmdk.facts import Facts
from tap_vmdk.identity import extent_lines, is_own_name, name_on_disk, stands_alone
from tap_vmdk.sparse.header import FLAG_ZEROED
from tapcore import DiskDriver, TapError

_TRIED: Final = 8
"""Extents that are opened to learn how large the grains are."""


def describe(dd: DiskDriver) -> dict[str, Any]:
    """The `format` object of `info --json`."""
    image: Facts = dd.private
    descriptor, header = image.descriptor, image.header
    found: dict[str, Any] = {
        "subformat": image.subformat,
        "grain_size": _grain_size(dd, image),
        "cid": None,
        "parent_cid": None,
        "extents": _extents(image),
    }
    if descriptor is not None:
        found["cid"] = f"{descriptor.cid:08x}" if descriptor.has_cid else None
        found["parent_cid"] = f"{descriptor.parent_cid:08x}"
        for key, entry in (
            ("adapter_type", "ddb.adapterType"),
            ("hwversion", "ddb.virtualHWVersion"),
        ):
            found[key] = _printable(descriptor.get(entry))
    if header is not None:
        found["version"] = header.version
        found["compressed"] = header.compressed
        found["zeroed_grain"] = bool(header.flags & FLAG_ZEROED)
        found["unclean_shutdown"] = bool(header.unclean)
    return found


def _grain_size(dd: DiskDriver, image: Facts) -> int | None:
    """Bytes; None where nothing is stored in grains, or no extent is there to say it."""
    if image.parts:
        return max((part.cluster for part in image.parts if part.cluster), default=None)
    from tap_vmdk.image import Image
    from tap_vmdk.openimage import open_extent

    assert isinstance(image, Image)  # of those that are only looked at all parts are known
    sparse_lines = (line for line in extent_lines(image) if line.kind in SPARSE_KINDS)
    for line in itertools.islice(sparse_lines, _TRIED):
        try:
            return open_extent(dd, image, line, 0).cluster
        except (TapError, OSError):  # what is wrong with it is not the question here
            continue
    return None


def _extents(image: Facts) -> list[dict[str, Any]]:
    descriptor = image.descriptor
    found = [part.describe() for part in image.parts]
    if not found and descriptor is not None:
        found = [line.describe() for line in extent_lines(image)]
    for each in found:
        if descriptor is not None and "filename" in each:
            each["filename"] = _printable(descriptor.meant(each["filename"]))
    return found


def other_files(image: Facts) -> list[str]:
    """As `td_other_files`."""
    if stands_alone(image):
        return []
    names = (name_on_disk(image, line.name) for line in extent_lines(image) if line.name)
    own = image.file.path if image.header is not None else ""
    return [name for name in dict.fromkeys(names) if not is_own_name(name, own)]


def _printable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
