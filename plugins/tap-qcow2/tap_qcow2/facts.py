"""An image of which nothing is wanted but what it says of itself: without tables, for `info`."""

from __future__ import annotations

from tap_qcow2.ondisk.headerreading import header_of
from tapcore import SECTOR_SHIFT, TD_RDONLY, DiskDriver, ImageFile, open_image_file


class Facts:
    """What there is of an image to the hooks that tell of it, as an `Image` has it.

    Args:
        file: the image file, open.
        dd: the image in its chain.

    Attributes:
        header: of the file.
        geometry: what follows from it.
        tracker: of bitmaps: none records anything.
    """

    tracker = None

    def __init__(self, file: ImageFile, dd: DiskDriver) -> None:
        self.file = file
        self.header = header_of(file, dd)
        self.geometry = self.header.geometry

    def close(self) -> None:
        """Release the file."""
        self.file.close()


def open_facts(dd: DiskDriver, name: str) -> Facts:
    """Open an image so.

    Args:
        dd: the new image; is told the disk's size and unit.
        name: path, resolved and allowed.

    Raises:
        TapError, OSError: it cannot be opened; everything was closed again.
    """
    file = open_image_file(name, TD_RDONLY, dd.options)
    try:
        facts = Facts(file, dd)
    except BaseException:
        file.close()
        raise
    dd.size = facts.header.size >> SECTOR_SHIFT
    dd.cluster_size = facts.geometry.cluster_size
    return facts
