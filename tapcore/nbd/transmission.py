"""The transmission phase of one NBD connection: requests in, replies out, no sockets.

Everything received is parsed, handed to the engine, and answered in batches; the owner calls
`Engine.turn` between `received` and sending what is in `replies`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from tapcore.buffers import POOL
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, ZERO, MappedExtent, Request
from tapcore.errors import TapError, errno_of
from tapcore.nbd import constants as nbd
from tapcore.nbd.exports import Export
from tapcore.nbd.filespan import FileSpan
from tapcore.nbd.handshake import Negotiated
from tapcore.nbd.receive import Chunk, ReceiveBuffer
from tapcore.nbd.replies import Replies
from tapcore.nbd.status import block_status
from tapcore.nbd.streaming import StreamedWrite

MAX_HELD: Final = 32 << 20
"""Bytes of memory (buffers in use) and of replies waiting that one connection may have; beyond
it, nothing more is read from the client."""

MAX_IN_FLIGHT: Final = 1024
"""Requests of one connection under way."""

MAX_SKIPPED: Final = 64 << 20
"""A write longer than this is not even skipped: the connection is closed."""

SPAN_MIN: Final = 32 << 10
"""Reads from this size on are looked at for holes, and for data that can be sent from its file."""

STREAM_MIN: Final = 128 << 10
"""Writes from this size on are begun before all of their data has arrived."""

_HEADER: Final = nbd.REQUEST.size
_UNPACK: Final = nbd.REQUEST.unpack_from
_KNOWN_FLAGS: Final = {
    nbd.CMD_READ: nbd.CMD_FLAG_DF,
    nbd.CMD_WRITE: nbd.CMD_FLAG_FUA,
    nbd.CMD_FLUSH: nbd.CMD_FLAG_FUA,  # meaningless there, but harmless
    nbd.CMD_TRIM: nbd.CMD_FLAG_FUA,
    nbd.CMD_CACHE: 0,
    nbd.CMD_WRITE_ZEROES: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO,
    nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_REQ_ONE,
}


_ALWAYS: Final = (nbd.CMD_FLUSH, nbd.CMD_CACHE)


class NbdRequest(Request):
    """A request of the protocol.

    Attributes:
        cookie: the client's name for it.
        lease: the pool's buffer of a read.
        chunk: the receive buffer that holds a write's content.
        parts: the runs of a read that has holes.
    """

    __slots__ = ("chunk", "cookie", "lease", "parts")

    cookie: int
    lease: memoryview | None
    chunk: Chunk | None
    parts: list[MappedExtent] | None


class Transmission:
    """One client's requests.

    What it waits for can always still happen. Between two requests it stops reading at each of
    three limits: for requests that the engine has whole, and answers without this client; and for
    the client to take replies that it has asked for. Inside a request it stops for its memory
    alone: of that, what waits for this client is one buffer (a piece of a streamed write, or 32
    MiB for one that has to come whole), which never reaches MAX_HELD by itself; so the engine has
    the rest, and gives it back whatever else comes. A client that is in the middle of a request
    need not take any reply first.

    Args:
        export: the disk.
        negotiated: what the handshake agreed on.
        ready: called when there is something to be sent again, or to be read.
        initial: bytes that came after the handshake's last option.

    Attributes:
        replies: what is to be sent.
        in_flight: requests taken and not answered.
        held: bytes of buffers in use.
        stalled: parsing stopped because of a limit; call `resume` after something finished.
        finished: the client said goodbye, or broke the protocol: close when nothing is in flight.
        error: why, where it broke the protocol.
    """

    __slots__ = (
        "_context",
        "_export",
        "_gone",
        "_offered",
        "_read_only",
        "_ready",
        "_received",
        "_skip",
        "_stream",
        "engine",
        "error",
        "finished",
        "held",
        "in_flight",
        "replies",
        "stalled",
    )

    def __init__(
        self,
        export: Export,
        negotiated: Negotiated,
        ready: Callable[[], object],
        initial: bytes = b"",
    ) -> None:
        self._export = export
        self._ready = ready
        self.engine = export.engine
        self.replies = Replies(structured=negotiated.structured_replies, ready=ready)
        flags = int(negotiated.transmission_flags)  # an IntFlag would be slow to test
        self._read_only = bool(flags & nbd.TransmissionFlag.READ_ONLY)
        self._offered = set(_ALWAYS)
        if flags & nbd.TransmissionFlag.SEND_TRIM:
            self._offered.add(nbd.CMD_TRIM)
        if flags & nbd.TransmissionFlag.SEND_WRITE_ZEROES:
            self._offered.add(nbd.CMD_WRITE_ZEROES)
        if negotiated.contexts:
            self._offered.add(nbd.CMD_BLOCK_STATUS)
        self._context = next(iter(negotiated.contexts), None)
        self._received = ReceiveBuffer(initial)
        self._stream: StreamedWrite | None = None
        self._skip = 0
        self._gone = False
        self.in_flight = 0
        self.held = 0
        self.stalled = False
        self.finished = False
        self.error = ""
        if initial:
            self._parse()

    # ---- receiving --------------------------------------------------------------------------

    def space(self) -> memoryview:
        """Where the next bytes from the client go; tell `received` how many came."""
        if self._stream is not None:
            return self._stream.space()
        return self._received.space()

    def received(self, count: int) -> None:
        """`count` bytes have come into `space()`."""
        stream = self._stream
        if stream is not None:
            if stream.received(count):
                self._stream = None
            self._check_limits()
            return
        self._received.end += count
        self._parse()

    def resume(self) -> bool:
        """Something has finished: go on where a limit stopped the parsing, if it may.

        Returns:
            Whether the parsing went on, so that the engine has to have another turn. (It may have
            stopped at a limit again, with requests that no driver was told to submit yet.)
        """
        if not self.stalled or self._over_limit():
            return False
        self.stalled = False
        if self._stream is None:  # else more of its data has to come, and nothing is there to parse
            self._parse()
        return True

    def _over_limit(self) -> bool:
        if self._stream is not None:
            return self.held > MAX_HELD
        return (
            self.held > MAX_HELD
            or self.in_flight >= MAX_IN_FLIGHT
            or self.replies.queued - self.replies.sent > MAX_HELD
        )

    def _check_limits(self) -> None:
        self.stalled = self._over_limit()

    def _parse(self) -> None:
        """Take every complete request out of the receive buffer."""
        rx = self._received
        if self._skip:
            self._skip_payload()
        replies = self.replies
        full = replies.sent + MAX_HELD  # nothing is sent while this runs
        while rx.end - rx.start >= _HEADER and not self.finished:
            if self.held > MAX_HELD or self.in_flight >= MAX_IN_FLIGHT or replies.queued > full:
                self.stalled = True
                return
            start = rx.start
            magic, flags, command, cookie, offset, length = _UNPACK(rx.view, start)
            if magic != nbd.REQUEST_MAGIC:
                self._break_off("sent something that is not a request")
                return
            if command == nbd.CMD_READ:
                rx.start = start + _HEADER
                self._read(flags, cookie, offset, length)
            elif command == nbd.CMD_WRITE:
                if not self._write(flags, cookie, offset, length):
                    return
            else:
                rx.start = start + _HEADER
                self._other(command, flags, cookie, offset, length)
        if replies.queued > full and not self._skip:
            self.stalled = True

    def _break_off(self, why: str) -> None:
        self.error = why
        self.finished = True

    # ---- reads ------------------------------------------------------------------------------

    def _read(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if flags or length >= SPAN_MIN:
            if flags & ~nbd.CMD_FLAG_DF or length > nbd.DEFAULT_BLOCK_MAX:
                self.replies.error(cookie, nbd.NBD_EINVAL, "bad flags, or longer than 32 MiB")
                return
            if not flags and offset + length <= self.engine.size:
                parts = self._export.extents(offset, length)
                if parts is not None and self._answer_without_reading(cookie, offset, parts):
                    return
                self._queue_read(cookie, offset, length, parts)
                return
        self._queue_read(cookie, offset, length, None)

    def _queue_read(
        self, cookie: int, offset: int, length: int, parts: list[MappedExtent] | None
    ) -> None:
        if not length:
            self._read_nothing(cookie, offset)
            return
        lease = POOL.take(length)
        self.held += len(lease)
        self.in_flight += 1
        buf = lease if len(lease) == length else lease[:length]
        req = NbdRequest(READ, offset, length, buf, self._read_done)
        req.cookie = cookie
        req.lease = lease
        req.parts = parts
        self.engine.submit(req)

    def _read_nothing(self, cookie: int, offset: int) -> None:
        """A data chunk may not be empty, so a read of no bytes is answered without one."""
        if offset > self.engine.size:
            self._refuse(cookie, errno.EINVAL)
        else:
            self.replies.done(cookie)

    def _answer_without_reading(self, cookie: int, offset: int, parts: list[MappedExtent]) -> bool:
        """Where all is plain data in host files, or holes, no byte has to pass through here."""
        contents: list[tuple[int, int, FileSpan | None]] = []
        for part in parts:
            if part.kind == "zero":
                if not self.replies.structured:
                    return False
                contents.append((part.start, part.length, None))
                continue
            span = self._export.span(part)
            if span is None:
                return False
            contents.append((part.start, part.length, span))
        self._export.span_holders.add(self.replies)
        _, length, content = contents[0]
        if content is not None and len(contents) == 1:
            self.replies.data(cookie, offset, content, length)
            return True
        if not self.replies.structured:
            return False
        self.replies.pieces(cookie, contents)
        return True

    def _read_done(self, req: NbdRequest) -> None:
        self.in_flight -= 1
        lease = req.lease
        assert lease is not None
        assert req.buf is not None
        self.held -= len(lease)
        if req.status or self._gone:
            POOL.give(lease)
            self._error(req)
            return
        parts = req.parts
        if parts is None or not self.replies.structured or len(parts) == 1:
            self.replies.data(req.cookie, req.offset, req.buf, req.length, lease)
            return
        contents: list[tuple[int, int, memoryview | None]] = []
        for part in parts:
            at = part.start - req.offset
            content = None if part.kind == "zero" else req.buf[at : at + part.length]
            contents.append((part.start, part.length, content))
        self.replies.pieces(req.cookie, contents, lease)

    # ---- writes -----------------------------------------------------------------------------

    def _write(self, flags: int, cookie: int, offset: int, length: int) -> bool:
        """Take a write; returns False when more of its data has to arrive first."""
        rx = self._received
        body = rx.start + _HEADER
        available = rx.end - body
        problem = self._write_problem(flags, offset, length)
        if problem:
            if length > MAX_SKIPPED:
                self._break_off("sent a write that is longer than 64 MiB")
                return False
            rx.start = body
            self._skip = length
            self._refuse(cookie, problem)
            self._skip_payload()
            return not self._skip
        if available < length:
            if length < STREAM_MIN:
                return False
            return self._begin_stream(flags, cookie, offset, length, body)
        rx.start = body + length
        req = NbdRequest(WRITE, offset, length, rx.view[body : rx.start], self._write_done)
        req.cookie = cookie
        req.lease = None
        if flags:
            req.fua = bool(flags & nbd.CMD_FLAG_FUA)
        req.chunk = chunk = rx.chunk
        chunk.holds += 1
        self.held += length
        self.in_flight += 1
        self.engine.submit(req)
        return True

    def _write_problem(self, flags: int, offset: int, length: int) -> int:
        if flags & ~nbd.CMD_FLAG_FUA or length > nbd.DEFAULT_BLOCK_MAX:
            return errno.EINVAL
        if self._read_only:
            return errno.EPERM
        if offset + length > self.engine.size:
            return errno.ENOSPC
        return 0

    def _skip_payload(self) -> None:
        rx = self._received
        count = min(self._skip, rx.end - rx.start)
        rx.start += count
        self._skip -= count

    def _begin_stream(self, flags: int, cookie: int, offset: int, length: int, body: int) -> bool:
        """A long write whose end has not arrived yet: begin with what is there."""
        rx = self._received
        req = NbdRequest(WRITE, offset, length, None, self._stream_done)
        req.cookie = cookie
        req.fua = bool(flags & nbd.CMD_FLAG_FUA)
        req.chunk = None
        req.lease = None
        self._stream = stream = StreamedWrite(self.engine, req, self._hold)
        self.in_flight += 1
        rx.start = rx.end
        stream.begin(rx.view[body : rx.end])
        self._check_limits()
        return False

    def _hold(self, size: int) -> None:
        self.held += size
        if size < 0 and self.stalled:
            self._ready()  # nothing is to be sent, but more may be read

    def _write_done(self, req: NbdRequest) -> None:
        self.in_flight -= 1
        self.held -= req.length
        chunk = req.chunk
        assert chunk is not None
        chunk.holds -= 1
        if not chunk.holds and not chunk.current:
            POOL.give(chunk.view)
        if req.status:
            self._error(req)
        else:
            self.replies.done(req.cookie)

    def _stream_done(self, req: NbdRequest) -> None:
        self.in_flight -= 1
        if req.status:
            self._error(req)
        else:
            self.replies.done(req.cookie)

    # ---- everything else --------------------------------------------------------------------

    def _other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        if command == nbd.CMD_DISC:
            self.finished = True
            return
        if command not in self._offered or flags & ~_KNOWN_FLAGS[command]:
            writes = self._read_only and command in (nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES)
            self._refuse(cookie, errno.EPERM if writes else errno.EINVAL)
            return
        if command != nbd.CMD_FLUSH and offset + length > self.engine.size:
            # the specification wants ENOSPC of what writes, EINVAL of what does not
            self._refuse(cookie, errno.ENOSPC if command == nbd.CMD_WRITE_ZEROES else errno.EINVAL)
            return
        if command == nbd.CMD_BLOCK_STATUS:
            self._block_status(flags, cookie, offset, length)
            return
        if command == nbd.CMD_CACHE:
            self._export.prefetch(offset, length)
            self.replies.done(cookie)
            return
        self._queue_other(command, flags, cookie, offset, length)

    def _queue_other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        if command == nbd.CMD_FLUSH:
            op, offset, length = FLUSH, 0, 0
        else:
            op = DISCARD if command == nbd.CMD_TRIM else ZERO
            self._export.before_giving_up()
        req = NbdRequest(op, offset, length, None, self._stream_done)
        req.cookie = cookie
        req.fua = bool(flags & nbd.CMD_FLAG_FUA) and op != FLUSH
        req.may_unmap = not flags & nbd.CMD_FLAG_NO_HOLE
        req.fast = bool(flags & nbd.CMD_FLAG_FAST_ZERO)
        self.in_flight += 1
        self.engine.submit(req)

    def _block_status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        assert self._context is not None
        if not length:
            self._refuse(cookie, errno.EINVAL)
            return
        assert self._export.disk.disks is not None
        try:
            runs = block_status(
                self._export.disk.disks,
                offset,
                length,
                only_one=bool(flags & nbd.CMD_FLAG_REQ_ONE),
            )
        except (OSError, TapError) as exc:
            self._refuse(cookie, errno_of(exc))
            return
        self.replies.block_status(cookie, self._context, runs)

    def _error(self, req: NbdRequest) -> None:
        if not self._gone:
            self._refuse(req.cookie, -req.status)

    def _refuse(self, cookie: int, code: int) -> None:
        self.replies.error(cookie, nbd.nbd_errno(code), _TEXTS.get(code, ""))

    # ---- the end ----------------------------------------------------------------------------

    def finish(self) -> None:
        """Take no more requests; those taken are still answered."""
        self.finished = True
        self._abort_stream()  # the rest of its data will not be waited for

    def _abort_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and not stream.abort():
            self.in_flight -= 1

    def gone(self) -> None:
        """The connection is lost: nothing more comes, and nothing more can be sent."""
        self._gone = True
        self.finished = True
        self._abort_stream()
        self._received.close()
        self._export.span_holders.discard(self.replies)
        self.replies.discard()


_TEXTS: Final = {
    errno.EINVAL: "the request is not possible on this export",
    errno.ENOSPC: "no space, or past the end of the disk",
    errno.EPERM: "the export is read-only",
    errno.EROFS: "the export is read-only",
    errno.EIO: "input/output error",
    errno.EOPNOTSUPP: "not supported without writing zeroes",
}
