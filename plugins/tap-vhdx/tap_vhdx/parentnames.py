r"""The names by which an image knows its parent, and what they are on this system.

They are names of Windows: relative to the image (`.\base.vhdx`), or with a volume or a drive
(`\\?\C:\vm\base.vhdx`), which mean nothing here: of these the file is looked for beside the image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from tap_vhdx.locator import ABSOLUTE, PATHS, RELATIVE
from tapcore import UsageError, printable

_ELSEWHERE: Final = re.compile(r"[A-Za-z]:|//")


def recorded_names(pairs: Mapping[str, str]) -> list[str]:
    """All names of the parent, as paths of this system; the one to go by first."""
    names = (here(pairs.get(key, "")) for key in PATHS)
    return list(dict.fromkeys(filter(None, names)))


def here(name: str) -> str:
    """A name of Windows as a path of this system."""
    path = name.split("\0")[0].replace("\\", "/")
    if _ELSEWHERE.match(path):
        return path.rsplit("/", 1)[-1]
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


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
        found[RELATIVE] = f".\\{_for_windows(name)}"
    found[ABSOLUTE] = _for_windows(os.path.normpath(os.path.join(folder, name)))
    return found


def _for_windows(name: str) -> str:
    text = f"a VHDX cannot record the name {printable(name)} of its parent"
    if "\\" in name or "\0" in name or _ELSEWHERE.match(name):
        raise UsageError(text)
    try:
        name.encode("utf-16-le")
    except UnicodeEncodeError:
        raise UsageError(f"{text}, which is no Unicode") from None
    return name.replace("/", "\\")
