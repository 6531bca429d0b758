r"""The names by which a differencing image knows its parent, and what they are on this system.

An image keeps a name for each platform: relative to itself (`W2ru`, ".\base.vhd"), absolute
(`W2ku`, "C:\vm\base.vhd") and a URL (`MacX`). Those of Windows are UTF-16, little-endian.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from tap_vhd.footers import ReadAt
from tap_vhd.header import Header
from tapcore import UsageError, for_windows, from_windows

RELATIVE: Final = b"W2ru"
ABSOLUTE: Final = b"W2ku"
URL: Final = b"MacX"
ORDER: Final = (RELATIVE, URL, ABSOLUTE, b"Wi2r", b"Wi2k")
"""Of the platforms' names the first that there is says where the parent is."""

NAME_BYTES: Final = 512
"""Of the name in the header itself."""
MOST_BYTES: Final = 64 << 10


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
    yield from_windows(_text(header.parent_name, "utf-16-be"))


def _decode(platform: bytes, content: bytes) -> str:
    if platform == URL:
        url = content.split(b"\0")[0].decode("utf-8", "replace")
        return unquote(url.removeprefix("file://").removeprefix("localhost"))
    if platform in (RELATIVE, ABSOLUTE):
        return from_windows(_text(content, "utf-16-le"))
    return from_windows(content.split(b"\0")[0].decode("ascii", "replace"))


def _text(content: bytes, coding: str) -> str:
    """Up to the first NUL. A byte order mark goes before the order that was to be expected."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        coding = "utf-16"
    elif coding == "utf-16-be" and content[1:2] == b"\0":
        coding = "utf-16-le"  # as some write it, of names that begin with a letter of ASCII
    return content[: len(content) & ~1].decode(coding, "replace").split("\0")[0]


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
    relative = for_windows(name, "VHD")
    absolute = for_windows(os.path.normpath(os.path.join(folder, name)), "VHD")
    found = [(ABSOLUTE, absolute.encode("utf-16-le"))]
    if not os.path.isabs(name):
        found.insert(0, (RELATIVE, f".\\{relative}".encode("utf-16-le")))
    in_header = os.path.basename(name).encode("utf-16-be")
    if len(in_header) > NAME_BYTES:
        raise UsageError("the name of its parent is too long for a VHD")
    return found, in_header
