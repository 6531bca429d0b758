"""The daemon's side of the warm parent: orders disk processes, and hears of their birth."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final

import attrs

from tapcore.daemon.verbs import Later
from tapcore.engine.loop import Loop
from tapcore.errors import IOFailedError
from tapcore.process.timer import Timer

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 1.0
"""Until a warm parent that has died is started again."""

_MAX_MESSAGE: Final = 256 << 10
_MODULE: Final = "tapcore.daemon.warmparent"


@attrs.frozen
class Born:
    """A new process.

    Attributes:
        pid: its number.
        pidfd: readable at its end; belongs to who asked for the process.
    """

    pid: int
    pidfd: int


@attrs.define(eq=False)
class _Order:
    """Name and descriptors of a process that is to be, who waits for it, and what it lends."""

    name: str
    descriptors: tuple[int, ...]
    later: Later
    loan: Mapping[str, Any] | None = None
    born: Born | None = None


@attrs.define(eq=False)
class _Parent:
    """A warm parent that runs.

    Attributes:
        orders: what it was told and has not answered, by number.
        drivers: what it has found; None: it is not ready yet.
    """

    process: subprocess.Popen[bytes]
    socket: socket.socket
    orders: dict[int, _Order] = attrs.field(factory=dict)
    drivers: list[dict[str, Any]] | None = None


class Nursery:
    """Where disk processes come from.

    Args:
        loop: in which it hears of them.
        timer: of the same loop.
        log_path: of what the warm parent has to tell.
        level: of the logs.
        without: drivers that are left out.
    """

    def __init__(
        self, loop: Loop, timer: Timer, log_path: str, level: str, without: Sequence[str] = ()
    ) -> None:
        self._loop = loop
        self._timer = timer
        self._log_path = log_path
        self._level = level
        self._without = tuple(without)
        self._numbers = count(1)
        self._waiting: list[_Order] = []
        self._ready: _Parent | None = None
        self._coming: _Parent | None = None
        self._told: list[Later] = []
        self._closed = False
        self._start()

    @property
    def drivers(self) -> list[dict[str, Any]]:
        """Those that are known now."""
        return [] if self._ready is None else self._ready.drivers or []

    def is_single_handler(self, handle: str) -> bool:
        """Whether all disks of a driver share one process."""
        return any(each["handle"] == handle and each["single_handler"] for each in self.drivers)

    def when_ready(self, do: Callable[[], object]) -> None:
        """Call something once drivers are known, perhaps now."""
        if self._ready is not None:
            do()
            return
        later = Later()
        self._told.append(later)
        later.then(lambda result, error: do())

    def fork(
        self, name: str, descriptors: Sequence[int], loan: Mapping[str, Any] | None = None
    ) -> Later:
        """A new disk process, or a broker.

        Args:
            name: for people who look at processes.
            descriptors: its control socket, which listens (a broker's: to its disk process), and
                its log; they stay open here.
            loan: of a broker, with whether it is to be confined; None: a disk process.

        Returns:
            What gives a `Born`.
        """
        order = _Order(name, tuple(map(os.dup, descriptors)), Later(), loan)
        if self._ready is None:
            self._waiting.append(order)
        else:
            self._give(self._ready, order)
        return order.later

    def renew(self) -> Later:
        """Look for drivers again, in a new process; gives those that are known then.

        Disk processes that run go on; those that begin meanwhile come from the old one.
        """
        later = Later()
        self._told.append(later)
        if self._coming is not None:  # it may have looked before the change
            self._retire(self._coming)
        self._start()
        return later

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), self._level]
        log_file = os.open(
            self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            process = subprocess.Popen(
                [*words, *self._without],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        finally:
            os.close(log_file)
            theirs.close()
        ours.setblocking(False)
        self._coming = parent = _Parent(process, ours)
        self._loop.add(ours.fileno(), lambda _: self._hear(parent))

    def _give(self, parent: _Parent, order: _Order) -> None:
        number = next(self._numbers)
        parent.orders[number] = order
        told = {"number": number, "name": order.name, "loan": order.loan}
        message = json.dumps(told).encode()
        try:
            socket.send_fds(parent.socket, [message], order.descriptors)
        except OSError as exc:
            del parent.orders[number]
            _settle(order, error=exc)
            return
        for descriptor in order.descriptors:
            os.close(descriptor)
        order.descriptors = ()

    def _hear(self, parent: _Parent) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(
                parent.socket, _MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._lose(parent)
            return
        message = json.loads(data)
        if message["event"] == "ready":
            self._is_ready(parent, message["drivers"])
            return
        if message["event"] == "born":
            parent.orders[message["number"]].born = Born(message["pid"], descriptors[0])
            return
        order = parent.orders.pop(message["number"], None)
        if order is None:
            return
        if order.born is not None:  # and adopted: its end will be heard of
            order.later.answer(order.born)
        else:
            _settle(
                order, error=IOFailedError(f"no process can be started: {message.get('error')}")
            )

    def _is_ready(self, parent: _Parent, drivers: list[dict[str, Any]]) -> None:
        if parent is not self._coming:  # another was started since
            return
        if self._ready is not None:
            self._retire(self._ready)
        parent.drivers = drivers
        self._ready, self._coming = parent, None
        waiting, self._waiting = self._waiting, []
        for order in waiting:
            self._give(parent, order)
        told, self._told = self._told, []
        for later in told:
            later.answer(drivers)

    def _retire(self, parent: _Parent) -> None:
        """It ends when it has done what it was told."""
        parent.socket.shutdown(socket.SHUT_WR)

    def _lose(self, parent: _Parent) -> None:
        self._loop.remove(parent.socket.fileno())
        parent.socket.close()
        status = parent.process.wait()
        if self._closed:
            return
        for order in parent.orders.values():
            _settle(order, error=IOFailedError("the warm parent died; another attempt may do"))
        if parent is self._ready:
            self._ready = None
        elif parent is self._coming:
            self._coming = None
            self._fail(status)
        else:  # it was retired
            return
        log.error("the warm parent ended with status %d (%s)", status, self._log_path)
        if self._ready is None and self._coming is None:
            self._fail(status)
            self._timer.put(AGAIN_SECONDS, self._start_again)

    def _fail(self, status: int) -> None:
        """Who waits for drivers, or for a process that nobody can fork, waits in vain."""
        text = f"the warm parent ended with status {status} ({self._log_path})"
        told, self._told = self._told, []
        for later in told:
            later.fail(IOFailedError(text))
        if self._ready is None:
            waiting, self._waiting = self._waiting, []
            for order in waiting:
                _settle(order, error=IOFailedError(text))

    def _start_again(self) -> None:
        if not self._closed and self._ready is None and self._coming is None:
            self._start()

    def close(self) -> None:
        """No more processes; those that were begun go on."""
        self._closed = True
        for parent in {self._ready, self._coming} - {None}:
            assert parent is not None
            self._loop.remove(parent.socket.fileno())
            parent.socket.close()
            parent.process.wait()


def _settle(order: _Order, *, error: BaseException) -> None:
    if order.born is not None:
        os.close(order.born.pidfd)
    for descriptor in order.descriptors:
        os.close(descriptor)
    order.later.fail(error)
