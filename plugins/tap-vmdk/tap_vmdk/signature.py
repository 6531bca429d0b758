"""Which kind of VMDK file begins so, told from its first bytes alone.

Every driver is asked this of every file that is opened without a handle, so nothing else of the
format is loaded for it.
"""

from __future__ import annotations

from typing import Final, Literal

HOSTED_MAGIC: Final = b"KDMV"
"""Of the sparse extents of Workstation and of streamOptimized disks."""
COWD_MAGIC: Final = b"COWD"
SESPARSE_MAGIC: Final = 0xCAFEBABE
SESPARSE_BYTES: Final = 1024
"""Of the two headers that such a file has at least."""
DESCRIPTOR_MAGIC: Final = b"# disk descriptorfile"
"""In small letters; files have it in any."""

_SESPARSE_START: Final = SESPARSE_MAGIC.to_bytes(8, "little")


def kind_of(head: bytes) -> Literal["hosted", "cowd", "sesparse", "descriptor", ""]:
    """What a file is; "" for what is no VMDK, or a descriptor that only its content shows as one.

    Args:
        head: the first bytes of the file, 1024 or more where it has them.
    """
    if head.startswith(HOSTED_MAGIC):
        return "hosted"
    if head.startswith(COWD_MAGIC):
        return "cowd"
    if head.startswith(_SESPARSE_START) and len(head) >= SESPARSE_BYTES:
        return "sesparse"
    if head[:512].lstrip(b" \t\r\n").lower().startswith(DESCRIPTOR_MAGIC):
        return "descriptor"
    return ""
