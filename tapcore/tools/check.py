"""Checking, and repairing, the consistency of an image's metadata."""

from __future__ import annotations

from typing import Any, Literal

from tapcore.interface.access import Access
from tapcore.interface.results import CheckResult
from tapcore.opening.names import ImageName
from tapcore.tools.openimage import open_image

Repair = Literal["", "leaks", "all"]


def check_image(
    name: ImageName,
    *,
    repair: Repair = "",
    access: Access | None = None,
) -> CheckResult:
    """Check one image; its parents are not opened.

    Args:
        name: `[HANDLE:]PATH`.
        repair: "leaks" gives back what nothing refers to, "all" repairs what it can.
        access: which files it may name, with which keys and drivers; None: the defaults.

    Returns:
        What is wrong and what was repaired; the counts without `_fixed` are what is left.

    Raises:
        TapError: it could not be checked.
    """
    with (
        open_image(
            name,
            writing=bool(repair),
            access=access,
            with_parents=False,
            metadata_only=True,
        ) as disk,
        disk.driver() as dd,
    ):
        dd.drv.require("td_check", dd.name)
        return dd.drv.td_check(dd, repair)


def check_as_dict(result: CheckResult) -> dict[str, Any]:
    """The object of `check --json`."""
    return {
        "leaks": result.leaks,
        "leaks_fixed": result.leaks_fixed,
        "corruptions": result.corruptions,
        "corruptions_fixed": result.corruptions_fixed,
        "check_errors": result.check_errors,
        "total_clusters": result.total_clusters,
        "allocated_clusters": result.allocated_clusters,
        "compressed_clusters": result.compressed_clusters,
        "image_end_offset": result.image_end_offset,
    }


def check_status(result: CheckResult) -> int:
    """The exit status, as `qemu-img check`: 0 clean, 1 not checked, 2 corrupt, 3 only leaks."""
    if result.corruptions:
        return 2
    if result.check_errors:
        return 1
    return 3 if result.leaks else 0
