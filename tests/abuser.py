"""Bad clients, drawn from a random number generator: whole conversations, in each style of headers.

One sends what it likes in what order it likes, and ends as it likes: closes, resets, half-closes,
or stays and reads nothing. With TLS some break that off, or send in the clear what should not be.
"""

import contextlib
import random
import socket
import ssl
import struct
from collections import deque

from nbd_client import (
    BLOCK_STATUS,
    DISC,
    PAYLOAD_LEN,
    WRITE,
    connect,
    hello,
    option,
    request,
    wanted_contexts,
)

LINGERING = 8
"""So many at once keep their connection, and read nothing."""

_LENGTHS = [0, 1, 511, 512, 4096, 65536, 1 << 20, 1 << 25, (1 << 25) + 1, (1 << 32) - 1]
_LONG = [1 << 32, (1 << 32) + 512, 1 << 40, 1 << 63, (1 << 64) - 1]
_STYLES = [(False, False), (True, False), (False, True)]


class Abuser:
    """Has one conversation after another with one export of a server.

    Args:
        uri: of the export; its content is not spared.
        size: bytes of it.
        rng: decides everything.
        tls: what they speak TLS with; None: nobody does.
    """

    def __init__(
        self, uri: str, size: int, rng: random.Random, tls: ssl.SSLContext | None = None
    ) -> None:
        self._uri = uri
        self._tls = tls
        self._name = uri.rpartition("/")[2].partition("?")[0]
        self._size = size
        self._rng = rng
        self._lingering: deque[socket.socket] = deque()

    def converse(self) -> None:
        """One client, from its first byte to its end."""
        rng = self._rng
        sock = connect(self._uri, timeout=5.0)
        with contextlib.suppress(OSError):
            sock.settimeout(0.2)
            said = self._said()
            if self._tls is not None and rng.random() < 0.9:
                sock = self._start_tls(sock, self._tls)
                said = said[4:]
            for piece in self._cut(said):
                sock.sendall(piece)
            if rng.random() < 0.5:
                sock.recv(rng.choice([1, 100, 1 << 16]))
        self._end(sock)

    def close(self) -> None:
        """Nobody lingers any more."""
        while self._lingering:
            self._lingering.popleft().close()

    def _end(self, sock: socket.socket) -> None:
        how = self._rng.choice(["close", "close", "reset", "half", "linger"])
        with contextlib.suppress(OSError):
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "half":
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
        if how == "linger":
            self._lingering.append(sock)
            if len(self._lingering) > LINGERING:
                self._lingering.popleft().close()
        else:
            sock.close()

    def _start_tls(self, sock: socket.socket, tls: ssl.SSLContext) -> socket.socket:
        """Up to TLS, or somewhere on the way to it."""
        rng, how = self._rng, self._rng.random()
        sock.recv(18, socket.MSG_WAITALL)
        sock.sendall(struct.pack(">I", 3) + option(5))
        if how < 0.1:
            return sock  # and goes on in the clear, perhaps before it is told that it may not
        sock.recv(20, socket.MSG_WAITALL)
        if how < 0.2:
            sock.sendall(b"\x16\x03\x01" + rng.randbytes(rng.randrange(40)))
            return sock
        if how < 0.3:
            sent = ssl.MemoryBIO()
            begun = tls.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
            with contextlib.suppress(ssl.SSLWantReadError):
                begun.do_handshake()
            data = sent.read()
            sock.sendall(data[: rng.randrange(len(data))])
            return sock
        secure = tls.wrap_socket(sock, server_hostname="localhost")
        if how < 0.4:  # a record that is none, behind good ones
            secure.sendall(option(rng.randrange(13)))
            with socket.socket(fileno=secure.detach()) as plain:
                plain.sendall(b"\x17\x03\x03\x00\x40" + rng.randbytes(rng.randrange(80)))
                return plain.dup()
        return secure

    def _cut(self, data: bytes) -> list[bytes]:
        """At most a few pieces, and sometimes not all of it."""
        rng = self._rng
        if rng.random() < 0.4:
            data = data[: rng.randrange(len(data) + 1)]
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 3])))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _said(self) -> bytes:
        rng = self._rng
        kind = rng.random()
        if kind < 0.1:
            return rng.randbytes(rng.randrange(3000))
        if kind < 0.3:
            return struct.pack(">I", rng.choice([0, 1, 2, 3, 3, 3, 7])) + self._options()
        structured, extended = rng.choice(_STYLES)
        sent = hello(self._name, structured=structured, extended=extended)
        return sent + b"".join(self._request(extended) for _ in range(rng.randint(1, 12)))

    def _options(self) -> bytes:
        rng = self._rng
        sent = b""
        for _ in range(rng.randint(1, 20)):
            number = rng.choice([*range(13), 0xFFFFFFFF])
            data = rng.choice([b"", rng.randbytes(rng.randrange(100)), bytes(rng.randrange(70000))])
            one = option(number, data)
            if rng.random() < 0.1:
                one = one[:12] + struct.pack(">I", rng.getrandbits(32)) + one[16:]
            sent += one
        return sent

    def _request(self, extended: bool) -> bytes:
        rng = self._rng
        if rng.random() < 0.05:
            return rng.randbytes(rng.randrange(200))
        command = rng.choice([0, 0, 0, 1, 1, 1, 3, 4, 5, 6, 6, 7, 7, 8, 99])
        offset = rng.choice([0, rng.randrange(self._size), rng.getrandbits(64)])
        length = rng.choice(_LENGTHS + (_LONG if extended else []))
        flags = rng.choice([0, 0, 0, 1, 2, 4, 8, 16, PAYLOAD_LEN, rng.getrandbits(16)])
        payload = b""
        if command == WRITE and length <= 1 << 20:
            payload = bytes(length)
        elif command == BLOCK_STATUS and extended and rng.random() < 0.5:
            payload = wanted_contexts(length, *(rng.randrange(4) for _ in range(rng.randrange(5))))
            length = len(payload)
        elif flags & PAYLOAD_LEN and extended and rng.random() < 0.8:
            payload = bytes(min(length, 1 << 16))
            length = len(payload)
        if rng.random() < 0.02:
            command = DISC
        return request(
            command,
            rng.getrandbits(64),
            offset,
            length,
            flags=flags,
            payload=payload,
            extended=extended,
        )
