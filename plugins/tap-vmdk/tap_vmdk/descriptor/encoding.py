"""The encodings that descriptors are written in: VMware's names for them, and Python's.

Every one of them has ASCII as a part, and none has a quote or a line's end as a part of another
character: so a descriptor is taken apart as bytes, and only names are ever decoded.
"""

from __future__ import annotations

import re
from typing import Final

UTF8: Final = "utf-8"
UNSAID: Final = "cp1252"
"""How a name that is not UTF-8 is shown where the descriptor names no encoding."""

_WINDOWS: Final = {str(n): f"cp{n}" for n in (874, 932, 936, 949, 950, *range(1250, 1259))}
_ISO_8859: Final = {str(n): f"iso8859_{n}" for n in range(1, 17) if n != 12}
_OTHERS: Final = {
    "utf8": UTF8,
    "usascii": "ascii",
    "ascii": "ascii",
    "shiftjis": "cp932",  # as Windows means it, with the characters that vendors have added
    "sjis": "cp932",
    "big5": "cp950",
    "euckr": "cp949",
    "gbk": "gbk",
    "gb2312": "gbk",
    "gb18030": "gb18030",
    "eucjp": "euc_jp",
    "euccn": "gbk",
    "koi8r": "koi8_r",
    "koi8u": "koi8_u",
    "tis620": "cp874",
    "latin1": "iso8859_1",
}
_FAMILY: Final = r"(?:windows|cp|ms|ibm)(\d+)|iso8859(\d+)"


def codec_of(name: str) -> str:
    """Python's name for an encoding.

    Args:
        name: as a descriptor gives it, in any case and with any dashes.

    Returns:
        Empty for one that is not known.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    found = re.fullmatch(_FAMILY, plain)
    if found is None:
        return _OTHERS.get(plain, "")
    return _WINDOWS.get(found[1], "") if found[1] else _ISO_8859.get(found[2], "")


def as_bytes(name: str) -> bytes:
    """The bytes of a name that was taken from a descriptor."""
    return name.encode(UTF8, "surrogateescape")


def from_bytes(raw: bytes) -> str:
    """The opposite: what is no UTF-8 survives as it is."""
    return raw.decode(UTF8, "surrogateescape")


def decoded(name: str, codec: str) -> str:
    """A name as it was meant, from its bytes in a descriptor.

    Args:
        name: as taken from the descriptor.
        codec: of it; empty where it says nothing, or nothing that is known.

    Returns:
        The name as it is, where its bytes are nothing in that encoding.
    """
    if name.isascii():
        return name
    try:
        raw = as_bytes(name)
        return raw.decode(codec or UTF8)
    except UnicodeDecodeError:
        pass
    except UnicodeEncodeError:  # not from a descriptor
        return name
    try:
        return name if codec else raw.decode(UNSAID)
    except UnicodeDecodeError:
        return name
