"""Where new blocks go: into gaps that nothing lies in, and behind everything else."""

from __future__ import annotations

from typing import Final

import attrs

from tap_vhdx.headers import MIB
from tapcore import ImageFile

_SMALL: Final = 4 * MIB
"""Bytes of a block that may be filled with zeroes at once."""


@attrs.define
class Space:
    """The space of a file.

    Args:
        file: the image file.
        block: bytes of a block.
        gaps: ranges that nothing lies in: offset and length, bytes; the next one to be used last.
        end: first byte behind all that is in use, at whole MiB.

    Attributes:
        end: as given.
    """

    _file: ImageFile
    _block: int
    _gaps: list[tuple[int, int]]
    end: int

    def take(self, count: int) -> tuple[int, int, bool]:
        """Space for blocks that follow each other, or for the first ones of them.

        Args:
            count: how many are wanted.

        Returns:
            Offset (bytes), how many blocks, and whether it reads as zeroes.
        """
        block = self._block
        while self._gaps:
            where, length = self._gaps.pop()
            if length < block:
                continue  # `check` gives it back
            if length > block:
                self._gaps.append((where + block, length - block))
            blank = not any(data for _, _, data in self._file.runs(where, block))
            if blank or block <= _SMALL:
                return where, 1, blank
        where, self.end = self.end, self.end + count * block
        return where, count, where >= self._file.size

    def add(self, where: int, length: int) -> None:
        """Nothing lies in a range any more, on disk or in flight."""
        self._gaps.append((where, length))
