"""Finishing requests inside a hook that must not return before they are done (resizing)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from tapcore import SECTOR_SHIFT

if TYPE_CHECKING:
    from tap_qcow2.image import Image

_PIECE: Final = 2048
"""Sectors that are written at once."""


def zero_now(image: Image, sector: int, end: int) -> None:
    """Make sectors read as zeroes, whatever a parent holds; returns when that is done.

    Args:
        image: open for writing, with nothing else under way.
        sector: first sector.
        end: the one behind the last.

    Raises:
        TapError, OSError: it failed.
    """
    _Zeroing(image).run(sector, end)


class _Zeroing:
    """Requests of which the answers are waited for.

    Args:
        image: see above.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._left: list[tuple[int, int]] = []
        self._failed = 0
        self._open = 0

    def run(self, sector: int, end: int) -> None:
        """See `zero_now`."""
        clusters = self._image.clusters
        self._begin(end - sector)
        self._wait(clusters.write_zeroes(sector, end - sector, True, self._zeroed))
        content = memoryview(bytes(_PIECE << SECTOR_SHIFT))
        for start, stop in self._left:
            for at in range(start, stop, _PIECE):
                count = min(_PIECE, stop - at)
                self._begin(count)
                self._wait(clusters.write(at, count, content[: count << SECTOR_SHIFT], self._done))

    def _begin(self, nb_sectors: int) -> None:
        self._image.writeback.all_now()  # so that nothing holds it back
        self._open = nb_sectors

    def _zeroed(self, res: int, sector: int, nb_sectors: int) -> int:
        if res != -errno.EOPNOTSUPP:
            return self._done(res, sector, nb_sectors)
        self._left.append((sector, sector + nb_sectors))
        return self._done(0, sector, nb_sectors)

    def _done(self, res: int, sector: int, nb_sectors: int) -> int:
        self._open -= nb_sectors
        self._failed = self._failed or res
        return 0

    def _wait(self, refused: int) -> None:
        """Let the images of the chain work until all is answered."""
        image = self._image
        blkif = image.dd.td_state.blkif
        assert blkif is not None
        image.clusters.submit()
        if not refused:
            blkif.wait_until(lambda: not self._open)
        if refused or self._failed:
            raise OSError(-(refused or self._failed), "zeroing failed")
