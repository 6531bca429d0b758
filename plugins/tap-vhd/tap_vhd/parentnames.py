r"""The names by which a differencing image knows its parent, and what they are on this system.

An image keeps a name for each platform: relative to itself (`W2ru`, ".\base.vhd"), absolute
(`W2ku`, "C:\vm\base.vhd") and a URL (`MacX`). Those of Windows are UTF-16, little-endian. A drive
means nothing here: of a name with one the file is looked for beside the image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from tap_vhd.footers import ReadAt
from tap_vhd.header import Header
from tapcore import UsageError, printable

RELATIVE: Final = b"W2ru"
ABSOLUTE: Final = b"W2ku"
URL: Final = b"MacX"
ORDER: Final = (RELATIVE, URL, ABSOLUTE, b"Wi2r", b"Wi2k")
"""Of the platforms' names the first that there is says where the parent is."""

NAME_BYTES: Final = 512
"""Of the name in the header itself."""
MOST_BYTES: Final = 64 << 10

_DRIVE: Final = re.compile(r"[A-Za-z]:|//")


def recorded_names(read: ReadAt, header: Header) -> list[str]:
    """All names of the parent, as paths of this system; the one to go by first.

    Args:
        read: reads the file.
        header: of the image.
    """
    return list(dict.fromkeys(filter(None, _names(read, header))))


def _names(read: ReadAt, header: Header) -> Iterator[str]:
    for platform in ORDER:
        for locator in header.locators:
            if locator.platform == platform:
                content = read(locator.offset, min(locator.length, MOST_BYTES))
                yield _decode(platform, content)
    yield here(_text(header.parent_name, "utf-16-be"))


def _decode(platform: bytes, content: bytes) -> str:
    if platform == URL:
        url = content.split(b"\0")[0].decode("utf-8", "replace")
        return unquote(url.removeprefix("file://").removeprefix("localhost"))
    if platform in (RELATIVE, ABSOLUTE):
        return here(_text(content, "utf-16-le"))
    return here(content.split(b"\0")[0].decode("ascii", "replace"))


def _text(content: bytes, coding: str) -> str:
    """Up to the first NUL. A byte order mark goes before the order that was to be expected."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        coding = "utf-16"
    elif coding == "utf-16-be" and content[1:2] == b"\0":
        coding = "utf-16-le"  # as some write it, of names that begin with a letter of ASCII
    return content[: len(content) & ~1].decode(coding, "replace").split("\0")[0]


def here(name: str) -> str:
    """A name of Windows as a path of this system."""
    path = name.replace("\\", "/")
    if _DRIVE.match(path):
        return path.rsplit("/", 1)[-1]
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def for_windows(name: str) -> str:
    """The opposite.

    Raises:
        UsageError: Windows has no such name.
    """
    if "\\" in name or "\0" in name or _DRIVE.match(name):
        raise UsageError(f"a VHD cannot record the name {printable(name)} of its parent")
    try:
        name.encode("utf-16-le")
    except UnicodeEncodeError:
        text = f"a VHD cannot record the name {printable(name)} of its parent, which is no Unicode"
        raise UsageError(text) from None
    return name.replace("/", "\\")


def names_to_record(name: str, folder: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """What a new image says of its parent.

    Args:
        name: of the parent, relative to the image's directory, or absolute.
        folder: that directory.

    Returns:
        Platforms with their names, and the name in the header.

    Raises:
        UsageError: the format has no way to say it.
    """
    relative = for_windows(name)
    absolute = for_windows(os.path.normpath(os.path.join(folder, name)))
    found = [(ABSOLUTE, absolute.encode("utf-16-le"))]
    if not os.path.isabs(name):
        found.insert(0, (RELATIVE, f".\\{relative}".encode("utf-16-le")))
    in_header = os.path.basename(name).encode("utf-16-be")
    if len(in_header) > NAME_BYTES:
        raise UsageError("the name of its parent is too long for a VHD")
    return found, in_header
