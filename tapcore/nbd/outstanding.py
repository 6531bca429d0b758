"""The requests of one client that are not answered yet, and the memory that they take."""

from __future__ import annotations

import errno
from typing import Final

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import MappedExtent, Request
from tapcore.errors import printable
from tapcore.interface.models import TdState
from tapcore.nbd import constants as nbd
from tapcore.nbd.receive import Chunk
from tapcore.nbd.replies import Replies

_TEXTS: Final = {
    errno.EINVAL: "the request is not possible on this export",
    errno.ENOSPC: "there is no space left",
    errno.EPERM: "the write was refused, as the server's log tells",
    errno.EROFS: "the export is read-only",
    errno.EIO: "input/output error",
    errno.EOPNOTSUPP: "not supported without writing zeroes",
}


_MOST_REASON: Final = 500


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
        disk: whose requests they are.

    Attributes:
        replies: as given.
        in_flight: requests taken and not answered.
        held: bytes of buffers in use.
        budget: what is left of the memory of all clients.
        gone: the client takes no answer any more.
    """

    __slots__ = ("_disk", "budget", "gone", "held", "in_flight", "replies")

    def __init__(self, replies: Replies, disk: TdState) -> None:
        self.replies = replies
        self._disk = disk
        self.in_flight = 0
        self.held = 0
        self.budget = replies.budget
        self.gone = False

    def finished(self, req: NbdRequest) -> None:
        """A request that returns no data, and holds no buffer, is over."""
        self.in_flight -= 1
        if req.status:
            self.failed(req)
        else:
            self.replies.done(req.cookie, req.offset)

    def failed(self, req: NbdRequest) -> None:
        """The engine could not do what was asked for."""
        if not self.gone:
            self.refuse_failed(req, req.cookie, req.offset)

    def refuse_failed(self, req: NbdRequest, cookie: int, asked: int) -> None:
        """Tell the client why the engine could not do it.

        Args:
            req: what has failed.
            cookie: of the client's request, of which it is perhaps only a part.
            asked: the offset of that, bytes.
        """
        offset, end = req.offset, req.offset + req.length
        past = end > self._size
        reason = self.past_end(offset, req.length) if past else self._noted(offset, end)
        self.refuse(cookie, asked, -req.status, reason)

    def _noted(self, offset: int, end: int) -> str:
        """What a driver noted of damage in a range (bytes): the last of it; else empty."""
        first, last = offset >> SECTOR_SHIFT, ((end - 1) >> SECTOR_SHIFT) + 1
        noted = self._disk.losses.among(first, last, since=0)
        return noted[-1].reason if noted else ""

    @property
    def _size(self) -> int:
        return self._disk.disks.size << SECTOR_SHIFT

    def past_end(self, offset: int, length: int) -> str:
        """For a client that asks for what the disk does not have: in bytes."""
        return f"{length} bytes at {offset} end behind the disk, which has {self._size}"

    def refuse(self, cookie: int, offset: int, code: int, reason: str = "") -> None:
        """Answer with an error.

        Args:
            cookie: the request's.
            offset: the request's, bytes.
            code: a positive errno.
            reason: one line for a person; what the errno means, where it is not known.
        """
        text = printable(reason, limit=_MOST_REASON) if reason else _TEXTS.get(code, "")
        self.replies.error(cookie, offset, nbd.nbd_errno(code), text)
