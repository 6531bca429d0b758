"""A front end at the other end of a Unix socket: its handshake, its kicks, its end."""

from __future__ import annotations

import array
import logging
import os
import select
import socket
from contextlib import suppress
from typing import Final, Protocol

from tapcore.engine import Engine
from tapcore.engine.loop import IN, NOTHING_TO_DO, Deadline, Loop
from tapcore.errors import printable
from tapcore.metrics.meter import Meter
from tapcore.ring.backend import BackEnd
from tapcore.ring.backring import BackRing
from tapcore.ring.descriptors import UnusableError, close_strangers, map_memory
from tapcore.ring.grants import DataPages
from tapcore.ring.handshake import (
    CONNECTED,
    DESCRIPTORS,
    MAX_LINE,
    Choice,
    HandshakeError,
    Offer,
    Verdict,
    choice_of,
    line_of,
)
from tapcore.ring.notifying import Bell, Notifier
from tapcore.ring.shared import RingBrokenError, SharedRing

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
"""A front end that has not sent its ring by then is dropped."""

_ROOM_FOR_DESCRIPTORS: Final = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)

_KICKS: Final = IN | select.EPOLLET
"""Each kick is an event of its own, and the counter is never read: nobody can make that wait."""


class Owner(Protocol):
    """The server of such connections."""

    @property
    def engine(self) -> Engine: ...

    @property
    def meter(self) -> Meter | None: ...

    def offer(self) -> Offer:
        """What a new front end is told of the disk."""

    def ready(self, connection: Connection) -> object:
        """It has something to do after this batch."""

    def left(self, connection: Connection) -> object:
        """It is over."""


class Connection:
    """One front end.

    Args:
        sock: accepted, to be closed with the connection.
        loop: the poll set.
        owner: the server.
        notifier: to tell through its eventfd.

    Attributes:
        back: its ring; None during the handshake.
        deadline: of the handshake.
    """

    def __init__(self, sock: socket.socket, loop: Loop, owner: Owner, notifier: Notifier) -> None:
        self._socket = sock
        self._loop = loop
        self._owner = owner
        self._notifier = notifier
        self._line = b""
        self._fds: list[int] = []
        self._kick = self._call = -1
        self._bell: Bell | None = None
        self._finishing = False
        self.back: BackEnd | None = None
        self.deadline: Deadline | None = Deadline(HANDSHAKE_SECONDS)
        self._offer = owner.offer()
        sock.setblocking(False)
        loop.add(sock.fileno(), self._heard)
        loop.served += 1
        self._say(line_of(self._offer))

    # ---- the socket -------------------------------------------------------------------------

    def _heard(self, _: int) -> None:
        try:
            if self.back is not None:
                self._hear_nothing()
            else:
                self._hear_choice()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self.drop(f"connection lost: {exc.strerror}")
        except (HandshakeError, UnusableError) as exc:
            self._say(line_of(Verdict(str(exc))))
            self.drop(str(exc))

    def _hear_nothing(self) -> None:
        """Afterwards the socket only tells when the front end goes."""
        if self._socket.recv(1):
            self.drop("it sent something after the handshake")
        else:
            self.drop()

    def _hear_choice(self) -> None:
        flags = socket.MSG_CMSG_CLOEXEC
        line, ancillary, told, _ = self._socket.recvmsg(
            MAX_LINE - len(self._line), _ROOM_FOR_DESCRIPTORS, flags
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds += fds
        if told & socket.MSG_CTRUNC or len(self._fds) > DESCRIPTORS:
            raise HandshakeError(f"there are {DESCRIPTORS} descriptors, not more")
        if not line:
            self.drop()
            return
        self._line += line
        if self._line.endswith(b"\n"):
            self._connect(choice_of(self._line))
        elif b"\n" in self._line or len(self._line) >= MAX_LINE:
            raise HandshakeError(f"there is one line, of {MAX_LINE} bytes at most")

    def _say(self, line: bytes) -> bool:
        """A line is short: the socket has room for it, if the front end is there and hears."""
        with suppress(OSError):
            sent = self._socket.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return sent == len(line)
        return False

    # ---- the ring ---------------------------------------------------------------------------

    def _connect(self, choice: Choice) -> None:
        if len(self._fds) != DESCRIPTORS:
            raise HandshakeError(f"there are {DESCRIPTORS} descriptors, not {len(self._fds)}")
        memory, kick, call = self._fds
        view = map_memory(memory, choice.length)
        for fd in (kick, call):
            self._bell = self._checked_bell(fd)
        offer = self._offer
        self.back = BackEnd(
            self._owner.engine,
            BackRing(SharedRing(view[: choice.ring_bytes], choice.protocol)),
            DataPages(view[choice.ring_bytes :]),
            read_only=offer.read_only,
            max_indirect=offer.max_indirect,
            meter=self._owner.meter,
            ready=self._mark,
        )
        self._fds = []
        os.close(memory)
        self._kick, self._call = kick, call
        self._loop.add(kick, self._kicked, _KICKS)
        self.deadline = None
        self._say(line_of(CONNECTED))
        self.tell_of_change()  # since the offer was made
        self._mark()

    def tell_of_change(self) -> None:
        """The disk may have another size by now: a front end that is connected hears of it."""
        offer = self._owner.offer()
        if self.back is not None and offer != self._offer:
            self._offer = offer
            if not self._say(line_of(offer)):
                self.drop("it does not hear that the disk is another")

    def _checked_bell(self, fd: int) -> Bell:
        """The kernel is asked whether it is an eventfd by having it told through it."""
        bell = self._notifier.bell(fd)
        try:
            bell()
        except OSError:
            raise UnusableError("the second and the third descriptor are eventfds") from None
        return bell

    def _kicked(self, _: int) -> object:
        """What the lane can do is done here; where that was all, the batch needs no end."""
        back = self.back
        if back is None or back.busy or back.engine.held or self._finishing or self.work():
            self._mark()
            return None
        return NOTHING_TO_DO if self.back is back and back.concerns_nobody else None

    def _mark(self) -> None:
        self._owner.ready(self)

    def work(self) -> bool:
        """After a batch: take and answer; returns whether to come again at once."""
        back, bell = self.back, self._bell
        if back is None or bell is None or back.gone:
            return False
        try:
            more = back.work(bell)
        except RingBrokenError as exc:
            log.error("front end dropped: %s", str(exc))  # without its frames, and their memory
            self.drop()
            return False
        except Exception:  # a bug, of ours or of a driver; it costs this front end, and nobody else
            log.exception("front end dropped: its request could not be handled")
            self.drop()
            return False
        if self._finishing and not back.busy:
            self.drop()
            return False
        return more

    # ---- the end ----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the front end is owed anything."""
        return self.back is not None and self.back.busy

    def finish(self) -> None:
        """Take nothing more; answer what was taken, and go."""
        back = self.back
        if back is None or not back.busy:
            self.drop()
            return
        back.stopped = self._finishing = True
        self._mark()

    def drop(self, why: str = "") -> None:
        """Close now, whatever the front end is owed."""
        if self._socket.fileno() < 0:
            return
        if why:
            log.info("front end dropped: %s", printable(why, limit=200))
        self._loop.remove(self._socket.fileno())
        self._loop.served -= 1
        self._socket.close()
        fds, self._fds = self._fds, []
        close_strangers(fds)
        back, self.back, self._bell = self.back, None, None
        if back is not None:
            self._loop.remove(self._kick)
            os.close(self._kick)
            os.close(self._call)
            back.leave()
        self._owner.left(self)
