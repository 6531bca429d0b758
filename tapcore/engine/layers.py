"""One image of an open chain as the engine sees it: its operations, unpacked for the fast path."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tapcore.constants import SECTOR_SHIFT
from tapcore.models import DiskDriver

if TYPE_CHECKING:
    from tapcore.engine.requests import Segment


class Layer:
    """An image of the chain and what was queued to it since its last submit.

    Attributes:
        dd: the image.
        next: the parent's layer.
        batch: segments handed to the driver and not yet finished when the call returned.
        dirty: something was queued since the last submit.
        parked: segments that the driver had no room for, to be tried again in this order.
        unit_mask: the image's unit in sectors, less one.
    """

    __slots__ = (
        "batch",
        "dd",
        "dirty",
        "discard",
        "flush",
        "next",
        "parked",
        "read",
        "submit",
        "unit_mask",
        "write",
        "zero",
    )

    def __init__(self, dd: DiskDriver, next_layer: Layer | None) -> None:
        drv = dd.drv
        self.dd = dd
        self.next = next_layer
        self.read = drv.td_queue_read
        self.write = drv.td_queue_write
        self.discard = drv.td_queue_discard
        self.zero = drv.td_queue_write_zeroes
        self.flush = drv.td_queue_flush
        self.submit = drv.td_submit
        self.batch: list[Segment] = []
        self.parked: deque[Segment] = deque()
        self.dirty = False
        self.unit_mask = (dd.sector_size >> SECTOR_SHIFT) - 1


def layers_of(dd: DiskDriver) -> list[Layer]:
    """The layers of a chain, child first."""
    layers: list[Layer] = []
    below: Layer | None = None
    for image in reversed(list(dd.chain())):
        below = Layer(image, below)
        layers.insert(0, below)
    return layers
