"""Replies on their way to a client: encoded, kept in order, counted until they are sent."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tapcore.buffers import POOL
from tapcore.files.mapping import content_of, is_mapped
from tapcore.nbd import constants as nbd
from tapcore.nbd.filespan import FileSpan

_SIMPLE: Final = nbd.SIMPLE_REPLY.pack
_CHUNK: Final = nbd.CHUNK_HEADER.pack
_DATA_CHUNK: Final = nbd.DATA_CHUNK_HEADER.pack
_HOLE_CHUNK: Final = nbd.HOLE_CHUNK.pack

_OFFSET_SIZE: Final = 8
_MAX_BUFFERS: Final = 512  # of one sendmsg; the kernel's limit (IOV_MAX) is 1024

Item = bytes | memoryview | FileSpan


LaneRead: TypeAlias = tuple[int, int, int, int]
"""A read whose reply is sent from mapped memory: where the reply begins, in bytes ever queued; the
request's cookie; its offset and its length, in bytes of the disk. A plain tuple: each has one."""


class Replies:
    """The outgoing side of one connection.

    Args:
        structured: the client negotiated structured replies.
        ready: called when the first reply is queued after all were sent.

    Attributes:
        structured: as given.
        queue: what is to be sent, in order.
        queued: bytes ever queued.
        sent: bytes ever sent.
        lane_reads: those of which nothing is sent.
        late: some of them have waited for the client, while others had their turn.
    """

    __slots__ = (
        "_leases",
        "_ready",
        "lane_reads",
        "late",
        "queue",
        "queued",
        "sent",
        "structured",
    )

    def __init__(self, *, structured: bool, ready: Callable[[], object]) -> None:
        self.structured = structured
        self._ready = ready
        self.queue: deque[Item] = deque()
        self.queued = 0
        self.sent = 0
        self._leases: deque[tuple[int, memoryview]] = deque()
        self.lane_reads: deque[LaneRead] = deque()
        self.late = False

    def _lease(self, lease: memoryview | None) -> None:
        """Give the pool's buffer back when everything queued so far is sent."""
        if lease is not None:
            self._leases.append((self.queued, lease))

    # ---- encoding ---------------------------------------------------------------------------

    def done(self, cookie: int) -> None:
        """Success, of a request that returns no data."""
        if not self.queue:
            self._ready()
        if self.structured:
            head = _CHUNK(
                nbd.STRUCTURED_REPLY_MAGIC, nbd.REPLY_FLAG_DONE, nbd.REPLY_TYPE_NONE, cookie, 0
            )
        else:
            head = _SIMPLE(nbd.SIMPLE_REPLY_MAGIC, 0, cookie)
        self.queue.append(head)
        self.queued += len(head)

    def error(self, cookie: int, code: int, message: str = "") -> None:
        """Failure.

        Args:
            cookie: the request's.
            code: an NBD error value.
            message: one line for a person, sent where the protocol has a place for it.
        """
        if not self.queue:
            self._ready()
        if self.structured:
            text = message.encode()[: nbd.MAX_STRING]
            body = nbd.ERROR_CHUNK.pack(code, len(text)) + text
            item = self._chunk(nbd.REPLY_TYPE_ERROR, cookie, len(body)) + body
        else:
            item = _SIMPLE(nbd.SIMPLE_REPLY_MAGIC, code, cookie)
        self.queue.append(item)
        self.queued += len(item)

    def data(
        self,
        cookie: int,
        offset: int,
        content: memoryview | FileSpan,
        length: int,
        lease: memoryview | None = None,
    ) -> None:
        """The content of a whole read.

        Args:
            cookie: the request's.
            offset: of the read, bytes.
            content: what was read.
            length: its bytes.
            lease: the pool's buffer behind it.
        """
        if not self.queue:
            self._ready()
        if self.structured:
            self.queue.append(
                _DATA_CHUNK(
                    nbd.STRUCTURED_REPLY_MAGIC,
                    nbd.REPLY_FLAG_DONE,
                    nbd.REPLY_TYPE_OFFSET_DATA,
                    cookie,
                    length + _OFFSET_SIZE,
                    offset,
                )
            )
            self.queued += nbd.DATA_CHUNK_HEADER.size + length
        else:
            self.queue.append(_SIMPLE(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))
            self.queued += nbd.SIMPLE_REPLY.size + length
        self.queue.append(content)
        if lease is not None:
            self._leases.append((self.queued, lease))

    def mapped(self, cookie: int, offset: int, content: memoryview, length: int) -> None:
        """The same from mapped memory, which nothing here touches."""
        self.lane_reads.append((self.queued, cookie, offset, length))
        self.data(cookie, offset, content, length)

    def pieces(
        self,
        cookie: int,
        parts: Sequence[tuple[int, int, memoryview | FileSpan | None]],
        lease: memoryview | None = None,
    ) -> None:
        """The content of a read, with its holes.

        Args:
            cookie: the request's.
            parts: (offset, length, content) in bytes; None for a hole.
            lease: the pool's buffer behind the contents.
        """
        if not self.queue:
            self._ready()
        last = len(parts) - 1
        for index, (offset, length, content) in enumerate(parts):
            flags = nbd.REPLY_FLAG_DONE if index == last else 0
            if content is None:
                head = _HOLE_CHUNK(
                    nbd.STRUCTURED_REPLY_MAGIC,
                    flags,
                    nbd.REPLY_TYPE_OFFSET_HOLE,
                    cookie,
                    nbd.HOLE_CHUNK.size - nbd.CHUNK_HEADER.size,
                    offset,
                    length,
                )
                self.queue.append(head)
                self.queued += len(head)
                continue
            head = _DATA_CHUNK(
                nbd.STRUCTURED_REPLY_MAGIC,
                flags,
                nbd.REPLY_TYPE_OFFSET_DATA,
                cookie,
                length + _OFFSET_SIZE,
                offset,
            )
            self.queue.append(head)
            self.queue.append(content)
            self.queued += len(head) + length
        self._lease(lease)

    def block_status(
        self, cookie: int, answers: Sequence[tuple[int, Sequence[tuple[int, int]]]]
    ) -> None:
        """The answer to a block status request.

        Args:
            cookie: the request's.
            answers: of each context, at least one: its id and runs (bytes, flags).
        """
        if not self.queue:
            self._ready()
        last = len(answers) - 1
        for index, (context, runs) in enumerate(answers):
            body = nbd.U32.pack(context) + b"".join(
                nbd.STATUS_DESCRIPTOR.pack(length, flags) for length, flags in runs
            )
            done = nbd.REPLY_FLAG_DONE if index == last else 0
            item = self._chunk(nbd.REPLY_TYPE_BLOCK_STATUS, cookie, len(body), done) + body
            self.queue.append(item)
            self.queued += len(item)

    @staticmethod
    def _chunk(kind: int, cookie: int, length: int, flags: int = nbd.REPLY_FLAG_DONE) -> bytes:
        return _CHUNK(nbd.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)

    # ---- sending ----------------------------------------------------------------------------

    def next_buffers(self) -> list[bytes | memoryview]:
        """What one sendmsg should take: everything up to the next file span."""
        queue = self.queue
        if len(queue) <= _MAX_BUFFERS and not any(type(item) is FileSpan for item in queue):
            return list(queue)  # type: ignore[arg-type]
        found: list[bytes | memoryview] = []
        for item in queue:
            if isinstance(item, FileSpan) or len(found) == _MAX_BUFFERS:
                break
            found.append(item)
        return found

    def advance(self, count: int) -> None:
        """`count` bytes of the front have been sent."""
        self.sent += count
        queue = self.queue
        if self.sent == self.queued:
            queue.clear()
            self.lane_reads.clear()
            self.late = False
        else:
            while count:
                item = queue[0]
                size = _size(item)
                if size > count:
                    queue[0] = _rest(item, count)
                    break
                count -= size
                queue.popleft()
            reads = self.lane_reads
            while reads and reads[0][0] < self.sent:
                reads.popleft()
        leases, sent = self._leases, self.sent
        while leases and leases[0][0] <= sent:
            POOL.give(leases.popleft()[1])

    def read_out(self) -> None:
        """Read what was to be sent from host files: it is about to be given up there.

        It lies in the page cache, or did when it was queued.
        """
        queue = self.queue
        for place, item in enumerate(queue):
            if isinstance(item, FileSpan):
                content, length = os.pread(item.fd, item.length, item.offset), item.length
            elif is_mapped(item):
                content, length = content_of(item), len(item)
            else:
                continue
            if len(content) == length:  # else its file has shrunk, as sending will find
                queue[place] = content

    def take_back(self) -> list[LaneRead]:
        """Lane reads of which nothing was sent yet: somebody else has to answer them now."""
        taken, self.lane_reads = list(self.lane_reads), deque()
        starts = {read[0] for read in taken}
        kept: deque[Item] = deque()
        at, items = self.sent, iter(self.queue)
        for item in items:
            if at in starts:
                at += _size(next(items))
            else:
                kept.append(item)
            at += _size(item)
        self._leases = deque(
            (end - sum(self._reply_size(read) for read in taken if read[0] < end), lease)
            for end, lease in self._leases
        )
        self.queued -= sum(map(self._reply_size, taken))
        self.queue = kept
        return taken

    def _reply_size(self, read: LaneRead) -> int:
        head = nbd.DATA_CHUNK_HEADER.size if self.structured else nbd.SIMPLE_REPLY.size
        return head + read[3]

    @property
    def reads_file(self) -> bool:
        """Whether something that is to be sent is still mapped memory."""
        return any(is_mapped(item) for item in self.queue)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client."""
        return self.queued - self.sent

    def discard(self) -> None:
        """The client has gone: nothing more will be sent."""
        self.queue.clear()
        self.lane_reads.clear()
        for _, lease in self._leases:
            POOL.give(lease)
        self._leases.clear()
        self.sent = self.queued


def _size(item: Item) -> int:
    return item.length if isinstance(item, FileSpan) else len(item)


def _rest(item: Item, count: int) -> Item:
    if isinstance(item, FileSpan):
        return FileSpan(item.fd, item.offset + count, item.length - count)
    return memoryview(item)[count:]
