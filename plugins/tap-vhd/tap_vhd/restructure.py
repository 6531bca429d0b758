"""Putting another header, and what it leads to, into the place of the present one.

All of it goes behind the last block, with the footer behind it, while the copy of the footer at the
front still leads to the old one: it is believed as long as the two differ. That copy, one sector,
is what changes the image, at one stroke.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from tap_vhd.blocks import BlockImage
from tap_vhd.footer import FOOTER_BYTES, Footer
from tap_vhd.header import HEADER_BYTES, Header, Locator
from tapcore import SECTOR_SHIFT


def restructure(
    image: BlockImage,
    footer: Footer,
    header: Header,
    names: Sequence[tuple[bytes, bytes]] | None = None,
    table: bytes = b"",
) -> None:
    """Let an image have this header, on disk when this returns.

    Args:
        image: open for writing, with nothing in flight.
        footer: the new one; it is made to lead to the header.
        header: the new one.
        names: of the parent, by platforms; None: the present ones stay.
        table: a new block table; empty: the present one stays.

    Raises:
        OSError, TapError: the image is what it was, or what it was to be.
    """
    image.clusters.begin_writing()
    image.clusters.save()
    file, end = image.file, image.end
    if names is not None:
        locators = []
        for platform, name in names:
            locators.append(Locator(platform, end, len(name)))
            file.write_metadata(end, name)
            end = _whole(end + len(name))
        header = attrs.evolve(header, locators=tuple(locators))
    if table:
        header = attrs.evolve(header, table_offset=end)
        file.write_metadata(end, table)
        end = _whole(end + len(table))
    footer = attrs.evolve(footer, data_offset=end)
    file.write_metadata(end, header.pack())
    end += HEADER_BYTES
    file.write_metadata(end, footer.pack())
    file.make_safe()
    file.write_metadata(0, footer.pack())
    file.make_safe()
    image.clusters.stop_writing()
    assert end + FOOTER_BYTES == file.size
    image.adopt(attrs.evolve(image.footers, footer=footer, at=end, end=True, copy=True), header)


def _whole(offset: int) -> int:
    return -(-offset >> SECTOR_SHIFT) << SECTOR_SHIFT
