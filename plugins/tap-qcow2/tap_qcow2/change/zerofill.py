"""Finishing requests inside a hook that must not return before they are done (resizing)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tap_qcow2.data.write import Writer
from tap_qcow2.data.zero import Zeroing
from tapcore import SECTOR_SHIFT, Answer

if TYPE_CHECKING:
    from tap_qcow2.image import Image

_PIECE = 2048  # sectors that are written at once


def zero_now(image: Image, sector: int, end: int) -> None:
    """Make sectors read as zeroes, whatever a parent holds; returns when that is done.

    Args:
        image: open for writing, with nothing else under way.
        sector: first sector.
        end: the one behind the last.

    Raises:
        OSError: it failed.
    """
    left: list[tuple[int, int]] = []
    failed: list[int] = []
    open_sectors = [end - sector]

    def answered(dd: Any, res: int, at: int, nb_sectors: int, id: int, prv: Any) -> int:
        open_sectors[0] -= nb_sectors
        if res == -errno.EOPNOTSUPP and prv == "zero":
            left.append((at, at + nb_sectors))
        elif res:
            failed.append(res)
        return 0

    Zeroing(
        image.clusters, image.writeback, False, True, Answer(answered, image.dd, 0, "zero")
    ).run(sector, end)
    _settle(image, lambda: not open_sectors[0])
    content = memoryview(bytes(_PIECE << SECTOR_SHIFT))
    for start, stop in left:
        for at in range(start, stop, _PIECE):
            part = content[: min(_PIECE, stop - at) << SECTOR_SHIFT]
            open_sectors[0] += len(part) >> SECTOR_SHIFT
            Writer(image.clusters).write(Answer(answered, image.dd, 0, "write"), at, part)
            _settle(image, lambda: not open_sectors[0])
    if failed:
        raise OSError(-failed[0], "zeroing failed")


def _settle(image: Image, done: Callable[[], bool]) -> None:
    """Let the images of the chain work until something is done."""
    disk = image.dd.td_state
    assert disk is not None
    assert disk.blkif is not None
    image.dd.drv.td_submit(image.dd)
    disk.blkif.wait_until(done)
