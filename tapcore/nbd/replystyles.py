"""How replies are written: simple, structured, or with extended headers, as was negotiated.

In quotation marks are section titles of doc/proto.md (NetworkBlockDevice/nbd); for extended headers
those of its branch extension-ext-header. `done` and `data` are written out in each style: every
request has one of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from tapcore.nbd import constants as nbd
from tapcore.nbd.filespan import FileSpan
from tapcore.nbd.replies import Replies

_SIMPLE: Final = nbd.SIMPLE_REPLY.pack
_CHUNK: Final = nbd.CHUNK_HEADER.pack
_DONE_CHUNK: Final = struct.Struct(">QQI").pack  # CHUNK_HEADER, its first three fields in one
_CHUNK_HEAD: Final = nbd.CHUNK_HEADER.size
_DONE: Final = nbd.STRUCTURED_REPLY_MAGIC << 32 | nbd.REPLY_FLAG_DONE << 16 | nbd.REPLY_TYPE_NONE
_DATA_CHUNK: Final = struct.Struct(">QQIQ").pack  # DATA_CHUNK_HEADER, its first three in one
_DATA_HEAD: Final = nbd.DATA_CHUNK_HEADER.size
_WHOLE_READ: Final = (
    nbd.STRUCTURED_REPLY_MAGIC << 32 | nbd.REPLY_FLAG_DONE << 16 | nbd.REPLY_TYPE_OFFSET_DATA
)
_EXTENDED: Final = nbd.EXTENDED_HEADER.pack
_EXTENDED_DATA: Final = nbd.EXTENDED_DATA_HEADER.pack

_OFFSET_SIZE: Final = 8


class SimpleReplies(Replies):
    """Simple replies: a read fails as a whole, and errors have no text."""

    __slots__ = ()

    data_head: ClassVar[int] = nbd.SIMPLE_REPLY.size

    def done(self, cookie: int, offset: int) -> None:
        """See `Replies.done`."""
        queue = self.queue
        if not queue:
            self._ready()
        queue.append(_SIMPLE(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))
        self.queued += nbd.SIMPLE_REPLY.size

    def head_of_done(self, cookie: int, offset: int) -> bytes:
        """See `Replies.head_of_done`."""
        return _SIMPLE(nbd.SIMPLE_REPLY_MAGIC, 0, cookie)

    def head_of_data(self, cookie: int, offset: int, length: int) -> bytes:
        """See `Replies.head_of_data`."""
        return _SIMPLE(nbd.SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, cookie: int, offset: int, code: int, message: str = "") -> None:
        """See `Replies.error`."""
        self._add(_SIMPLE(nbd.SIMPLE_REPLY_MAGIC, code, cookie))

    def data(
        self,
        cookie: int,
        offset: int,
        content: memoryview | FileSpan,
        length: int,
        lease: memoryview | None = None,
    ) -> None:
        """See `Replies.data`."""
        queue = self.queue
        if not queue:
            self._ready()
        queue.append(_SIMPLE(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))
        queue.append(content)
        self.queued += nbd.SIMPLE_REPLY.size + length
        if lease is not None:
            self._leases.append((self.queued, lease))


class StructuredReplies(Replies):
    """Structured replies: reads have holes, and errors a text."""

    __slots__ = ()

    data_head: ClassVar[int] = nbd.DATA_CHUNK_HEADER.size

    def done(self, cookie: int, offset: int) -> None:
        """See `Replies.done`."""
        queue = self.queue
        if not queue:
            self._ready()
        queue.append(_DONE_CHUNK(_DONE, cookie, 0))
        self.queued += _CHUNK_HEAD

    def head_of_done(self, cookie: int, offset: int) -> bytes:
        """See `Replies.head_of_done`."""
        return _DONE_CHUNK(_DONE, cookie, 0)

    def head_of_data(self, cookie: int, offset: int, length: int) -> bytes:
        """See `Replies.head_of_data`."""
        return _DATA_CHUNK(_WHOLE_READ, cookie, length + _OFFSET_SIZE, offset)

    def error(self, cookie: int, offset: int, code: int, message: str = "") -> None:
        """See `Replies.error`."""
        text = message.encode()[: nbd.MAX_STRING]
        body = nbd.ERROR_CHUNK.pack(code, len(text)) + text
        self._add(self._head(nbd.REPLY_TYPE_ERROR, cookie, offset, len(body)) + body)

    def data(
        self,
        cookie: int,
        offset: int,
        content: memoryview | FileSpan,
        length: int,
        lease: memoryview | None = None,
    ) -> None:
        """See `Replies.data`."""
        queue = self.queue
        if not queue:
            self._ready()
        queue.append(_DATA_CHUNK(_WHOLE_READ, cookie, length + _OFFSET_SIZE, offset))
        queue.append(content)
        self.queued += _DATA_HEAD + length
        if lease is not None:
            self._leases.append((self.queued, lease))

    def pieces(
        self,
        cookie: int,
        parts: Sequence[tuple[int, int, memoryview | FileSpan | None]],
        lease: memoryview | None = None,
    ) -> None:
        """The content of a read, with its holes.

        Args:
            cookie: the request's.
            parts: (offset, length, content) in bytes, from the read's start on; None for a hole.
            lease: the pool's buffer behind the contents.
        """
        asked = parts[0][0]
        last = len(parts) - 1
        for index, (offset, length, content) in enumerate(parts):
            flags = nbd.REPLY_FLAG_DONE if index == last else 0
            if content is None:
                kind, size = nbd.REPLY_TYPE_OFFSET_HOLE, nbd.HOLE.size
                head = self._head(kind, cookie, asked, size, flags)
                self._add(head + nbd.HOLE.pack(offset, length))
                continue
            kind, size = nbd.REPLY_TYPE_OFFSET_DATA, length + _OFFSET_SIZE
            self._add(self._head(kind, cookie, asked, size, flags) + nbd.U64.pack(offset))
            self.queue.append(content)
            self.queued += length
        self._lease(lease)

    def block_status(
        self, cookie: int, offset: int, answers: Sequence[tuple[int, Sequence[tuple[int, int]]]]
    ) -> None:
        """The answer to a block status request.

        Args:
            cookie: the request's.
            offset: the request's, bytes.
            answers: of each context, at least one: its id and runs (bytes, flags).
        """
        last = len(answers) - 1
        for index, (context, runs) in enumerate(answers):
            kind, body = self._status(context, runs)
            flags = nbd.REPLY_FLAG_DONE if index == last else 0
            self._add(self._head(kind, cookie, offset, len(body), flags) + body)

    def _status(self, context: int, runs: Sequence[tuple[int, int]]) -> tuple[int, bytes]:
        pack = nbd.STATUS_DESCRIPTOR.pack
        body = nbd.U32.pack(context) + b"".join(pack(length, flags) for length, flags in runs)
        return nbd.REPLY_TYPE_BLOCK_STATUS, body

    def _head(
        self, kind: int, cookie: int, offset: int, length: int, flags: int = nbd.REPLY_FLAG_DONE
    ) -> bytes:
        return _CHUNK(nbd.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)


class ExtendedReplies(StructuredReplies):
    """Extended headers: the same chunks, whose head repeats the request's offset."""

    __slots__ = ()

    data_head: ClassVar[int] = nbd.EXTENDED_DATA_HEADER.size

    def done(self, cookie: int, offset: int) -> None:
        """See `Replies.done`."""
        queue = self.queue
        if not queue:
            self._ready()
        queue.append(self.head_of_done(cookie, offset))
        self.queued += nbd.EXTENDED_HEADER.size

    def head_of_done(self, cookie: int, offset: int) -> bytes:
        """See `Replies.head_of_done`."""
        return _EXTENDED(
            nbd.EXTENDED_REPLY_MAGIC, nbd.REPLY_FLAG_DONE, nbd.REPLY_TYPE_NONE, cookie, offset, 0
        )

    def head_of_data(self, cookie: int, offset: int, length: int) -> bytes:
        """See `Replies.head_of_data`."""
        return _EXTENDED_DATA(
            nbd.EXTENDED_REPLY_MAGIC,
            nbd.REPLY_FLAG_DONE,
            nbd.REPLY_TYPE_OFFSET_DATA,
            cookie,
            offset,
            length + _OFFSET_SIZE,
            offset,
        )

    def data(
        self,
        cookie: int,
        offset: int,
        content: memoryview | FileSpan,
        length: int,
        lease: memoryview | None = None,
    ) -> None:
        """See `Replies.data`."""
        queue = self.queue
        if not queue:
            self._ready()
        queue.append(self.head_of_data(cookie, offset, length))
        queue.append(content)
        self.queued += nbd.EXTENDED_DATA_HEADER.size + length
        if lease is not None:
            self._leases.append((self.queued, lease))

    def _status(self, context: int, runs: Sequence[tuple[int, int]]) -> tuple[int, bytes]:
        pack = nbd.STATUS_DESCRIPTOR_EXT.pack
        body = nbd.STATUS_HEAD_EXT.pack(context, len(runs))
        return nbd.REPLY_TYPE_BLOCK_STATUS_EXT, body + b"".join(pack(*run) for run in runs)

    def _head(
        self, kind: int, cookie: int, offset: int, length: int, flags: int = nbd.REPLY_FLAG_DONE
    ) -> bytes:
        return _EXTENDED(nbd.EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length)


def replies_for(
    *, structured: bool, extended: bool, ready: Callable[[], object]
) -> SimpleReplies | StructuredReplies:
    """Replies in the style that was negotiated.

    Args:
        structured: structured replies were.
        extended: extended headers were, which go before structured replies.
        ready: called when the first reply is queued after all were sent.
    """
    if extended:
        return ExtendedReplies(ready)
    return StructuredReplies(ready) if structured else SimpleReplies(ready)
