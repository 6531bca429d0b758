"""What lies where in the image, exactly, without reading data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tap_qcow2 import mapping
from tapcore import Extent

if TYPE_CHECKING:
    from tap_qcow2.image import Image


def extents(image: Image, sector: int, nb_sectors: int) -> Iterator[Extent]:
    """The extents of a range of sectors, in order.

    Raises:
        ImageFormatError: a table entry is not possible.
        OSError: a table cannot be read.
    """
    data = image.data
    fd = data.fd if data is not None and image.cipher is None else None
    path = image.header.data_file if data is None else data.path
    hidden = image.header.crypt_method != 0
    for run in mapping.runs(image, sector, nb_sectors):
        if run.kind == mapping.DATA:
            if hidden:
                yield Extent(run.sector, run.nb_sectors, "data")
            else:
                yield Extent(run.sector, run.nb_sectors, "data", fd, path, run.where)
        elif run.kind == mapping.ZERO:
            if run.where:
                yield Extent(run.sector, run.nb_sectors, "zero", None, path, run.where, True)
            else:
                yield Extent(run.sector, run.nb_sectors, "zero")
        elif run.kind == mapping.COMPRESSED:
            yield Extent(run.sector, run.nb_sectors, "compressed")
        else:
            yield Extent(run.sector, run.nb_sectors, "unallocated")
