"""One client's share of the memory that there is for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tapcore.nbd.budget import SMALL
from tapcore.nbd.outstanding import Outstanding

ANY_REQUEST: Final = 4096
"""Bytes. What has no data is answered with little, but not with nothing."""


class Share:
    """What one client may have of it.

    Who has hardly anything may have a little always: others cannot shut him out.

    Args:
        outstanding: the requests and replies that the client has memory for.
        tell: called when there may be what it waits for.
    """

    __slots__ = ("_outstanding", "_tell", "_wanted")

    def __init__(self, outstanding: Outstanding, tell: Callable[[], object]) -> None:
        self._outstanding = outstanding
        self._tell = tell
        self._wanted = 0

    def has_room(self, needed: int) -> bool:
        """Whether a request may take so many bytes; if not, it waits for them (`comes`)."""
        needed = 1 << max(needed - 1, 0).bit_length()  # as the pool has them
        if needed <= self._outstanding.budget.room:
            return True
        self._wanted = needed
        return self.comes()

    def comes(self) -> bool:
        """Whether there is by now what it waits for."""
        wanted, owed = self._wanted, self._outstanding
        if not wanted:
            return True
        budget = owed.budget
        if wanted > budget.room and owed.held + owed.replies.leased + wanted > SMALL:
            budget.wait(wanted, self._tell)
            return False
        self._wanted = 0
        budget.forget(self._tell)
        return True

    def leave(self) -> None:
        """The client has gone."""
        self._outstanding.budget.forget(self._tell)
