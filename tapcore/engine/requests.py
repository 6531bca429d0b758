"""Requests, their segments, and the layers that these are queued to: what the accounting counts.

A request is what a client asked for; a segment is a run of its sectors that one image was asked
for. A request is itself the segment of the child as long as nothing splits it; sectors that are
forwarded (to a parent, or piecewise) become segments of their own below it. A segment is finished
when all its sectors are; a request when it has no pending sectors left.

Plain slotted classes, not attrs: one is made for every request on the fast path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from tapcore.constants import DEFAULT_SECTOR_SIZE, SECTOR_SHIFT
from tapcore.interface.models import DiskDriver

READ: Final = 0
WRITE: Final = 1
FLUSH: Final = 2
DISCARD: Final = 3
ZERO: Final = 4
WRITE_COMPRESSED: Final = 5

OP_NAMES: Final = ("read", "write", "flush", "discard", "write zeroes", "compressed write")


class Segment:
    """A run of sectors asked of one image.

    Attributes:
        op: READ, WRITE, ...
        sector: first sector.
        nb_sectors: how many.
        buf: their content, or where it goes; None where there is none.
        pending: sectors not answered yet.
        forwarded: of those, sectors that segments below are about.
        up: the segment that this one is a part of; None for a request.
        layer: the image asked.
    """

    __slots__ = ("buf", "forwarded", "layer", "nb_sectors", "op", "pending", "sector", "up")

    def __init__(
        self,
        op: int,
        sector: int,
        nb_sectors: int,
        buf: memoryview | None,
        up: Segment | None,
        layer: Layer | None,
    ) -> None:
        self.op = op
        self.sector = sector
        self.nb_sectors = nb_sectors
        self.buf = buf
        self.pending = nb_sectors
        self.forwarded = 0
        self.up = up
        self.layer = layer

    def root(self) -> Request:
        """The request that this segment is part of."""
        segment = self
        while segment.up is not None:
            segment = segment.up
        assert isinstance(segment, Request)
        return segment

    def slice(self, sector: int, nb_sectors: int) -> memoryview:
        """The part of `buf` that belongs to a sub-range."""
        assert self.buf is not None
        start = (sector - self.sector) << SECTOR_SHIFT
        return self.buf[start : start + (nb_sectors << SECTOR_SHIFT)]


class Piece(Segment):
    """A run of a write whose content comes piece by piece.

    Attributes:
        written: called when it has been answered, if it was not at once: its buffer is free.
    """

    __slots__ = ("written",)

    written: Callable[[], object]


class Request(Segment):
    """What a client asked for, in bytes.

    Attributes:
        offset: bytes from the start of the disk.
        length: bytes.
        done: called once with the request when it is finished.
        status: 0, or the -errno of the first part that failed.
        fua: the data must be on disk before the answer.
        may_unmap: for ZERO: space may be given back.
        fast: for ZERO: fail with -EOPNOTSUPP rather than write zeroes.
        queued: when it went to its driver (`time.monotonic`), where that was not at once; else 0.0.
        tag: the front end's own.
    """

    __slots__ = (
        "done",
        "fast",
        "fua",
        "length",
        "may_unmap",
        "offset",
        "queued",
        "status",
        "tag",
    )

    def __init__(
        self,
        op: int,
        offset: int,
        length: int,
        buf: memoryview | None,
        done: Callable[[Any], object],
        tag: Any = None,
        fua: bool = False,
    ) -> None:
        # not through super(): this is the fast path
        self.op = op
        self.offset = offset
        self.length = length
        self.sector = offset >> SECTOR_SHIFT
        self.nb_sectors = self.pending = length >> SECTOR_SHIFT
        self.buf = buf
        self.forwarded = 0
        self.up = None
        self.layer = None
        self.done = done
        self.tag = tag
        self.status = 0
        self.fua = fua
        self.may_unmap = True
        self.fast = False
        self.queued = 0.0


class CopyingRead(Request):
    """A read that remembers which sectors came from a parent.

    Attributes:
        from_below: (sector, nb_sectors) of what the child did not hold and a parent was asked for.
    """

    __slots__ = ("from_below",)

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.from_below: list[tuple[int, int]] = []


class Layer:
    """An image of the chain and what was queued to it since its last submit.

    Attributes:
        dd: the image.
        next: the parent's layer.
        batch: segments handed to the driver and not yet finished when the call returned.
        handed: segments submitted, those not answered yet among them.
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
        "handed",
        "next",
        "parked",
        "read",
        "submit",
        "unit_mask",
        "write",
        "write_compressed",
        "zero",
    )

    def __init__(self, dd: DiskDriver, next_layer: Layer | None) -> None:
        drv = dd.drv
        self.dd = dd
        self.next = next_layer
        self.read = drv.td_queue_read
        self.write = drv.td_queue_write
        self.write_compressed = drv.td_queue_write_compressed
        self.discard = drv.td_queue_discard
        self.zero = drv.td_queue_write_zeroes
        self.flush = drv.td_queue_flush
        self.submit = drv.td_submit
        self.batch: list[Segment] = []
        self.handed: list[Segment] = []
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


def unit_of(dd: DiskDriver) -> int:
    """Bytes of which an image is read and written in whole multiples."""
    return max(dd.sector_size, DEFAULT_SECTOR_SIZE)


def cluster_of(dd: DiskDriver) -> int:
    """Bytes of which an image is allocated in whole multiples."""
    return dd.cluster_size or unit_of(dd)
