"""What a request that is carried out by others asks of the engine.

An unaligned write, a copy on read and a write to a guarded end are made of requests of their own,
of whole units, while they hold the range that they are about.
"""

from __future__ import annotations

from typing import Protocol

from tapcore.engine.ordering import WriteOrder
from tapcore.engine.requests import Request
from tapcore.interface.models import TdState


class Parts(Protocol):
    """The engine, as such a request sees it.

    Attributes:
        disk: for messages.
        order: where the range is held.
        mask: the child's unit (bytes), less one.
        size: of the disk, in bytes.
    """

    disk: TdState
    order: WriteOrder
    mask: int
    size: int

    def submit_internal(self, req: Request) -> None:
        """A part of a request that holds its range: whole units, and exempt from the order."""

    def finish_internal(self, req: Request, status: int) -> None:
        """All parts of a request are finished; `status` is 0 or -errno."""
