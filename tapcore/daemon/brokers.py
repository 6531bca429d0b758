"""The daemon's side of brokers: ordered for one change of a disk, and ended after it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

import attrs

from tapcore.daemon.loan import Loan
from tapcore.daemon.nursery import Born, Nursery
from tapcore.daemon.rundir import RunDirectory
from tapcore.daemon.verbs import Later
from tapcore.engine.loop import Loop

log = logging.getLogger(__name__)

_MOST_TOLD: Final = 1 << 20


@attrs.define(eq=False)
class Broker:
    """A broker that runs.

    Attributes:
        pid: its number.
        pidfd: readable at its end; -1: it has ended.
        theirs: the end that goes to the disk process; -1: it has gone there.
        ear: where it tells what it has found.
        own: of each image of its loan, the files that are written; as far as it has told.
    """

    pid: int
    pidfd: int
    theirs: int
    ear: socket.socket
    own: dict[str, Any] = attrs.field(factory=dict)

    def hear(self) -> None:
        """Take what it has told."""
        with suppress(OSError, ValueError):
            while told := self.ear.recv(_MOST_TOLD):
                found = json.loads(told)
                self.own |= found if isinstance(found, dict) else {}

    def give(self) -> None:
        """The disk process has its end of the socket, or will not get it."""
        sock, self.theirs = self.theirs, -1
        if sock >= 0:
            os.close(sock)

    def end(self) -> None:
        """It is not needed any more, whatever the disk process thinks."""
        self.give()
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Brokers:
    """All of them.

    Args:
        loop: in which they are watched.
        place: where logs lie.
        nursery: where they come from.
        confined: each gives up what it does not need.
    """

    def __init__(
        self, loop: Loop, place: RunDirectory, nursery: Nursery, *, confined: bool
    ) -> None:
        self._loop = loop
        self._place = place
        self._nursery = nursery
        self._confined = confined
        self._all: set[Broker] = set()

    def order(self, process: str, loan: Loan) -> Later:
        """A `Broker` for the process of a name; it ends by itself when that has closed its socket.

        Raises:
            OSError: there can be none.
        """
        told = {"of": loan.as_dict(), "confined": self._confined}
        later = Later()
        with ExitStack() as ends:
            log_file = self._place.open_log(process)
            ends.callback(os.close, log_file)
            ours, theirs = (ends.enter_context(end) for end in _pair())
            ear, mouth = (ends.enter_context(end) for end in _pair())
            ear.setblocking(False)
            descriptors = (theirs.fileno(), log_file, mouth.fileno())
            forked = self._nursery.fork(f"broker {process}", descriptors, told)
            kept = ours.dup(), ear.dup()

        def born(found: Born | None, error: BaseException | None) -> None:
            disk_side, ear = kept
            if found is None:
                disk_side.close()
                ear.close()
                later.fail(error or OSError())
                return
            broker = Broker(found.pid, found.pidfd, disk_side.detach(), ear)
            self._all.add(broker)
            self._loop.add(found.pidfd, partial(self._ended, broker))
            later.answer(broker)

        forked.then(born)
        return later

    def _ended(self, broker: Broker, _: int) -> None:
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, broker.pidfd, os.WEXITED | os.WNOHANG)
        self._forget(broker)

    def _forget(self, broker: Broker) -> None:
        self._all.discard(broker)
        self._loop.remove(broker.pidfd)
        os.close(broker.pidfd)
        broker.pidfd = -1
        broker.give()
        broker.hear()
        broker.ear.close()

    def close(self) -> None:
        """The daemon ends; those that lend go on as long as they are needed."""
        for broker in list(self._all):
            self._forget(broker)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
