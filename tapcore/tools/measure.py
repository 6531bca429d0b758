"""How large a new image would be, without making one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from tapcore.errors import TapError, open_error
from tapcore.interface.access import Access
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.registry import Registry, default_registry
from tapcore.interface.results import Measurement
from tapcore.opening.names import RAW_FORMAT, ImageName, raw_handle
from tapcore.sizes import round_up_to_sector
from tapcore.tools.formatoptions import as_texts, check_options
from tapcore.tools.openimage import open_image


def measure_image(
    source: ImageName,
    handle: str,
    *,
    options: Mapping[str, str | os.PathLike[str]] | None = None,
    snapshot: str = "",
    access: Access | None = None,
) -> Measurement:
    """The bytes that a conversion would need. Looks at extents, not at content.

    Args:
        source: `[HANDLE:]PATH` of the image to be converted.
        handle: of the new image's format.
        options: of the new format (`-o`).
        snapshot: of the source, that would be converted.
        access: which files it may name, with which keys and drivers; None: the defaults.

    Raises:
        TapError: the source cannot be opened, or the format cannot tell.
    """
    access = access or Access()
    values = as_texts(options)
    info = _measuring(handle, values, access.registry)
    with open_image(source, access=access, snapshot=snapshot) as disk:
        data = ((run.start, run.length) for run in disk.extents() if run.kind != "zero")
        return _measure(info, disk.size, values, data)


def measure_size(
    size: int,
    handle: str,
    *,
    options: Mapping[str, str | os.PathLike[str]] | None = None,
    registry: Registry | None = None,
) -> Measurement:
    """The bytes that an empty disk of a size (bytes) would need; else as `measure_image`."""
    values = as_texts(options)
    info = _measuring(handle, values, registry or default_registry())
    return _measure(info, round_up_to_sector(size), values, ())


def measurement_as_dict(found: Measurement) -> dict[str, Any]:
    """The object of `measure --json`; `bitmaps` only where there are some."""
    facts = {"required": found.required, "fully-allocated": found.fully_allocated}
    return facts | ({"bitmaps": found.bitmaps} if found.bitmaps else {})


def _measuring(handle: str, options: Mapping[str, str], registry: Registry) -> DiskInfo:
    handle = raw_handle(registry) if handle == RAW_FORMAT else handle
    info = registry.get(handle)
    registry.operations(handle).require("td_measure", "")
    check_options("", handle, info.create_options, options)
    return info


def _measure(
    info: DiskInfo, size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    assert info.drv is not None
    try:
        return info.drv.td_measure(size, dict(options), data)
    except (TapError, OSError) as exc:
        raise open_error(exc, "") from exc
