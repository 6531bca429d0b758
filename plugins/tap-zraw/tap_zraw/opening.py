"""Opening an image."""

from __future__ import annotations

import logging
from typing import Any, Final

from tap_zraw.archives import Kind, needed_kind
from tap_zraw.beside import Beside
from tap_zraw.image import Image
from tap_zraw.layout import Layout
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tapcore import SECTOR_SHIFT, DiskDriver, TapError, UsageError, open_image_file

log = logging.getLogger(__name__)

_HEAD_BYTES: Final = 32
_LONGEST_HEAD: Final = 512
_IMAGES: Final = (
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (64, b"\x7f\x10\xda\xbe", "a VDI image"),
)


def open_image(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """As `td_open`. What does not say how large its disk is, is unpacked once."""
    if dd.options.cache != "writeback":
        raise UsageError("the format zraw always goes through the page cache")
    file = open_image_file(name, flags, dd.options)
    try:
        packed = PackedFile(file.fd, file.size)
        kind = needed_kind(packed.some(0, _HEAD_BYTES))
        salvage = dd.options.salvage
        beside = None if salvage else Beside.of(file.path, packed, file.fd)
        layout, facts = lay_out(packed, kind, salvage=salvage, beside=beside)
    except BaseException:
        file.close()
        raise
    if not dd.options.metadata_only and (inside := image_inside(layout)):
        log.warning(
            "%s: holds %s, whose bytes are read here: unpack it to a file first", name, inside
        )
    dd.private = Image(dd, file, layout, facts)
    dd.size = -(-layout.size >> SECTOR_SHIFT)
    dd.io_fd[0] = file.io_fd


def image_inside(layout: Layout) -> str:
    """What the content is where it is no raw disk but an image of another format; or ""."""
    if not layout.size:
        return ""
    try:
        head = layout.unpack(0)[:_LONGEST_HEAD]
    except (TapError, OSError):
        return ""  # whoever reads it is told
    return next((name for at, magic, name in _IMAGES if head.startswith(magic, at)), "")


def lay_out(
    file: PackedFile, kind: Kind, *, salvage: bool, beside: Beside | None = None
) -> tuple[Layout, dict[str, Any]]:
    """How the disk lies in a file, and the `format` object of `info --json`.

    Args:
        file: open.
        kind: of its compression.
        salvage: take what there is up to the first damage.
        beside: keeps what has to be looked for in it.

    Raises:
        ImageFormatError, NotSupportedError: it cannot be read; the text says why.
        OSError: as the system says.
    """
    if kind == "zstd":
        from tap_zraw.zstd.opening import lay_out as lay_out_zstd

        layout, found = lay_out_zstd(file, salvage=salvage, beside=beside)
        return layout, _facts(kind, layout, found.pieces) | {"seek_table": found.seekable}
    if kind == "xz":
        from tap_zraw.xz.opening import lay_out as lay_out_xz

        if beside is not None:
            beside.needless("xz has one of its own")
        layout, pieces = lay_out_xz(file)
        return layout, _facts(kind, layout, pieces)
    from tap_zraw.gzip.opening import lay_out as lay_out_gzip

    layout, members = lay_out_gzip(file, beside)
    return layout, _facts(kind, layout, members)


def _facts(kind: Kind, layout: Layout, pieces: Pieces | None) -> dict[str, Any]:
    from tap_zraw.apart import PiecesApart

    apart = isinstance(layout, PiecesApart)
    return {
        "compression": kind,
        "pieces": 1 if pieces is None else len(pieces),
        "largest_piece": layout.size if pieces is None else pieces.largest(),
        "random_access": apart,
    }
