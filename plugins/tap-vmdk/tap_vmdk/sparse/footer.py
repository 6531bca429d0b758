"""The footer of a stream: its header again, with the place of the grain directory."""

from __future__ import annotations

from tap_vmdk.signature import HOSTED_MAGIC
from tap_vmdk.sparse.header import GD_AT_END, HEADER_BYTES, SparseHeader
from tap_vmdk.sparse.markers import MARKER_FOOTER, is_marker
from tapcore import ImageFile, ImageFormatError

_TAIL_BYTES = 64 << 10
"""A footer is looked for so far from the end: some writers pad their files."""


def with_footer(file: ImageFile, header: SparseHeader) -> tuple[SparseHeader, int]:
    """What counts of a stream: its footer, where the header says that there is one.

    Args:
        file: the stream.
        header: its header.

    Returns:
        The header or the footer, and the sector of the file where the footer begins, with its
        marker, if it has one (of a file without a footer, its end).

    Raises:
        ImageFormatError: there is none; the file was cut short.
    """
    if header.gd_offset != GD_AT_END:
        return header, -(-file.size // 512)
    start = max(file.size // 512 * 512 - _TAIL_BYTES, 0)
    tail = file.read_metadata(start, file.size // 512 * 512 - start)
    at = len(tail)
    while (at := tail.rfind(HOSTED_MAGIC, 512, at)) >= 0:
        if at % 512 == 0 and len(tail) - at >= HEADER_BYTES:
            found = SparseHeader.unpack(tail[at : at + HEADER_BYTES])
            if _fits(found, header):
                marked = is_marker(tail[at - 512 : at], MARKER_FOOTER)
                return found, (start + at) // 512 - marked
    raise ImageFormatError(
        "has no footer at its end: it was cut short, or never finished "
        "(convert --salvage copies what is left)"
    )


def _fits(footer: SparseHeader, header: SparseHeader) -> bool:
    """Whether a footer belongs to a header (and is not the content of a grain)."""
    return (
        (footer.capacity, footer.grain, footer.entries, footer.compression)
        == (header.capacity, header.grain, header.entries, header.compression)
    ) and footer.gd_offset != GD_AT_END
