"""As much of HTTP/1.1 (RFC 9112) as a page on loopback needs: one request, one answer, no I/O.

A page of another site could send a browser here under a name of its own (DNS rebinding): only the
names of this machine's loopback are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

MOST_HEAD: Final = 8192
"""Bytes of a request; there is no body."""

_HOSTS: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))
_END: Final = b"\r\n\r\n"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    505: "HTTP Version Not Supported",
}
_ALWAYS: Final = (
    "Connection: close",
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "Referrer-Policy: no-referrer",
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
)

Page: TypeAlias = Callable[[str], tuple[str, bytes]]
"""Makes a page: takes the header Accept, returns its type and content; raises `Refused`."""


class Pages(Protocol):
    """Pages by their paths."""

    def get(self, path: str, /) -> Page | None:
        """The page of a path; None: there is none."""


class Refused(Exception):
    """A request that gets an error.

    Args:
        status: of the answer.
    """

    def __init__(self, status: int) -> None:
        super().__init__(_REASONS[status])
        self.status = status


def whole(received: bytes) -> bool:
    """Whether a request has arrived, or so much of it that it will be refused."""
    return _END in received or len(received) > MOST_HEAD


def answer(received: bytes, pages: Pages) -> bytes:
    """The answer to a request that is `whole`.

    Args:
        received: from the client.
        pages: by their paths.
    """
    method = ""
    try:
        method, path, headers = _parse(received)
        page = _page(method, path, headers, pages)
        kind, body = page(headers.get("accept", ""))
        status = 200
    except Refused as exc:
        kind, body, status = "text/plain; charset=utf-8", f"{exc}\n".encode(), exc.status
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *_ALWAYS,
    ]
    if status == 405:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join(lines).encode() + _END
    return head if method == "HEAD" else head + body


def failed() -> bytes:
    """The answer where making a page has failed."""

    def broken(accept: str) -> tuple[str, bytes]:
        raise Refused(500)

    return answer(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", {"/": broken})


def _parse(received: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers, whose names are in small letters."""
    head, end, _ = received.partition(_END)
    if not end or len(head) > MOST_HEAD:
        raise Refused(431)
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[1].startswith("/"):
        raise Refused(400)
    if words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(505)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip() or (name == "host" and name in headers):
            raise Refused(400)
        headers[name] = value.strip(" \t")
    return words[0], words[1], headers


def _page(method: str, path: str, headers: Mapping[str, str], pages: Pages) -> Page:
    host = headers.get("host", "").lower()
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():
        name = host
    if name not in _HOSTS:
        raise Refused(403)
    if method not in ("GET", "HEAD"):
        raise Refused(405)
    found = pages.get(path.partition("?")[0])
    if found is None:
        raise Refused(404)
    return found
