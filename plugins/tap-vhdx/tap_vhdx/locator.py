"""The parent locator: by which names, and by which id, an image knows its parent.

Source: MS-VHDX 2.6.2.6 (Parent Locator).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from tapcore import ImageFormatError, NotSupportedError

TYPE: Final = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
HEADER: Final = struct.Struct("<16sHH")
ENTRY: Final = struct.Struct("<IIHH")
MOST_PAIRS: Final = 64

LINKAGE: Final = "parent_linkage"
OTHER_LINKAGE: Final = "parent_linkage2"
RELATIVE: Final = "relative_path"
VOLUME: Final = "volume_path"
ABSOLUTE: Final = "absolute_win32_path"
PATHS: Final = (RELATIVE, VOLUME, ABSOLUTE)
"""In the order in which they are to be tried."""


def read_locator(content: bytes) -> dict[str, str]:
    """The pairs of a locator.

    Raises:
        ImageFormatError: it cannot be.
        NotSupportedError: the parent is something else than a VHDX.
    """
    if len(content) < HEADER.size:
        raise ImageFormatError("has a damaged parent locator")
    kind, _, count = HEADER.unpack_from(content)
    if kind != TYPE.bytes_le:
        raise NotSupportedError("has a parent of a kind that is not known here")
    if count > MOST_PAIRS or HEADER.size + count * ENTRY.size > len(content):
        raise ImageFormatError("has a damaged parent locator")
    pairs: dict[str, str] = {}
    for number in range(count):
        key_at, value_at, key_length, value_length = ENTRY.unpack_from(
            content, HEADER.size + number * ENTRY.size
        )
        key = _text(content, key_at, key_length)
        if key in pairs:
            raise ImageFormatError("has a parent locator that says one thing twice")
        pairs[key] = _text(content, value_at, value_length)
    return pairs


def _text(content: bytes, at: int, length: int) -> str:
    if length % 2 or at + length > len(content):
        raise ImageFormatError("has a damaged parent locator")
    return content[at : at + length].decode("utf-16-le", "replace")


def pack_locator(pairs: Mapping[str, str]) -> bytes:
    """A locator that says these pairs."""
    at = HEADER.size + len(pairs) * ENTRY.size
    entries, texts = [], b""
    for key, value in pairs.items():
        names = [key.encode("utf-16-le"), value.encode("utf-16-le")]
        places = (at + len(texts), at + len(texts) + len(names[0]))
        entries.append(ENTRY.pack(*places, len(names[0]), len(names[1])))
        texts += b"".join(names)
    return HEADER.pack(TYPE.bytes_le, 0, len(pairs)) + b"".join(entries) + texts


def linkages(pairs: Mapping[str, str]) -> list[UUID]:
    """The ids of which the parent has one.

    Raises:
        ImageFormatError: there is none.
    """
    found = []
    for key in (LINKAGE, OTHER_LINKAGE):
        with contextlib.suppress(KeyError, ValueError):
            found.append(UUID(pairs[key].strip("{}")))
    found = [each for each in found if each.int]  # Hyper-V has zeroes for the second one
    if not found:
        raise ImageFormatError("has a parent, but does not say which")
    return found
