"""A small NBD client for tests: requests as bytes, replies taken apart, nothing hidden.

It spells the protocol with struct formats of its own, so that a wrong constant in the code is not
repeated here, and it checks what a server may never do: answer twice, leave a gap in a read, send
a chunk that belongs to nothing.
"""

import itertools
import socket
import ssl
import struct
from collections.abc import Callable
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))
EPERM, EIO, EINVAL, ENOSPC, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 95, 108
HAS_FLAGS, IS_READ_ONLY, MULTI_CONN = 1, 2, 1 << 8

_SIMPLE = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_EXTENDED = struct.Struct(">IHHQQQ")
_SIMPLE_MAGIC, _CHUNK_MAGIC, _EXTENDED_MAGIC = 0x67446698, 0x668E33EF, 0x6E8A278C


class NbdError(Exception):
    """The server answered with an error value."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def request(
    command: int,
    cookie: int,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    payload: bytes = b"",
    extended: bool = False,
) -> bytes:
    """One request as a client sends it; with extended headers a payload has its flag."""
    if extended:
        flags |= PAYLOAD_LEN if payload else 0
        head = struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
        return head + payload
    head = struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)
    return head + payload


def option(number: int, data: bytes = b"") -> bytes:
    """One option of the handshake."""
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def wanted_contexts(length: int, *numbers: int) -> bytes:
    """The payload of a BLOCK_STATUS that asks for some contexts alone."""
    return struct.pack(f">Q{len(numbers)}I", length, *numbers)


def hello(
    export: str = "", *, structured: bool = True, contexts: bool = True, extended: bool = False
) -> bytes:
    """All that a client has to send before its first request."""
    name = export.encode()
    named = struct.pack(">I", len(name)) + name
    sent = struct.pack(">I", 3)
    if structured or extended:
        sent += option(11 if extended else 8)
        if contexts:
            query = b"base:allocation"
            sent += option(10, named + struct.pack(">II", 1, len(query)) + query)
    return sent + option(7, named + struct.pack(">H", 0))


@attrs.define
class Answer:
    """What came back for one request.

    Attributes:
        pieces: of a read: (offset, content), or (offset, length) of a hole.
        statuses: of a block status request, by context: (length, flags) of each run.
    """

    error: int = 0
    message: str = ""
    pieces: list[tuple[int, bytes | int]] = attrs.field(factory=list)
    statuses: dict[int, list[tuple[int, int]]] = attrs.field(factory=dict)
    done: bool = False

    @property
    def runs(self) -> list[tuple[int, int]]:
        """What the only context says."""
        assert len(self.statuses) <= 1
        return next(iter(self.statuses.values()), [])

    def content(self, offset: int, length: int) -> bytes:
        """The whole of a read; there may be no gaps and no overlaps."""
        out = b""
        for at, piece in sorted(self.pieces, key=lambda each: each[0]):
            assert at == offset + len(out), "a gap or an overlap"
            out += bytes(piece) if isinstance(piece, int) else piece
        assert len(out) == length
        return out


class ReplyParser:
    """Bytes in, answers out.

    Args:
        structured: what was negotiated.
        extended: the same of extended headers.

    Attributes:
        waiting: cookie -> (offset, length) of each read (None: no read) without an answer yet.
        asked: cookie -> the offset of each request without an answer yet.
        answers: cookie -> what came.
    """

    def __init__(self, *, structured: bool, extended: bool = False) -> None:
        self.structured = structured
        self.extended = extended
        self.waiting: dict[int, tuple[int, int] | None] = {}
        self.asked: dict[int, int] = {}
        self.answers: dict[int, Answer] = {}
        self.order: list[int] = []
        self._in = bytearray()

    def expect(self, command: int, cookie: int, offset: int, length: int) -> None:
        """A request is about to be sent."""
        assert cookie not in self.waiting
        self.waiting[cookie] = (offset, length) if command == READ else None
        self.asked[cookie] = offset
        self.answers[cookie] = Answer()

    def feed(self, data: bytes | memoryview) -> None:
        """Take any number of bytes."""
        self._in += data
        at = 0
        view = bytes(self._in)
        while (size := self._one(view, at)) is not None:
            at += size
        del self._in[:at]

    @property
    def idle(self) -> bool:
        """Everything is answered, and nothing is left over."""
        return not self.waiting and not self._in

    def _one(self, data: bytes, at: int) -> int | None:
        if len(data) - at < 4:
            return None
        (magic,) = struct.unpack_from(">I", data, at)
        if self.extended:
            assert magic == _EXTENDED_MAGIC, f"{magic:#x} with extended headers"
            return self._extended_chunk(data, at)
        if magic == _CHUNK_MAGIC:
            assert self.structured
            return self._chunk(data, at)
        assert magic == _SIMPLE_MAGIC, f"{magic:#x} is no reply"
        if len(data) - at < _SIMPLE.size:
            return None
        _, error, cookie = _SIMPLE.unpack_from(data, at)
        wanted = self.waiting[cookie]
        size = _SIMPLE.size
        assert not (wanted and self.structured), "a read has to be answered in chunks"
        if wanted is not None and not error:
            if len(data) - at < size + wanted[1]:
                return None
            content = data[at + size : at + size + wanted[1]]
            self.answers[cookie].pieces.append((wanted[0], content))
            size += wanted[1]
        self.answers[cookie].error = error
        self._finish(cookie)
        return size

    def _chunk(self, data: bytes, at: int) -> int | None:
        if len(data) - at < _CHUNK.size:
            return None
        _, flags, kind, cookie, length = _CHUNK.unpack_from(data, at)
        if len(data) - at < _CHUNK.size + length:
            return None
        at += _CHUNK.size
        self._take(flags, kind, cookie, data[at : at + length])
        return _CHUNK.size + int(length)

    def _extended_chunk(self, data: bytes, at: int) -> int | None:
        if len(data) - at < _EXTENDED.size:
            return None
        _, flags, kind, cookie, offset, length = _EXTENDED.unpack_from(data, at)
        assert offset == self.asked[cookie], "the offset is not the request's"
        if len(data) - at < _EXTENDED.size + length:
            return None
        at += _EXTENDED.size
        self._take(flags, kind, cookie, data[at : at + length])
        return _EXTENDED.size + int(length)

    def _take(self, flags: int, kind: int, cookie: int, body: bytes) -> None:
        answer, length = self.answers[cookie], len(body)
        assert flags in (0, 1), "a flag that nobody knows"
        assert cookie in self.waiting, "answered twice"
        if kind == 1:
            assert length > 8, "an empty data chunk is not allowed"
            answer.pieces.append((struct.unpack_from(">Q", body)[0], body[8:]))
        elif kind == 2:
            offset, count = struct.unpack(">QI", body)
            assert count
            answer.pieces.append((offset, count))
        elif kind in (5, 6):
            assert (kind == 6) == self.extended, "the other kind of block status"
            self._take_status(answer, body)
        elif kind == (1 << 15) + 1:
            answer.error, count = struct.unpack_from(">IH", body)
            answer.message = body[6:].decode()
            assert (len(body), answer.error != 0) == (6 + count, True)
        else:
            assert (kind, length, flags & 1) == (0, 0, 1), f"chunk {kind} of {length} bytes"
        if flags & 1:
            self._finish(cookie)

    def _take_status(self, answer: Answer, body: bytes) -> None:
        (context,) = struct.unpack_from(">I", body)
        assert context not in answer.statuses, "one context answered twice"
        form, start = (">QQ", 8) if self.extended else (">II", 4)
        runs = list(struct.iter_unpack(form, body[start:]))
        assert runs
        assert not self.extended or struct.unpack_from(">4xI", body) == (len(runs),)
        assert all(length and flags < 1 << 32 for length, flags in runs)
        answer.statuses[context] = [(length, flags) for length, flags in runs]

    def _finish(self, cookie: int) -> None:
        wanted = self.waiting.pop(cookie)
        del self.asked[cookie]
        answer = self.answers[cookie]
        answer.done = True
        self.order.append(cookie)
        if wanted is not None and not answer.error:
            answer.content(*wanted)


def connect(uri: str, timeout: float = 60.0) -> socket.socket:
    """A socket to where an NBD URI points; nothing is sent."""
    where = urlsplit(uri)
    if where.scheme.endswith("+unix"):
        sock = socket.socket(socket.AF_UNIX)
        address: str | tuple[str, int] = parse_qs(where.query)["socket"][0]
    else:
        sock = socket.socket()
        assert where.hostname is not None
        address = where.hostname, where.port or 10809
    try:
        sock.connect(address)  # without a timeout: on a Unix socket it would not wait its turn
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


class Client:
    """A connection past its handshake.

    Args:
        uri: of an export.
        structured: ask for structured replies.
        extended: ask for extended headers instead.
        contexts: ask for base:allocation.
        timeout: of each wait, seconds.
        tls: begin with STARTTLS.

    Attributes:
        size: of the export.
        flags: that the server told.
    """

    def __init__(
        self,
        uri: str,
        *,
        structured: bool = True,
        extended: bool = False,
        contexts: bool = True,
        timeout: float = 60.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.sock = connect(uri, timeout)
        self._tls = tls
        self.parser = ReplyParser(structured=structured, extended=extended)
        self.size = self.flags = -1
        self._cookies = itertools.count(1)
        try:
            export = unquote(urlsplit(uri).path[1:])
            self._shake_hands(
                hello(export, structured=structured, contexts=contexts, extended=extended)
            )
        except BaseException:
            self.sock.close()
            raise

    def _shake_hands(self, sent: bytes) -> None:
        greeting = self.exactly(18)
        assert greeting == b"NBDMAGICIHAVEOPT\x00\x03"
        if self._tls is not None:
            self.sock.sendall(sent[:4] + option(5))
            reply = self.exactly(20)
            assert reply == struct.pack(">QIII", 0x0003E889045565A9, 5, 1, 0), reply
            self.sock = self._tls.wrap_socket(self.sock, server_hostname="localhost")
            sent = sent[4:]
        self.sock.sendall(sent)
        while True:
            _, number, kind, length = struct.unpack(">QIII", self.exactly(20))
            data = self.exactly(length)
            if kind >= 1 << 31:
                raise NbdError(kind, data.decode())
            if kind == 3 and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
            if (number, kind) == (7, 1):
                return

    def exactly(self, count: int) -> bytes:
        """So many bytes; EOFError where the server sends fewer."""
        out = bytearray()
        while len(out) < count:
            data = self.sock.recv(count - len(out))
            if not data:
                raise EOFError
            out += data
        return bytes(out)

    def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
    ) -> int:
        """Send a request; returns its cookie."""
        cookie = next(self._cookies)
        length = len(payload) or length
        self.parser.expect(command, cookie, offset, length)
        extended = self.parser.extended
        self.sock.sendall(
            request(
                command, cookie, offset, length, flags=flags, payload=payload, extended=extended
            )
        )
        return cookie

    def receive(self) -> bool:
        """Take what the server has sent; returns False at the end of its stream."""
        data = self.sock.recv(1 << 20)
        self.parser.feed(data)
        return bool(data)

    def wait_until(self, wanted: Callable[[], object]) -> None:
        """Receive until something holds."""
        while not wanted():
            if not self.receive():
                raise EOFError

    def answer(self, cookie: int) -> Answer:
        """Wait for an answer, and forget it."""
        answer = self.parser.answers[cookie]
        self.wait_until(lambda: answer.done)
        return self.parser.answers.pop(cookie)

    def call(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        payload: bytes = b"",
    ) -> Answer:
        """A request and its answer; raises NbdError."""
        cookie = self.send(command, offset, length, flags=flags, payload=payload)
        answer = self.answer(cookie)
        if answer.error:
            raise NbdError(answer.error, answer.message)
        return answer

    def read(self, offset: int, length: int) -> bytes:
        return self.call(READ, offset, length).content(offset, length)

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        self.call(WRITE, offset, payload=data, flags=flags)

    def flush(self) -> None:
        self.call(FLUSH)

    def at_end(self) -> bool:
        """Whether the server has closed the connection, once all that it sent is taken."""
        try:
            while data := self.sock.recv(1 << 20):
                self.parser.feed(data)
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
