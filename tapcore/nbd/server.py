"""The NBD server: a listening socket, its clients, and the disks behind them, in one loop."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Final, Protocol

from tapcore.engine import Engine
from tapcore.engine.loop import Deadline, Loop
from tapcore.errors import TapError
from tapcore.metrics.publishing import PUBLISH_SECONDS, Metrics
from tapcore.metrics.reading import Snapshot
from tapcore.nbd.beside import Beside
from tapcore.nbd.budget import BUDGET, Budget
from tapcore.nbd.clients import Clients
from tapcore.nbd.closing import GIVE_UP_SECONDS, Closing
from tapcore.nbd.connection import Connection
from tapcore.nbd.exports import Exports
from tapcore.nbd.listening import Address
from tapcore.nbd.polled import PolledDisk
from tapcore.nbd.reception import Reception
from tapcore.nbd.signals import ServerSignals
from tapcore.nbd.startstls import StartsTls
from tapcore.process.stopping import STOP_SIGNALS
from tapcore.process.watchdog import Watchdog

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 256

ASK_AGAIN_SECONDS: Final = 0.02
"""When who is asked may be busy with something of which no event tells."""

STOP_SECONDS: Final = 10.0
"""How long a stopping server waits for clients to take their replies."""


class Encryption(StartsTls, Protocol):
    """TLS for the clients of a server."""

    def reload(self) -> None:
        """Read certificates and keys again; does not raise."""

    def begin(self, loop: Loop) -> None:
        """Clients may come, in this loop."""

    def close(self) -> None:
        """All clients were dropped: wait for what is still done for them."""


class NbdServer:
    """Serves open disks until it is told to stop; owns them from then on.

    Args:
        exports: what to serve.
        address: where.
        signals: as `stop_on_signals` does; heard before there is a socket whose file they could
            leave behind. With TLS SIGHUP is not one of them: certificates are read again.
        encryption: TLS for clients; None: there is none.
        max_connections: clients at a time.
        idle_seconds: it stops when nobody was connected for so long; None: it does not.
        max_memory: bytes for the requests of all clients together.
        loop: of somebody else, who runs it, and in which others may be at work too; such a server
            has no `run` and no signals. None: one of its own.
        ended: told once when a server in somebody's loop has ended, after `stop`, and what went
            wrong then.
        metrics: of the exports that have meters; closed at the end. None: nothing is counted.

    Attributes:
        addresses: where it listens.
        beside: other front ends of its disks.
        may_close: asked, when it has stopped and nobody is owed anything, whether the disks may be
            closed; they are when all say so.

    Raises:
        TapError: the address cannot be used.
    """

    def __init__(
        self,
        exports: Exports,
        address: Address,
        *,
        signals: Iterable[int] = (),
        encryption: Encryption | None = None,
        max_connections: int = MAX_CONNECTIONS,
        idle_seconds: float | None = None,
        max_memory: int = BUDGET,
        loop: Loop | None = None,
        ended: Callable[[list[TapError]], object] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics
        self._batch = None if metrics is None else metrics.batch
        self._exports = exports
        self._engines = list({id(e.engine): e.engine for e in exports.all}.values())
        self._disks: list[PolledDisk] = []
        self._clients = Clients(Budget(max_memory))
        self._own_loop = loop is None
        self._loop = Loop() if loop is None else loop
        self._ended = ended
        self._reception = Reception()
        self._signals: ServerSignals | None = None
        self._watchdog = Watchdog(self._busy_disks, STOP_SECONDS, GIVE_UP_SECONDS)
        self._encryption = encryption
        if signals:
            self.stop_on_signals(signals)
        try:
            self._reception.listen(address)
        except BaseException:
            self._forget_signals()
            self._close_loop()
            raise
        self.addresses = self._reception.addresses
        self._idle_seconds = idle_seconds
        self._idle = None if idle_seconds is None else Deadline(idle_seconds)
        self._stopping: Deadline | None = None
        self.beside: list[Beside] = []
        self.may_close: list[Callable[[], bool]] = []
        self._reception.open(self._loop, self._clients, max_connections, self._welcome)
        self._timeouts = [partial(_timeout, engine) for engine in self._engines]
        self._join_loop()

    def _join_loop(self) -> None:
        loop = self._loop
        self._disks += [PolledDisk(loop, engine) for engine in self._engines]
        for engine in self._engines:
            engine.on_hold.append(partial(self._clients.hold_changed, engine))
        self._exports.begin(loop)
        if self._encryption is not None:
            self._encryption.begin(loop)
        loop.timeouts += [*self._timeouts, self._next_deadline]
        loop.after_batch.append(self._after_batch)
        if self._metrics is not None:
            self._metrics.begin(loop)

    @property
    def exports(self) -> Exports:
        """What it serves."""
        return self._exports

    @property
    def clients(self) -> int:
        """How many are connected, here or beside."""
        return len(self._clients.all) + sum(each.clients for each in self.beside)

    def uris(self) -> list[str]:
        """The NBD URI of each export, of each socket."""
        tls = self._encryption is not None
        names = [export.info.name for export in self._exports.all]
        return [address.uri(name, tls=tls) for address in self.addresses for name in names]

    @property
    def loop(self) -> Loop:
        """The poll set in which all of it runs."""
        return self._loop

    def polled(self, engine: Engine) -> PolledDisk:
        """The place of a disk in the poll set."""
        return next(each for each in self._disks if each.engine is engine)

    def let_go_of_files(self, engine: Engine) -> None:
        """The files of a disk are closed next: what lies in them is read out, or not sent."""
        engine.before_giving_up()
        self._clients.let_go_of_files(engine)

    def stop_on_signals(self, numbers: Iterable[int] = STOP_SIGNALS) -> None:
        """Stop cleanly at the first of these signals; a second one ends the process at once.

        From now on until `run` ends (main thread only).
        """
        reload = None if self._encryption is None else self._encryption.reload
        self._signals = ServerSignals(
            numbers, self._loop, stop=self.stop, soon=self._stop_soon, reload=reload
        )

    def renew_threads(self) -> None:
        """Let the thread that waits for signals be a new one, with the caller's rights by now."""
        if self._signals is not None:
            self._signals.renew_thread()

    @property
    def socket_files(self) -> tuple[str, ...]:
        """Paths of the sockets that it removes at its end."""
        own = [self._reception.place.path] if self._reception.place.path else []
        return (*own, *(path for each in self.beside for path in each.socket_files))

    def stop_when(self, fd: int) -> None:
        """Stop cleanly as soon as a descriptor is readable."""

        def stop(_: int) -> None:
            self._loop.remove(fd)
            self.stop()

        self._loop.add(fd, stop)

    def _stop_soon(self) -> None:
        """In whatever thread a signal was found, while the loop may be held up by a disk."""
        self._reception.place.remove()
        self._watchdog.start()

    def _busy_disks(self) -> str:
        """Whose driver is at work: in whatever thread, while the loop is inside of it."""
        busy = [each for each in self._disks if each.engine.in_flight]
        return ", ".join(each.name for each in busy or self._disks)

    def run(self) -> None:
        """Serve until stopped; then answer what is in flight, flush, and close the disks.

        Raises:
            TapError: the last flush, or closing, failed.
        """
        for uri in self.uris():
            log.info("serving %s", uri)
        try:
            self._loop.run()
        except BaseException:
            for disk in (*self._exports.views(), *self._disks):
                disk.engine.broken_off |= self._loop.broken_off
            for error in self._release():
                log.error("%s", error)
            raise
        errors = self._release()
        log.info("stopped")
        for error in errors[1:]:
            log.error("%s", error)
        if errors:
            raise errors[0]

    def stop(self) -> None:
        """Take no more clients and requests; `run` returns when all is answered."""
        if self._signals is not None:
            self._signals.taken()
        if self._stopping is not None:
            return
        self._watchdog.end_has_begun()
        log.info("stopping: clients get the answers that they are owed")
        self._stopping = Deadline(STOP_SECONDS)
        self._reception.leave()
        for connection in list(self._clients.all):
            connection.finish()
        for each in self.beside:
            each.stop()

    # ---- events -----------------------------------------------------------------------------

    def _welcome(self, sock: socket.socket) -> None:
        Connection(sock, self._exports, self._loop, self._clients, encryption=self._encryption)

    def _check_idle(self, seconds: float) -> None:
        """Stop where nobody was there for so long."""
        if self.clients:
            self._idle = None
        elif self._idle is None:
            self._idle = Deadline(seconds)
        elif self._idle.passed:
            log.info("nobody was connected for %g s", seconds)
            self.stop()

    def _after_batch(self) -> None:
        """The end of a batch: engines submit, clients are answered, until nothing is left."""
        clients, batch = self._clients, self._batch
        if clients.unfinished:
            clients.go_on()
        again, counted = True, not clients.dirty
        while again:
            for engine in self._engines:
                engine.turn()
            self._exports.turn()
            if batch is not None and batch.driven:
                batch.done = monotonic()
            dirty, clients.dirty = clients.dirty, set()
            for connection in dirty:
                if connection.open and connection.service():
                    clients.dirty.add(connection)
            if batch is not None and (batch.timed or batch.driven or batch.told):
                batch.count()
                counted = True
            if not clients.dirty and clients.impatient:
                clients.check_deadlines()
                clients.check_memory()
            # one client's request, or its end, may be what another waits for
            again = bool(clients.dirty) or self._exports.restless
        if counted and self._metrics is not None:
            self._metrics.publish_if_due()
        if self._idle_seconds is not None and self._stopping is None:
            self._check_idle(self._idle_seconds)
        if self._stopping is None:
            if self._reception.deaf is not None:
                self._reception.listen_again()
        elif self._stopping.passed or not self._busy:
            self._end_if_allowed()

    @property
    def _busy(self) -> bool:
        """Whether anybody is owed an answer."""
        return any(c.busy for c in self._clients.all) or any(each.busy for each in self.beside)

    def _end_if_allowed(self) -> None:
        if all(asked() for asked in self.may_close):
            self._loop.stop() if self._own_loop else self._leave()

    def _next_deadline(self) -> float | None:
        clients, stopping, idle = self._clients, self._stopping, self._idle
        deaf = self._reception.deaf
        if clients.unfinished:
            return 0.0
        unseen = self._batch is not None and self._batch.armed
        if stopping is None and deaf is None and idle is None and not clients.impatient:
            return PUBLISH_SECONDS if unseen else None  # nearly always
        if stopping is not None and not self._busy:
            return ASK_AGAIN_SECONDS if self.may_close else 0.0
        deadlines = (clients.soonest, stopping, deaf, idle, clients.budget.patience)
        left = [each.left for each in deadlines if each is not None]
        return min(left + [PUBLISH_SECONDS] * unseen)

    # ---- the end ----------------------------------------------------------------------------

    def _let_go(self) -> Closing:
        """Nobody is served any more."""
        self._stopping = self._stopping or Deadline(0.0)
        for connection in list(self._clients.all):
            connection.drop()
        if self._encryption is not None:
            self._encryption.close()
        for each in self.beside:
            each.close()
        loop = self._loop
        loop.timeouts = [each for each in loop.timeouts if each != self._next_deadline]
        loop.after_batch = [each for each in loop.after_batch if each != self._after_batch]
        self._reception.close()
        return Closing(loop, self._disks, self._exports.views())

    def _release(self) -> list[TapError]:
        """Close everything; returns what went wrong."""
        errors = self._let_go().run(STOP_SECONDS)
        errors += self._exports.finish()
        self._close_metrics()
        self._close_loop()
        self._forget_signals()
        return errors

    def _leave(self) -> None:
        """As `_release`, while the loop goes on for others."""
        self._let_go().begin(STOP_SECONDS, self._left)

    def _left(self, errors: list[TapError]) -> None:
        timeouts = [each for each in self._loop.timeouts if each not in self._timeouts]
        self._loop.timeouts = timeouts
        errors = errors + self._exports.finish()
        self._close_metrics()
        if self._ended is not None:
            self._ended(errors)

    def counts(self) -> Snapshot | None:
        """What was counted of its only disk, up to now; None: nothing is."""
        return None if self._metrics is None else self._metrics.snapshots()[0]

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def _close_loop(self) -> None:
        if self._own_loop:
            self._loop.close()

    def _forget_signals(self) -> None:
        if self._signals is not None:
            self._signals.close()


def _timeout(engine: Engine) -> float | None:
    return engine.timeout
