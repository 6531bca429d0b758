"""Copying blocks, and moving the footer, so that a crash at any moment leaves a good one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from tap_vhd.footer import FOOTER_BYTES
from tapcore import ImageFile

if TYPE_CHECKING:
    from tap_vhd.blocks import BlockImage

_PIECE: Final = 1 << 20


def copy(file: ImageFile, source: int, target: int, length: int) -> None:
    """Copy a range to a place that nothing lies in; all in bytes.

    Raises:
        OSError: as the system says.
    """
    for at in range(0, length, _PIECE):
        content = file.read_metadata(source + at, min(_PIECE, length - at))
        file.write_metadata(target + at, content)


def put_footer(image: BlockImage, end: int) -> None:
    """Let the file end with its footer at an offset (bytes); on disk when this returns.

    Of a shorter file both footers are good until it is cut.

    Raises:
        OSError: as the system says.
    """
    file = image.file
    file.write_metadata(end, image.packed_footer)
    file.make_safe()
    if file.size > end + FOOTER_BYTES:
        file.resize(end + FOOTER_BYTES)
        file.make_safe()
    image.footer_is_at(end)
    image.footers = attrs.evolve(image.footers, at=end, end=True, copy=True, damage="")
