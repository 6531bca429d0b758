"""What a file from a stranger says of itself; nothing is unpacked."""

from __future__ import annotations

from tap_zraw.archives import needed_kind
from tap_zraw.gzip.opening import find_members
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tap_zraw.xz.blocks import find_blocks
from tap_zraw.zstd.opening import find_frames
from tapcore import SECTOR_SHIFT, Finding, Inspection

_UNTOLD = Finding(
    "unknown", "does not say how large its disk is: all of it has to be unpacked", "size-untold"
)


def inspect(fd: int, size: int) -> Inspection:
    """As `td_inspect`.

    Args:
        fd: open for reading.
        size: of the file, bytes.

    Raises:
        ImageFormatError: it is no such file, or one that cannot be true.
    """
    file = PackedFile(fd, size)
    kind = needed_kind(file.some(0, 32))
    findings: tuple[Finding, ...] = ()
    features: tuple[str, ...] = (kind,)
    pieces: Pieces | None
    if kind == "zstd":
        found = find_frames(file)
        pieces = found.pieces
        features += ("seek table",) if found.seekable else ()
        findings = (_UNTOLD,) if found.untold else ()
    elif kind == "xz":
        pieces = find_blocks(file)[0]
    else:
        pieces = find_members(file)
    if pieces is None:
        return Inspection(0, features, (), (_UNTOLD,))
    features += (f"{len(pieces)} pieces of {pieces.largest()} bytes at most",)
    sectors = -(-pieces.size >> SECTOR_SHIFT)
    return Inspection(sectors << SECTOR_SHIFT, features, (), findings)
