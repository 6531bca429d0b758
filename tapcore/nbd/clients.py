"""The clients of one server, and which of them want attention."""

from __future__ import annotations

import logging
from typing import Protocol

from tapcore.engine import Engine
from tapcore.engine.loop import Deadline
from tapcore.nbd.budget import Budget

log = logging.getLogger(__name__)


class Client(Protocol):
    """As much of a connection as its server knows.

    Attributes:
        deadline: it is closed when this passes, if there is one.
        engine: of the export chosen; None during the handshake.
        open: False once it is closed.
    """

    deadline: Deadline | None
    engine: Engine | None
    open: bool

    @property
    def busy(self) -> bool:
        """Whether the client is owed anything."""

    def service(self) -> bool:
        """Once after each batch; returns whether the engine has to have another turn."""

    def go_on(self) -> None:
        """Begin the next piece of what is done piece by piece."""

    def took_nothing(self, rounds: int) -> bool:
        """Whether it held memory with replies at the end of the last round too, and took none.

        Args:
            rounds: how many there were.
        """

    def check_deadline(self) -> None:
        """Close the connection if its moment has passed."""

    def hold_changed(self) -> None:
        """Its engine takes requests no more, or again: `Engine.held`."""

    def let_go_of_files(self) -> None:
        """Its engine's files are closed next; it is dropped where replies still lie in them."""

    def finish(self) -> None:
        """The server stops: take no more requests, answer those that were taken."""

    def drop(self) -> None:
        """Close now, whatever the client is owed."""


class Clients:
    """The connections of one server, and which of them want attention.

    Attributes:
        all: every open connection.
        budget: of their memory.
        dirty: something was received, or is to be sent.
        deadlines: those that are closed when a moment passes.
        unfinished: they have begun what is done piece by piece, one in each batch.
        alike: all of them have, so that nobody waits who wants little.
        soonest: no deadline passes before this is; None where there is none. That it may be too
            early is what makes it cheap: many clients that wait cost the others nothing.
    """

    __slots__ = ("alike", "all", "budget", "deadlines", "dirty", "soonest", "unfinished")

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.all: set[Client] = set()
        self.dirty: set[Client] = set()
        self.deadlines: set[Client] = set()
        self.unfinished: set[Client] = set()
        self.alike = False
        self.soonest: Deadline | None = None

    @property
    def impatient(self) -> bool:
        """Whether there is a deadline, or somebody waits for memory."""
        return self.soonest is not None or self.budget.patience is not None

    def forget(self, client: Client) -> None:
        """It is closed."""
        self.all.discard(client)
        self.dirty.discard(client)
        self.deadlines.discard(client)
        self.unfinished.discard(client)

    def set_deadline(self, client: Client, seconds: float) -> None:
        """It is closed if this passes before it has done what it has to do."""
        client.deadline = deadline = Deadline(seconds)
        self.deadlines.add(client)
        if self.soonest is None or deadline.left < self.soonest.left:
            self.soonest = deadline

    def end_deadline(self, client: Client) -> None:
        """It has done that in time."""
        client.deadline = None
        self.deadlines.discard(client)
        if not self.deadlines:
            self.soonest = None

    def hold_changed(self, engine: Engine) -> None:
        """It takes requests no more, or again."""
        for client in self._of(engine):
            client.hold_changed()

    def let_go_of_files(self, engine: Engine) -> None:
        """Its files are closed next."""
        for client in self._of(engine):
            client.let_go_of_files()

    def _of(self, engine: Engine) -> list[Client]:
        return [client for client in self.all if client.engine is engine]

    def go_on(self) -> None:
        """A batch begins: each may begin the next piece of what it has unfinished."""
        unfinished, self.unfinished = self.unfinished, set()
        self.alike = len(unfinished) == len(self.all)
        for client in unfinished:
            client.go_on()

    def check_memory(self) -> None:
        """Somebody waits for memory: who has some, and takes nothing, has to go."""
        if self.budget.out_of_patience():
            for client in list(self.all):
                if client.took_nothing(self.budget.rounds):
                    log.warning("a client was dropped: it took no replies while memory was short")
                    client.drop()

    def check_deadlines(self) -> None:
        """Close those whose moment has passed."""
        if self.soonest is None or not self.soonest.passed:
            return
        for client in list(self.deadlines):
            client.check_deadline()
        left = (c.deadline for c in self.deadlines if c.deadline is not None)
        self.soonest = min(left, key=lambda deadline: deadline.left, default=None)
