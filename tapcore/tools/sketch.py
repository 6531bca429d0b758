"""The rows of a picture, summed up a little at a time: of disks whose clients are being served.

Between two pieces of work requests are answered, so each piece asks the drivers anew from where the
last one ended. What a write changes behind that place is not seen any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, Final

import attrs

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import chain_extents
from tapcore.errors import DriverError, UsageError
from tapcore.interface.models import DiskDriver, TdState
from tapcore.tools.picture import (
    KINDS,
    SMALLEST_CELL,
    ImageFacts,
    Row,
    RunFacts,
    cell_size,
    run_of_disk,
    runs_of_image,
    short_name,
)

MOST_IMAGES: Final = 32
"""Of a chain that can be sketched."""

WORK_SECONDS: Final = 10.0
"""Work on one sketch; what takes longer is given up."""

_CELLS: Final = 2048
"""Of all rows together."""

_CELLS_OF_A_ROW: Final = 512
_SLICE_SECONDS: Final = 0.001
_FIRST_SLICE: Final = 64 << 20
_NAME: Final = 256


class SketchFailedError(UsageError):
    """There can be no sketch of a disk, or not now."""


@attrs.frozen
class Sketch:
    """What a chain holds.

    Attributes:
        images: the chain, child first.
        rows: of the images, then of the disk; only this one, where the image is alone.
    """

    images: tuple[ImageFacts, ...]
    rows: tuple[Row, ...]

    @classmethod
    def empty(cls, images: Sequence[ImageFacts]) -> Sketch:
        """One whose rows have nothing in them yet."""
        depths = [*range(len(images)), None] if len(images) > 1 else [None]
        most = min(_CELLS // len(depths), _CELLS_OF_A_ROW)
        cell = cell_size(max(image.size for image in images), most)
        facts = [(images[depth or 0], depth) for depth in depths]
        rows = [Row(image.name, image.handle, depth, image.size, cell) for image, depth in facts]
        return cls(tuple(images), tuple(rows))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the cells of a row are lists of slots with their bytes."""
        cells = [
            [list(row.amounts(index).items()) for index in range(len(row))] for row in self.rows
        ]
        return {"images": [attrs.asdict(image) for image in self.images], "rows": cells}

    @classmethod
    def from_dict(cls, told: Any) -> Sketch:
        """What `as_dict` gave, from somebody who need not be believed.

        Raises:
            SketchFailedError: it cannot be true.
        """
        try:
            images, rows = told["images"], told["rows"]
            if not 0 < len(images) <= MOST_IMAGES:
                raise ValueError("images")
            sketch = cls.empty([_image(each) for each in images])
            for row, cells in zip(sketch.rows, rows, strict=True):
                _fill(row, cells, KINDS * len(images))
        except (LookupError, TypeError, ValueError):
            raise SketchFailedError("what was told of the disk cannot be true") from None
        return sketch


def _image(told: Any) -> ImageFacts:
    name, handle, size = told["name"], told["handle"], told["size"]
    if (type(name), type(handle), type(size)) != (str, str, int) or not 0 <= size < 1 << 63:
        raise ValueError("image")
    return ImageFacts(name[:_NAME], handle[:_NAME], size)


def _fill(row: Row, cells: Any, slots: int) -> None:
    if type(cells) is not list or len(cells) != len(row):
        raise ValueError("cells")
    for index, cell in enumerate(cells):
        left = row.length_of(index)
        for slot, length in cell:
            left -= length
            if type(slot) is not int or type(length) is not int:
                raise ValueError("cell")
            if not 0 <= slot < slots or length < 1 or left < 0:
                raise ValueError("cell")
            row.add(index * row.cell, length, slot, "", 0)


class Sketching:
    """A sketch while it is made.

    Args:
        disk: open.

    Raises:
        SketchFailedError: its chain is too long.
    """

    def __init__(self, disk: TdState) -> None:
        self._disk = disk
        chain = list(disk.disks.chain())
        if len(chain) > MOST_IMAGES:
            text = f"a chain of {len(chain)} images is longer than {MOST_IMAGES}"
            raise SketchFailedError(text, image=disk.image.name)
        self._chain = _state(chain)
        facts = map(ImageFacts.of, chain)
        named = [attrs.evolve(each, name=short_name(each.name)[:_NAME]) for each in facts]
        self.sketch = Sketch.empty(named)
        self._left = WORK_SECONDS
        self._work = self._pieces(chain)

    def go_on(self, seconds: float) -> bool:
        """Look a little further.

        Args:
            seconds: about how long that may take; a driver that needs longer for a single extent
                takes longer.

        Returns:
            Whether all has been seen.

        Raises:
            SketchFailedError: it was closed, its images have changed, or it takes too long.
            TapError, OSError: an image cannot be read.
        """
        if self._disk.closed:
            raise SketchFailedError("the disk is closed")
        if _state(self._disk.disks.chain()) != self._chain:
            raise SketchFailedError("its images are being changed")
        begun = monotonic()
        for _ in self._work:
            spent = monotonic() - begun
            if spent >= seconds:
                self._left -= spent
                if self._left <= 0:
                    raise SketchFailedError(f"that takes more than {WORK_SECONDS:.0f} s of work")
                return False
        return True

    def _pieces(self, chain: list[DiskDriver]) -> Iterator[None]:
        """Between two of them nothing is held that a request could change."""
        *of_images, of_disk = self.sketch.rows
        for depth, (dd, row) in enumerate(zip(chain, of_images, strict=False)):
            yield from _pieces(row, _image_runs(dd, depth))
        alone = _image_runs(chain[0], 0)
        yield from _pieces(of_disk, _disk_runs(chain[0]) if of_images else alone)


def _state(chain: Iterator[DiskDriver] | list[DiskDriver]) -> list[tuple[int, int]]:
    return [(id(dd), dd.size) for dd in chain]


def _image_runs(dd: DiskDriver, depth: int) -> Callable[[int, int], Iterator[RunFacts]]:
    return lambda start, length: runs_of_image(
        dd, depth, start >> SECTOR_SHIFT, length >> SECTOR_SHIFT
    )


def _disk_runs(dd: DiskDriver) -> Callable[[int, int], Iterator[RunFacts]]:
    return lambda start, length: map(run_of_disk, chain_extents(dd, start, length))


def _pieces(row: Row, runs: Callable[[int, int], Iterator[RunFacts]]) -> Iterator[None]:
    """Slices of a disk: longer ones where they go fast, and cut where they do not."""
    at, slice_ = 0, _FIRST_SLICE
    while at < row.size:
        begun, end = monotonic(), min(at + slice_, row.size)
        for start, length, slot, _, _ in runs(at, end - at):
            if start != at or not 0 < length <= end - at:
                raise DriverError(f"the driver '{row.handle}' tells of extents that cannot be")
            row.add(start, length, slot, "", 0)
            at += length
            if monotonic() - begun > _SLICE_SECONDS:
                slice_ = max(slice_ // 2 & -SMALLEST_CELL, SMALLEST_CELL)
                break
        else:
            if at != end:
                raise DriverError(f"the driver '{row.handle}' leaves out extents")
            slice_ = min(slice_ * 2, row.size)
        yield
