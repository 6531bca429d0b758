"""Memory for the requests of all clients together: there is so much, whoever asks first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tapcore.engine.loop import Deadline

BUDGET: Final = 256 << 20
"""Bytes of buffers, in use or with replies that wait for their clients, of all connections."""

SMALL: Final = 256 << 10
"""Bytes. Who has nothing may have so much in any case: nobody is shut out by others."""

PATIENCE_SECONDS: Final = 5.0
"""While somebody waits for memory, a client that has some and takes nothing for so long goes."""


class Budget:
    """What is left of it.

    Args:
        size: bytes; a half of them is for requests in any case.

    Attributes:
        room: bytes; less than none where clients that have little were let in all the same.
        waiting: who wants to be told when there is so much (bytes) again.
        patience: how long those still have that hold memory and take nothing; None: nobody waits.
        rounds: how often that has passed.
    """

    __slots__ = ("_for_requests", "patience", "room", "rounds", "waiting")

    def __init__(self, size: int = BUDGET) -> None:
        self.room = size
        self._for_requests = size // 2
        self.waiting: dict[Callable[[], object], int] = {}
        self.patience: Deadline | None = None
        self.rounds = 0

    def take_to_keep(self, size: int) -> bool:
        """Take so many bytes, for something that makes a client quicker as long as it is there.

        Returns:
            Whether there were so many that neither anybody waits for nor requests may need.
        """
        if self.waiting or self.room - size < self._for_requests:
            return False
        self.room -= size
        return True

    def wait(self, wanted: int, tell: Callable[[], object]) -> None:
        """There is not enough room: `tell` is called once, when there may be.

        Args:
            wanted: bytes.
            tell: the same for one client, however often it waits.
        """
        self.waiting[tell] = wanted
        if self.patience is None:
            self.patience = Deadline(PATIENCE_SECONDS)

    def give_back(self, size: int) -> None:
        """So many bytes are free again."""
        self.room += size
        if self.waiting:
            self._tell()

    def _tell(self) -> None:
        """In their order, as far as the room goes: nobody overtakes, and big ones do not starve."""
        room = self.room
        while self.waiting:
            tell, wanted = next(iter(self.waiting.items()))
            if wanted > room:
                return
            room -= wanted
            del self.waiting[tell]
            tell()
        self.patience = None

    def out_of_patience(self) -> bool:
        """Whether it has passed; it begins anew then."""
        if self.patience is None or not self.patience.passed:
            return False
        self.rounds += 1
        self.patience = Deadline(PATIENCE_SECONDS)
        return True

    def forget(self, tell: Callable[[], object]) -> None:
        """Its client has gone."""
        if self.waiting.pop(tell, None) is not None:
            self._tell()
