"""The rings of one disk: a listening Unix socket and its front ends, in somebody's loop."""

from __future__ import annotations

import logging
import socket
from typing import Final, Protocol

from tapcore.constants import VDISK_READONLY
from tapcore.engine import Engine
from tapcore.engine.loop import IN, Deadline, Loop
from tapcore.errors import NotSupportedError
from tapcore.metrics.meter import Meter
from tapcore.ring.backend import MAX_INDIRECT
from tapcore.ring.connection import Connection
from tapcore.ring.handshake import Offer
from tapcore.ring.notifying import Notifier

log = logging.getLogger(__name__)

MAX_RINGS: Final = 16
"""Front ends at a time. One more is refused."""

DEAF_SECONDS: Final = 1.0
"""How long nobody is accepted after that failed (there are no descriptors left, say)."""


class SocketFile(Protocol):
    """The file of the listening socket."""

    @property
    def path(self) -> str: ...

    def remove(self) -> None: ...


class RingServer:
    """Serves an open disk to front ends, in a loop in which its descriptors are polled, too.

    While the engine is held (`Engine.hold`) nothing is taken from the rings.

    Args:
        engine: of the disk.
        loop: the poll set.
        listener: a Unix stream socket that listens; closed at the end.
        place: the listener's file, removed when nobody may come any more; None: it is not ours.
        read_only: front ends may not write, even where the disk can be written.
        max_rings: front ends at a time.
        meter: counts their requests; None: nobody does.

    Attributes:
        engine: as given.
        meter: as given.
        connections: front ends.

    Raises:
        NotSupportedError: the kernel lacks what is needed; the listener stays the caller's.
    """

    def __init__(
        self,
        engine: Engine,
        loop: Loop,
        listener: socket.socket,
        *,
        place: SocketFile | None = None,
        read_only: bool = False,
        max_rings: int = MAX_RINGS,
        meter: Meter | None = None,
    ) -> None:
        try:
            self._notifier = Notifier()
        except OSError as exc:
            text = f"a ring needs the kernel's asynchronous I/O: {exc.strerror}"
            raise NotSupportedError(text) from None
        self.engine = engine
        self.meter = meter
        self.connections: list[Connection] = []
        self._loop = loop
        self._place = place
        self._listener = listener
        self._read_only = read_only
        self._max_rings = max_rings
        self._dirty: set[Connection] = set()
        self._greeting: set[Connection] = set()  # those in the handshake, and some past it
        self._deaf: Deadline | None = None
        self._stopped = self._closed = False
        listener.setblocking(False)
        loop.add(listener.fileno(), self._accept)
        loop.after_batch.append(self._after_batch)
        loop.timeouts.append(self._next_deadline)
        engine.on_hold.append(self._hold_changed)
        engine.disk.ring_info = self

    # ---- for connections --------------------------------------------------------------------

    def offer(self) -> Offer:
        """See `Owner`."""
        engine, dd = self.engine, self.engine.disk.disks
        read_only = self._read_only or engine.read_only
        return Offer(
            sectors=dd.size,
            sector_size=dd.sector_size,
            info=dd.info | (VDISK_READONLY if read_only else 0),
            mode="r" if read_only else "w",
            flush=1,
            barrier=1,
            discard=int(not read_only),
            discard_granularity=dd.cluster_size or dd.sector_size,
            max_indirect=MAX_INDIRECT,
        )

    def ready(self, connection: Connection) -> None:
        """See `Owner`."""
        self._dirty.add(connection)

    def left(self, connection: Connection) -> None:
        """See `Owner`."""
        self._dirty.discard(connection)
        self._greeting.discard(connection)
        self.connections.remove(connection)

    # ---- events -----------------------------------------------------------------------------

    def _accept(self, _: int) -> None:
        try:
            sock, _peer = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as exc:
            log.warning("a front end could not be accepted: %s", exc.strerror)
            self._deaf = Deadline(DEAF_SECONDS)
            self._loop.modify(self._listener.fileno(), 0)
            return
        if len(self.connections) >= self._max_rings:
            log.warning("a front end was refused: there are %d already", self._max_rings)
            sock.close()
            return
        connection = Connection(sock, self._loop, self, self._notifier)
        self.connections.append(connection)
        self._greeting.add(connection)

    def _after_batch(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for connection in dirty:
            if connection.work():
                self._dirty.add(connection)
        if self._greeting:
            self._drop_silent()
        if self._deaf is not None and self._deaf.passed and not self._stopped:
            self._deaf = None
            self._loop.modify(self._listener.fileno(), IN)

    def _drop_silent(self) -> None:
        """Whoever takes too long with the handshake."""
        self._greeting = {each for each in self._greeting if each.deadline is not None}
        for connection in list(self._greeting):
            if connection.deadline is not None and connection.deadline.passed:
                connection.drop("sent no ring in time")

    def _next_deadline(self) -> float | None:
        if self._dirty:
            return 0.0
        if not self._greeting and self._deaf is None:
            return None
        deadlines = [each.deadline for each in self._greeting] + [self._deaf]
        return min((each.left for each in deadlines if each is not None), default=None)

    def _hold_changed(self) -> None:
        self._dirty.update(self.connections)
        if not self.engine.held:
            for connection in list(self.connections):
                connection.tell_of_change()

    # ---- the end ----------------------------------------------------------------------------

    @property
    def clients(self) -> int:
        """How many front ends are connected."""
        return len(self.connections)

    @property
    def socket_files(self) -> tuple[str, ...]:
        """Paths of the sockets that are removed at the end."""
        return (self._place.path,) if self._place is not None and self._place.path else ()

    @property
    def busy(self) -> bool:
        """Whether a front end is owed anything that was taken."""
        return any(connection.busy for connection in self.connections)

    def stop(self) -> None:
        """Take no more front ends and requests; each goes when what was taken is answered."""
        if self._stopped:
            return
        self._stopped = True
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        if self._place is not None:
            self._place.remove()
        for connection in list(self.connections):
            connection.finish()

    def close(self) -> None:
        """Drop whoever is still there; what the engine has in hand it goes on with."""
        self.stop()
        for connection in list(self.connections):
            connection.drop()
        if self._closed:
            return
        self._closed = True
        loop = self._loop
        loop.after_batch = [each for each in loop.after_batch if each != self._after_batch]
        loop.timeouts = [each for each in loop.timeouts if each != self._next_deadline]
        self.engine.on_hold.remove(self._hold_changed)
        self.engine.disk.ring_info = None
        self._notifier.close()
