"""Reading the header of an open file, as far as it matters for what is to be done.

`headerparser` takes its bytes apart.
"""

from __future__ import annotations

import contextlib
import errno

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.headerparser import parse_header
from tapcore import DiskDriver, ImageFile, ImageFormatError, ImageOpenError, TapError


def read_head(file: ImageFile) -> bytes:
    """The first cluster of an image file (all of a shorter file), at most 2 MiB."""
    head = file.read_metadata(0, min(file.size, 4096))
    bits = int.from_bytes(head[20:24], "big")
    if not 12 < bits <= layout.MAX_CLUSTER_BITS:
        return head
    return file.read_metadata(0, min(file.size, 1 << bits))


def header_of(file: ImageFile, dd: DiskDriver) -> Header:
    """Read and check the header of an open file, as far as it matters for what is to be done.

    Raises:
        TapError: not an image, damaged, or it needs what is not known here.
        OSError: as the system says.
    """
    options, head = dd.options, read_head(file)
    salvage = options.salvage and not options.snapshot
    try:
        header = parse_header(
            head, file_size=file.size, to_check=options.metadata_only, content_only=salvage
        )
    except ImageFormatError as exc:
        with contextlib.suppress(TapError):
            parse_header(head, file_size=file.size, content_only=True)
            exc.message += " (convert --salvage copies what is left)"
        raise
    if header.corrupt and not dd.read_only and not options.metadata_only:
        raise ImageOpenError(
            "is marked as corrupt: check --repair all, or open it read-only", errno=errno.EROFS
        )
    return header
