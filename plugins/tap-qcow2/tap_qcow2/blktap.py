"""blktap's function for making an image, with its arguments and units."""

from __future__ import annotations

from tapcore import SECTOR_SHIFT, DiskId, NotSupportedError

_ENCRYPT = 1


def qcow2_create(
    filename: str, total_size: int, backing_file: str | None = None, flags: int = 0
) -> int:
    """Make a qcow2 image, as blktap's function of this name.

    Args:
        filename: path of the new file; replaced where it exists.
        total_size: virtual size in 512-byte sectors (qcow_create takes bytes).
        backing_file: the parent as it is to be recorded, without a format as in blktap.
        flags: bit 0 asked for encryption with AES, which is not offered: it was never safe.

    Returns:
        0. Where blktap returned a negative number, this raises.

    Raises:
        TapError, OSError: it could not be made; nothing is left behind.
    """
    from tap_qcow2.create.newimage import create

    if flags & _ENCRYPT:
        raise NotSupportedError("AES in qcow2 is only read; use td_create with encrypt.format=luks")
    parent = DiskId(backing_file) if backing_file else None
    create(filename, total_size << SECTOR_SHIFT, parent, {})
    return 0
