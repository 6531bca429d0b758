r"""Names of files as Windows has them, which images of its programs keep of their parents.

A drive or a volume (`C:\vm\base.vhd`, `\\?\C:\vm\base.vhdx`) means nothing here: of a name with
one the file is looked for beside the image.
"""

from __future__ import annotations

import re
from typing import Final

from tapcore.errors import UsageError, printable

_ELSEWHERE: Final = re.compile(r"[A-Za-z]:|//")


def from_windows(name: str) -> str:
    """A name of Windows, up to its first NUL, as a path of this system."""
    path = name.split("\0")[0].replace("\\", "/")
    if _ELSEWHERE.match(path):
        return path.rsplit("/", 1)[-1]
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def for_windows(name: str, kind: str) -> str:
    """The opposite.

    Args:
        name: a path of this system.
        kind: of the image that is to record it, for the message.

    Raises:
        UsageError: Windows has no such name.
    """
    text = f"a {kind} cannot record the name {printable(name)} of its parent"
    if "\\" in name or "\0" in name or _ELSEWHERE.match(name):
        raise UsageError(text)
    try:
        name.encode("utf-16-le")
    except UnicodeEncodeError:
        raise UsageError(f"{text}, which is no Unicode") from None
    return name.replace("/", "\\")
