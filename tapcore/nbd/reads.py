"""Reads: their content through the engine, or straight from host files where it lies there."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from tapcore.buffers import POOL
from tapcore.engine import READ, MappedExtent
from tapcore.files.linux import counts_pages
from tapcore.nbd import constants as nbd
from tapcore.nbd.exports import Export
from tapcore.nbd.filespan import FileSpan
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.replies import LaneRead
from tapcore.nbd.replystyles import StructuredReplies
from tapcore.nbd.requestparser import RequestParser

if TYPE_CHECKING:
    from tapcore.nbd.direct import DirectRequests

SPAN_MIN: Final = 32 << 10
"""Reads from this size on are looked at for holes, and for data that can be sent from its file."""

LANE_MAX: Final = 256 << 10
"""Bytes. Longer reads are sent from the file itself, without a copy."""

_KNOWN_FLAGS: Final = nbd.CMD_FLAG_DF | nbd.CMD_FLAG_FUA  # which every command takes


class Reads:
    """Answers the reads of one client.

    Args:
        export: the disk.
        outstanding: what the client is owed.

    Attributes:
        direct: takes those that go past the page cache; None: none do.
        lane_max: bytes of a read at most that is answered from the lane.
    """

    __slots__ = (
        "_chunks",
        "_engine",
        "_export",
        "_lane",
        "_moved",
        "_outstanding",
        "_replies",
        "direct",
        "lane_max",
    )

    def __init__(self, export: Export, outstanding: Outstanding) -> None:
        self._export = export
        self._engine = export.engine
        self._lane = export.engine.lane
        self.lane_max = LANE_MAX
        self.direct: DirectRequests | None = None
        self._outstanding = outstanding
        meter = outstanding.meter
        self._moved = None if meter is None else meter.reads.append
        self._replies = replies = outstanding.replies
        self._chunks = replies if isinstance(replies, StructuredReplies) else None

    def take_in_lane(self, parser: RequestParser, full: int) -> None:
        """Answer the plain READs with which what was received begins, as far as that goes.

        The first that is not in the lane, or has to wait, is left to others with all behind it.

        Args:
            parser: of what was received.
            full: bytes ever queued from which on nothing more is.
        """
        replies, to_read, data = self._replies, self._lane.to_read, self._replies.data
        note, moved = replies.lane_reads.append, self._moved
        most, magic = self.lane_max, parser.magic
        taken = 0
        for found, flags, command, cookie, offset, length in parser.reads():
            if command or flags or found != magic or not 0 < length <= most:
                break
            content = to_read(offset, length)
            if content is None:
                break
            note((replies.queued, cookie, offset, length))  # as `Replies.mapped`
            data(cookie, offset, content, length)
            taken += 1
            if moved is not None:
                moved(length)
            if replies.queued > full:
                break
        parser.passed(taken)

    def take(self, flags: int, cookie: int, offset: int, length: int) -> None:
        """A READ of a client: offset and length in bytes."""
        if not flags and (direct := self.direct) and direct.read(cookie, offset, length):
            return
        if flags or length >= SPAN_MIN:
            if flags & ~_KNOWN_FLAGS or length > nbd.DEFAULT_BLOCK_MAX:
                self._refuse(cookie, offset, length, _why_not(flags))
                return
            if not flags and self._export.file_spans and counts_pages():
                fd = self._lane.data_of_whole(offset, length)
                span = None if fd < 0 else self._export.span_of(fd, offset, length)
                if span is not None:
                    self._replies.data(cookie, offset, span, length)
                    if self._moved is not None:
                        self._moved(length)
                    return
            if not flags & nbd.CMD_FLAG_DF and offset + length <= self._engine.size:
                parts = self._export.extents(offset, length)
                if parts is not None and self._answer_without_reading(cookie, offset, parts):
                    if self._moved is not None:
                        self._moved(length)
                    return
                self._queue_read(cookie, offset, length, parts)
                return
        self._queue_read(cookie, offset, length, None)

    def read_again(self, cookie: int, offset: int, length: int, lease: memoryview) -> None:
        """One that did not go past the page cache: the engine finds out why."""
        POOL.give(lease)
        self._queue_read(cookie, offset, length, None)

    def answer_again(self, reads: Iterable[LaneRead]) -> None:
        """Reads that the lane could not answer after all: the engine finds out why."""
        for _, cookie, offset, length in reads:
            self._queue_read(cookie, offset, length, None, self._done_again)

    def _refuse(self, cookie: int, offset: int, length: int, reason: str) -> None:
        refuse = self._outstanding.refuse_at_once
        refuse(READ, length, cookie, offset, errno.EINVAL, reason)

    def _queue_read(
        self,
        cookie: int,
        offset: int,
        length: int,
        parts: list[MappedExtent] | None,
        done: Callable[[NbdRequest], object] | None = None,
    ) -> None:
        if not length:
            self._read_nothing(cookie, offset)
            return
        lease = POOL.take(length)
        outstanding = self._outstanding
        outstanding.held += len(lease)
        outstanding.budget.room -= len(lease)  # until the replies, which get it, give it back
        outstanding.in_flight += 1
        buf = lease if len(lease) == length else lease[:length]
        req = NbdRequest(READ, offset, length, buf, done or self._done)
        req.cookie = cookie
        req.taken = outstanding.taken
        req.lease = lease
        req.parts = parts
        self._engine.submit(req)

    def _read_nothing(self, cookie: int, offset: int) -> None:
        """A data chunk may not be empty, so a read of no bytes is answered without one."""
        if offset > self._engine.size:
            self._refuse(cookie, offset, 0, self._outstanding.past_end(offset, 0))
        else:
            self._outstanding.told(READ, 0)
            self._replies.done(cookie, offset)

    def _answer_without_reading(self, cookie: int, offset: int, parts: list[MappedExtent]) -> bool:
        """Where all is plain data in host files, or holes, no byte has to pass through here."""
        contents: list[tuple[int, int, FileSpan | None]] = []
        for part in parts:
            if part.kind == "zero":
                if self._chunks is None:
                    return False
                contents.append((part.start, part.length, None))
                continue
            span = self._export.span(part)
            if span is None:
                return False
            contents.append((part.start, part.length, span))
        _, length, content = contents[0]
        if content is not None and len(contents) == 1:
            self._replies.data(cookie, offset, content, length)
            return True
        if self._chunks is None:
            return False
        self._chunks.pieces(cookie, contents)
        return True

    def _done_again(self, req: NbdRequest) -> None:
        """It was counted when the lane had it; that it has failed was not."""
        outstanding = self._outstanding
        meter, outstanding.meter = outstanding.meter, None
        if meter is not None and req.status:
            meter.cell(READ, req.length).errors += 1
        self._done(req)
        outstanding.meter = meter

    def _done(self, req: NbdRequest) -> None:
        outstanding = self._outstanding
        outstanding.in_flight -= 1
        meter = outstanding.meter
        if meter is not None:  # as `Outstanding.driven`, without a call
            meter.driven.append((meter, READ, req.length, req.taken, req.queued, req.status))
        lease = req.lease
        assert lease is not None
        assert req.buf is not None
        outstanding.held -= len(lease)
        if req.status or outstanding.gone:
            POOL.give(lease)
            outstanding.budget.give_back(len(lease))
            outstanding.failed(req)
            return
        parts = req.parts
        if parts is None or self._chunks is None or len(parts) == 1:
            self._replies.data(req.cookie, req.offset, req.buf, req.length, lease)
            return
        contents: list[tuple[int, int, memoryview | None]] = []
        for part in parts:
            at = part.start - req.offset
            content = None if part.kind == "zero" else req.buf[at : at + part.length]
            contents.append((part.start, part.length, content))
        self._chunks.pieces(req.cookie, contents, lease)


def _why_not(flags: int) -> str:
    if flags & ~_KNOWN_FLAGS:
        return f"a read does not take the flags {flags:#x}"
    return "a read has 32 MiB at most"
