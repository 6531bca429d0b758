"""What an author of a filter derives from."""

from __future__ import annotations

from typing import Any, ClassVar

from tapcore.interface.filters.call import Call
from tapcore.interface.models import DiskDriver


class Filter:
    """A plugin around the drivers of one disk: each disk that is opened with it has its own.

    `request` is called for every request of every image of the chain, `answered` for every answer.
    A filter may also have functions marked `@hookimpl(wrapper=True)` with the names of hooks, for
    calls that are no requests (`td_open`, `td_resize` ...).

    Attributes:
        changes_content: what is read through it is not what the images hold. What a read would
            find cannot be told from an image's tables then, and nobody believes them.
        title: what `tapdisk formats` says of it; "": the first line of its docstring.
    """

    changes_content: ClassVar[bool] = False
    title: ClassVar[str] = ""

    def opened(self, dd: DiskDriver[Any]) -> None:
        """An image of the chain was opened: the child first, then its parent ...

        Raises:
            OSError, TapError: the disk is not opened.
        """

    def request(self, call: Call) -> None:
        """A request comes: `call.go_on()` lets the driver have it, `call.answer(...)` answers it.

        One of the two has to be called, here or later. An exception is the request's error.
        """
        call.go_on()

    def answered(self, call: Call, res: int, sector: int, nb_sectors: int) -> None:
        """The driver has answered some sectors of a request: all at once, or piece by piece.

        Each piece has to go on by `call.answer`, here or later. An exception is the piece's error.

        Args:
            call: the request.
            res: 0, -errno, or `BLK_NOT_ALLOCATED`: not in this image, a parent is asked next.
            sector: first sector.
            nb_sectors: how many; of a flush 0.
        """
        call.answer(res, sector, nb_sectors)

    def closed(self, dd: DiskDriver[Any]) -> None:
        """An image of the chain was closed, in the order in which they were opened."""
