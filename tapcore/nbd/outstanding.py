"""The requests of one client that are not answered yet, and the memory that they take."""

from __future__ import annotations

import errno
from typing import Final

from tapcore.engine import MappedExtent, Request
from tapcore.nbd import constants as nbd
from tapcore.nbd.receive import Chunk
from tapcore.nbd.replies import Replies

_TEXTS: Final = {
    errno.EINVAL: "the request is not possible on this export",
    errno.ENOSPC: "no space, or past the end of the disk",
    errno.EPERM: "the export is read-only",
    errno.EROFS: "the export is read-only",
    errno.EIO: "input/output error",
    errno.EOPNOTSUPP: "not supported without writing zeroes",
}


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


class Outstanding:
    """What one client is owed.

    Args:
        replies: where the answers go.

    Attributes:
        replies: as given.
        in_flight: requests taken and not answered.
        held: bytes of buffers in use.
        gone: the client takes no answer any more.
    """

    __slots__ = ("gone", "held", "in_flight", "replies")

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.in_flight = 0
        self.held = 0
        self.gone = False

    def finished(self, req: NbdRequest) -> None:
        """A request that returns no data, and holds no buffer, is over."""
        self.in_flight -= 1
        if req.status:
            self.failed(req)
        else:
            self.replies.done(req.cookie)

    def failed(self, req: NbdRequest) -> None:
        """The engine could not do what was asked for."""
        if not self.gone:
            self.refuse(req.cookie, -req.status)

    def refuse(self, cookie: int, code: int) -> None:
        """Answer with an error.

        Args:
            cookie: the request's.
            code: a positive errno.
        """
        self.replies.error(cookie, nbd.nbd_errno(code), _TEXTS.get(code, ""))
