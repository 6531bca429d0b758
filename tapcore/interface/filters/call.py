"""A request on its way through a filter: to the driver, and back with the answer."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

from tapcore.constants import SECTOR_SHIFT
from tapcore.interface.models import DiskDriver, TdCallback

Operation: TypeAlias = Literal["read", "write", "flush", "discard", "zero", "compressed"]
"""What a request does: "zero" is write zeroes, "compressed" a compressed write."""


class Way(Protocol):
    """Where a call comes from and goes to: one filter around one image."""

    def pass_on(self, call: Call, after: float, in_order: bool) -> None:
        """Hand it to the driver, so many seconds from now, and behind others that are in order."""

    def give(self, call: Call, res: int, sector: int, nb_sectors: int, after: float) -> None:
        """Hand an answer to who asked, so many seconds from now."""


class Call:
    """One request of an image, of whole sectors.

    Attributes:
        op: what it does.
        dd: the image that is asked.
        sector: first sector; of a flush 0.
        nb_sectors: how many; of a flush 0.
        buf: content of a write, not to be changed; where a read goes; None without content.
        may_unmap: of "zero": space may be given back.
        note: the filter's own, for its answer.
        owed: sectors that the filter has not answered yet; of a flush 1.
    """

    __slots__ = (
        "_way",
        "buf",
        "cb",
        "dd",
        "id",
        "may_unmap",
        "nb_sectors",
        "note",
        "op",
        "owed",
        "prv",
        "sector",
        "sent",
        "unanswered",
        "under_way",
    )

    def __init__(
        self,
        way: Way,
        op: Operation,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        buf: memoryview | None,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> None:
        self._way = way
        self.op: Operation = op
        self.dd = dd
        self.sector = sector
        self.nb_sectors = nb_sectors
        self.buf = buf
        self.may_unmap = may_unmap
        self.note: Any = None
        # the way's own: who asked; how many sectors the driver has not answered; whether it has
        # the call, or is to get it
        self.cb = cb
        self.id = id
        self.prv = prv
        self.sent: memoryview | None = buf
        self.owed = self.unanswered = nb_sectors or 1
        self.under_way = False

    # ---- what a filter does with it ---------------------------------------------------------

    def go_on(
        self, *, buf: memoryview | None = None, after: float = 0.0, in_order: bool = False
    ) -> None:
        """Let the driver have it: as it is, or with other content.

        Args:
            buf: of a write: what is written instead, as long; not to be changed until all is
                answered. Of a read: where the driver puts the content, which the filter then moves.
            after: seconds from now.
            in_order: not before those that were to go on in order earlier, whatever the clock says.
        """
        if buf is not None:
            self.sent = buf
        self._way.pass_on(self, after, in_order)

    def answer(
        self,
        res: int,
        sector: int | None = None,
        nb_sectors: int | None = None,
        *,
        after: float = 0.0,
    ) -> None:
        """Answer sectors of it to whoever asked. Each sector has to be answered once.

        Args:
            res: 0, -errno, or `BLK_NOT_ALLOCATED`.
            sector: first sector; None: the request's.
            nb_sectors: how many; None: all up to the request's end.
            after: seconds from now.
        """
        sector = self.sector if sector is None else sector
        if nb_sectors is None:
            nb_sectors = self.sector + self.nb_sectors - sector
        self._way.give(self, res, sector, nb_sectors, after)

    # ---- what it is -------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Where it begins, in bytes from the start of the image."""
        return self.sector << SECTOR_SHIFT

    @property
    def length(self) -> int:
        """Bytes; of a flush 0."""
        return self.nb_sectors << SECTOR_SHIFT

    @property
    def of_disk(self) -> bool:
        """Whether it is of the disk's own image: what a client asked for, and of no parent."""
        return self.dd is self.dd.td_state.disks

    def part(self, sector: int, nb_sectors: int) -> memoryview:
        """The content of a range of it, as the driver has it: of a read that was answered.

        Args:
            sector: first sector, of the image.
            nb_sectors: how many.
        """
        assert self.sent is not None, f"a {self.op} has no content"
        start = (sector - self.sector) << SECTOR_SHIFT
        return self.sent[start : start + (nb_sectors << SECTOR_SHIFT)]
