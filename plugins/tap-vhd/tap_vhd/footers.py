"""Which footer of a file is to be believed: that at its end, or the copy at its front.

While blocks are added the footer at the end moves; a crash then leaves the copy alone. In a fixed
image the front is the guest's: what looks like a footer there says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from tap_vhd.footer import (
    COOKIE,
    FIXED,
    FOOTER_BYTES,
    OLD_FOOTER_BYTES,
    OLD_TAPDISK,
    TAPDISK,
    Footer,
    unpack_footer,
)
from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError, TapError

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""Reads (offset, length; bytes) from a file, zero padded past its end."""

END_DAMAGED = "the footer at its end is damaged or missing; the copy at its front is used"
COPY_DAMAGED = "the copy of the footer at its front is damaged"


@attrs.frozen
class Footers:
    """What was found.

    Attributes:
        footer: that is to be believed.
        at: where the one at the end begins, bytes; where nothing is there, the file's end.
        end: it is good.
        copy: the one at the front is the same.
        damage: what is wrong; "" for nothing.
    """

    footer: Footer
    at: int
    end: bool
    copy: bool
    damage: str = ""


def read_footers(read: ReadAt, size: int) -> Footers:
    """Find the footer of a file.

    Args:
        read: reads it.
        size: of it, bytes.

    Raises:
        ImageFormatError: it is no VHD, or damaged.
        NotSupportedError: of a kind that is not known.
    """
    front = _footer_at(read, 0, FOOTER_BYTES)
    found: Footer | TapError = ImageFormatError("is not a VHD image")
    for length in (FOOTER_BYTES, OLD_FOOTER_BYTES):
        at = size - length
        if at >= 0 and read(at, len(COOKIE)) == COOKIE:
            found = _footer_at(read, at, length)
            break
    if isinstance(found, Footer) and not _is_content(found, at, front):
        lost = found.disk_type != FIXED and not isinstance(front, Footer)
        damage = COPY_DAMAGED if lost else ""
        return _known(Footers(found, at, end=True, copy=found == front, damage=damage))
    if isinstance(front, Footer) and front.disk_type != FIXED:
        return _known(Footers(front, size, end=False, copy=True, damage=END_DAMAGED))
    failed = front if read(0, len(COOKIE)) == COOKIE else found
    assert isinstance(failed, TapError)
    raise failed


def _is_content(end: Footer, at: int, front: Footer | TapError) -> bool:
    """Whether what looks like a footer at the end is what a guest wrote, before a crash.

    A fixed image has none at its front, and a guest cannot write behind it. Any other has a copy
    at its front, where its guest cannot write.

    Raises:
        ImageFormatError: it may be the one as well as the other.
    """
    if not isinstance(front, Footer) or front.disk_type == FIXED:
        return False
    if end.disk_type != FIXED:
        return end.identity != front.identity
    if end.sectors << SECTOR_SHIFT == at:
        raise ImageFormatError(
            "has two footers that contradict each other, and a guest can have written either"
        )
    return True


def _footer_at(read: ReadAt, at: int, length: int) -> Footer | TapError:
    try:
        return unpack_footer(read(at, length))
    except (ImageFormatError, NotSupportedError) as exc:
        return exc


def _known(found: Footers) -> Footers:
    footer = found.footer
    if footer.creator == TAPDISK and footer.creator_version == OLD_TAPDISK:
        raise NotSupportedError("was made by tapdisk 0.1, whose bitmaps are not read here")
    return found
