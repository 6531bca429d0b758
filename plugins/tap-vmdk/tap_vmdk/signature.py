"""Which kind of VMDK file begins so, told from its first bytes alone.

What the core can tell by `MAGIC` is not asked of the driver; whether a text is a descriptor is.

A descriptor is text, and programs differ in what they take for one. VirtualBox and VMware want
the comment that names it as the first line, in one of several spellings. QEMU wants `version=1`
(or 2, or 3) behind any number of comments and blank lines. A file that any of them would follow
is a descriptor here.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from tapcore import Magic

HOSTED_MAGIC: Final = b"KDMV"
"""Of the sparse extents of Workstation and of streamOptimized disks."""
COWD_MAGIC: Final = b"COWD"
SESPARSE_MAGIC: Final = 0xCAFEBABE
SESPARSE_BYTES: Final = 8 + 1016
"""Of the two headers that such a file has at least."""
BOM: Final = b"\xef\xbb\xbf"
"""Editors put it before text in UTF-8."""
UTF16_BOMS: Final = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}

_SESPARSE_START: Final = SESPARSE_MAGIC.to_bytes(8, "little")
HEAD_BYTES: Final = 20 << 10
"""No more than this of a file tells what it is: all of it can be seen when a guest writes the first
sectors of a raw disk."""
_TEXT: Final = frozenset(
    b"#\t\r\n \xef\xfe\xffABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
"""What such a text begins with."""
_NAME: Final = rb"(?i)#\s*disk\s*descriptor\s*file"
_SKIPPED: Final = (
    rb"(?:[ \t]*(?:#[^\r\n]*)?[\r\n])*[ \t]*",
    rb"(?:[ \t\r]*(?:#[^\n]*)?\n)*[ \t\r]*",
)
"""Comments and blank lines; for QEMU, as in the second, a carriage return alone ends none."""
_ENTRY: Final = (
    rb"(?i)version[ \t]*=[ \t]*[\"]?\d|"
    rb"(?:encoding|cid|parentcid|isnativesnapshot|createtype|parentfilenamehint)[ \t]*=|"
    rb"(?:rw|rdonly|noaccess)[ \t]+\d+[ \t]+[a-z]"
)
"""What a descriptor begins with, where it does not say its name."""

MAGIC: Final = (
    Magic(HOSTED_MAGIC),
    Magic(COWD_MAGIC),
    Magic(re.escape(_SESPARSE_START) + rb"(?s:.{1016})", pattern=True),
    Magic(
        rb"(?is)\xff\xfe|\xfe\xff|(?=[#\t\r\n \xefa-z]).{0,20479}?(?:disk\s*descriptor|"
        rb"(?:version|encoding|cid)[ \t]*=|isnativesnapshot|createtype|parentfilenamehint|"
        rb"(?:rw|rdonly|noaccess)[ \t]+\d)",
        pattern=True,
        sure=False,
    ),
)
"""How the core knows such files. The last one is a look for the words of which every descriptor has
one; `kind_of` looks closely."""

Kind = Literal["hosted", "cowd", "sesparse", "descriptor", ""]


def kind_of(head: bytes) -> Kind:
    """What a file is; "" for what is no VMDK, or a descriptor that only its content shows as one.

    Args:
        head: the first bytes of the file, `HEAD_BYTES` or more where it has them.
    """
    if head.startswith(HOSTED_MAGIC):
        return "hosted"
    if head.startswith(COWD_MAGIC):
        return "cowd"
    if head.startswith(_SESPARSE_START) and len(head) >= SESPARSE_BYTES:
        return "sesparse"
    return "descriptor" if _is_descriptor(head[:HEAD_BYTES]) else ""


def _is_descriptor(head: bytes) -> bool:
    if not head or head[0] not in _TEXT:
        return False
    if head[:2] in UTF16_BOMS:
        head = head.decode(UTF16_BOMS[head[:2]], "replace")[1:].encode("utf-8", "replace")
    head = head.removeprefix(BOM)
    if re.match(_NAME, head.lstrip(b" \t\r\n")):
        return True
    skipped = (re.match(lines, head) for lines in _SKIPPED)
    return any(re.match(_ENTRY, head[each.end() :]) for each in skipped if each is not None)
