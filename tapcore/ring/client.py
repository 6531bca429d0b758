"""A front end as a process has it: connect to a back end's socket, read and write."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

from tapcore.errors import IOFailedError
from tapcore.ring.frontend import SECTOR, FrontEnd, Pending, succeeded
from tapcore.ring.frontring import FrontRing
from tapcore.ring.handshake import (
    MAX_LINE,
    Choice,
    HandshakeError,
    check_verdict,
    line_of,
    offer_of,
)
from tapcore.ring.shared import SharedRing
from tapcore.ring.wire import X86_64, Op, Protocol, Status

TIMEOUT: Final = 60.0
"""Seconds without any answer after which the back end counts as dead."""


class RingClient:
    """A front end of its own; a context manager.

    Args:
        path: of the back end's Unix socket.
        order: binary logarithm of the pages of the ring.
        data_pages: beside it, for the content of requests that are under way.
        protocol: how requests are laid out.
        timeout: seconds.

    Attributes:
        offer: what the back end said of the disk last.
        ring: the machine that publishes requests.
        front: the machine that makes them; whoever puts them there himself calls `wait`.

    Raises:
        OSError: nobody listens there.
        HandshakeError: who does is no back end, or does not want this ring.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        order: int = 0,
        data_pages: int = 352,
        protocol: Protocol = X86_64,
        timeout: float = TIMEOUT,
    ) -> None:
        self._timeout = timeout
        self._mapping: mmap.mmap | None = None
        self._kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(os.fspath(path))
            self._said = _Said(self._socket)
            self.offer = offer_of(self._said.wait())
            self.ring, self.front = self._send_ring(Choice(protocol.name, order, data_pages))
            check_verdict(self._said.wait())
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    def _send_ring(self, choice: Choice) -> tuple[FrontRing, FrontEnd]:
        memory = os.memfd_create("tapcore ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, choice.length)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._mapping = mmap.mmap(memory, choice.length, mmap.MAP_SHARED)
            self._view = view = memoryview(self._mapping)
            ring = FrontRing(SharedRing(view[: choice.ring_bytes], choice.protocol))
            front = FrontEnd(ring, view[choice.ring_bytes :], max_indirect=self.offer.max_indirect)
            socket.send_fds(self._socket, [line_of(choice)], [memory, self._kick, self._call])
        finally:
            os.close(memory)
        return ring, front

    def __enter__(self) -> RingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Go; what is under way is not waited for."""
        self._socket.close()
        if self._mapping is not None:
            self.front.memory.release()
            self.ring.shared.release()
            self._view.release()
            self._mapping.close()
            self._mapping = None
        kick, self._kick = self._kick, -1
        call, self._call = self._call, -1
        for fd in (kick, call):
            if fd >= 0:
                os.close(fd)

    @property
    def size(self) -> int:
        """Of the disk, in bytes; as the back end has told by now.

        Raises:
            HandshakeError: what it has told makes no sense.
        """
        self._hear()
        return self.offer.sectors * SECTOR

    def _hear(self) -> None:
        """What the back end tells while the ring is in use: that the disk is another."""
        for line in self._said.heard():
            self.offer = offer_of(line)

    # ---- whole ranges -----------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Whole sectors; any length.

        Raises:
            IOFailedError: the back end says that it failed, or has gone.
        """
        parts = self._parts(offset, length)
        return b"".join(self._run((n, partial(self.front.read, at, n)) for at, n in parts))

    def write(self, offset: int, content: bytes) -> None:
        """Whole sectors; any length. Raises as `read`."""
        view = memoryview(content)
        self._run(
            (n, partial(self.front.write, at, view[at - offset : at - offset + n]))
            for at, n in self._parts(offset, len(content))
        )

    def flush(self) -> None:
        """What was answered before is on disk when this returns. Raises as `read`."""
        self._run([(0, self.front.flush)])

    def barrier(self) -> None:
        """As `flush`, and what is queued before is done first. Raises as `read`."""
        self._run([(0, self.front.barrier)])

    def discard(self, offset: int, length: int) -> None:
        """Give up the content of whole sectors. Raises as `read`."""
        self._run([(0, partial(self.front.discard, offset, length))])

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        most, end = self.front.most, offset + length
        while offset < end:
            count = min(most, end - offset)
            yield offset, count
            offset += count

    def _run(self, requests: Iterable[tuple[int, Callable[[], Pending]]]) -> list[bytes]:
        """Have requests done, as many at a time as there is room for; what they have brought."""
        queued: deque[Pending] = deque()
        found: list[bytes] = []
        try:
            for length, put in requests:
                while not self.front.room_for(length):
                    if queued:
                        found.append(self.finish(queued.popleft()))
                    else:
                        self.wait()
                queued.append(put())
            while queued:
                found.append(self.finish(queued.popleft()))
        finally:
            for made in queued:  # one before it has failed
                with suppress(IOFailedError):
                    self.finish(made)
        return found

    # ---- many at a time ---------------------------------------------------------------------

    def kick(self) -> None:
        """Publish what was put into `front`, and tell the back end where it wants to be told."""
        if self.ring.push():
            with suppress(BlockingIOError):  # it was told often enough
                os.eventfd_write(self._kick, 1)

    def wait(self, more: int = 1) -> list[Pending]:
        """Publish what was put; wait until something is answered.

        Args:
            more: answers that are worth waking up for, at least 1, at most those that are awaited.

        Returns:
            Requests that were answered. Give each back with `front.done`, or by `finish`.

        Raises:
            IOFailedError: the back end has gone.
        """
        self.kick()
        while True:
            answered = self.front.answered()
            if answered:
                return answered
            if not self.ring.final_check(more):
                self.sleep()

    def finish(self, made: Pending) -> bytes:
        """Wait for one request; returns what a READ has brought.

        Raises:
            IOFailedError: it failed, or the back end has gone.
        """
        while made.status is None:
            self.wait()
        content = self.front.content(made) if made.operation == Op.READ else b""
        self.front.done(made)
        if not succeeded(made):
            name = Op(made.operation).name
            code = errno.EOPNOTSUPP if made.status == Status.EOPNOTSUPP else errno.EIO
            raise IOFailedError(f"{name} has failed ({made.status})", errno=code)
        return content

    def sleep(self) -> None:
        """Until the back end tells of an answer.

        Raises:
            IOFailedError: it has gone, or does not answer.
        """
        poll = select.poll()
        poll.register(self._call, select.POLLIN)
        poll.register(self._socket.fileno(), select.POLLIN)
        ready = [fd for fd, _ in poll.poll(self._timeout * 1000)]
        if self._call in ready:
            with suppress(BlockingIOError):
                os.eventfd_read(self._call)
        elif ready:
            self._hear()
            if self._said.over:
                raise IOFailedError("the back end has gone", errno=errno.ESHUTDOWN)
        else:
            raise IOFailedError("the back end does not answer", errno=errno.ETIMEDOUT)


class _Said:
    """What the back end says, line by line.

    Attributes:
        over: it says nothing any more.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._rest = b""
        self.over = False

    def wait(self) -> bytes:
        """The next line.

        Raises:
            HandshakeError: there is none.
            OSError: it does not come in time.
        """
        while (line := self._next()) is None:
            if self.over:
                raise HandshakeError("the back end said nothing")
            self._receive()
        return line

    def heard(self) -> Iterator[bytes]:
        """The lines that are there; the socket does not block."""
        while True:
            while (line := self._next()) is not None:
                yield line
            if self.over:
                return
            try:
                self._receive()
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.over = True

    def _receive(self) -> None:
        if len(self._rest) > MAX_LINE:
            raise HandshakeError("the back end said too much")
        part = self._socket.recv(MAX_LINE)
        self.over = not part
        self._rest += part

    def _next(self) -> bytes | None:
        line, end, rest = self._rest.partition(b"\n")
        if not end:
            return None
        self._rest = rest
        return line
