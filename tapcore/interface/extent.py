"""Where a run of an image's content lies, as drivers say it."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen
class Extent:
    """A run of sectors of one image that are stored in one way.

    Attributes:
        sector: first sector.
        nb_sectors: length in sectors, at least 1.
        kind: "data" (readable content), "zero" (reads as zeroes, here), "unallocated" (a hole in
            this image: the parent's content, or zeroes), "compressed" (content, not stored plain).
        fd: descriptor of the open host file for plain data, else None.
        filename: the host file in which the run has its place; empty where it has none. A "zero"
            run may have one (a hole of a raw file).
        offset: where in that file, in bytes.
        allocated: a "zero" extent has space reserved in the host file.
        missing: "data" or "compressed" that is not there: its place lies past the end of the host
            file. It has no `fd`.
    """

    sector: int
    nb_sectors: int
    kind: Literal["data", "zero", "unallocated", "compressed"]
    fd: int | None = None
    filename: str = ""
    offset: int = 0
    allocated: bool = False
    missing: bool = False

    @property
    def end(self) -> int:
        """First sector past the extent."""
        return self.sector + self.nb_sectors
