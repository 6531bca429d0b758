r"""The names by which an image knows its parent: names of Windows, relative to the image
(`.\base.vhdx`), or with a volume or a drive (`\\?\C:\vm\base.vhdx`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tap_vhdx.locator import ABSOLUTE, PATHS, RELATIVE
from tapcore import for_windows, from_windows


def recorded_names(pairs: Mapping[str, str]) -> list[str]:
    """All names of the parent, as paths of this system; the one to go by first."""
    names = (from_windows(pairs.get(key, "")) for key in PATHS)
    return list(dict.fromkeys(filter(None, names)))


def names_to_record(name: str, folder: str) -> dict[str, str]:
    """What a new image says of where its parent is.

    Args:
        name: of the parent, relative to the image's folder, or absolute.
        folder: that folder.

    Raises:
        UsageError: the format has no way to say it.
    """
    found = {}
    if not os.path.isabs(name):
        found[RELATIVE] = f".\\{for_windows(name, 'VHDX')}"
    found[ABSOLUTE] = for_windows(os.path.normpath(os.path.join(folder, name)), "VHDX")
    return found
