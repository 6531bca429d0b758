"""Replies on their way to a client: kept in order, counted until they are sent.

How they are written is what a client has negotiated: see `tapcore.nbd.replystyles`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import ClassVar, Final, TypeAlias

from tapcore.buffers import POOL
from tapcore.files.mapping import content_of, is_mapped
from tapcore.files.pooledops import Moved
from tapcore.nbd.budget import Budget
from tapcore.nbd.filespan import FileSpan

COUNTED: Final = 4096
"""Bytes. A reply that is as long as this, and that nobody has the pool's memory for, counts by
itself: block status can have a thousand times that."""

SMALL_REPLY: Final = 128
"""Bytes of memory that a shorter one takes, about: mostly of the objects around it."""

_MAX_BUFFERS: Final = 512  # of one sendmsg; the kernel's limit (IOV_MAX) is 1024

Item = bytes | memoryview | FileSpan

_Held: TypeAlias = tuple[int, memoryview | bytes]
"""Memory that is free when so many bytes are sent, counted as `queued` is: the pool's, or not."""


LaneRead: TypeAlias = tuple[int, int, int, int]
"""A read whose reply is sent from mapped memory: where the reply begins, in bytes ever queued; the
request's cookie; its offset and its length, in bytes of the disk. A plain tuple: each has one."""


class Replies(ABC):
    """The outgoing side of one connection.

    Args:
        ready: called when the first reply is queued after all were sent.

    Attributes:
        budget: of the memory of all clients; one of its own, where none is given.
        data_head: bytes of a reply that stand before the data of a whole read.
        queue: what is to be sent, in order.
        queued: bytes ever queued.
        sent: bytes ever sent.
        lane_reads: those of which nothing is sent.
        late: some of them have waited for the client, while others had their turn.
    """

    __slots__ = (
        "_leases",
        "_read_to",
        "_ready",
        "_small",
        "budget",
        "lane_reads",
        "late",
        "queue",
        "queued",
        "sent",
    )

    data_head: ClassVar[int]

    def __init__(self, ready: Callable[[], object]) -> None:
        self._ready = ready
        self.budget = Budget()
        self.queue: deque[Item] = deque()
        self.queued = 0
        self.sent = 0
        self._leases: deque[_Held] = deque()
        self._small = 0  # bytes of short replies, as the budget knows them
        self.lane_reads: deque[LaneRead] = deque()
        self.late = False
        self._read_to = 0  # up to here nothing lies in a host file, counted as `queued` is

    @property
    def leased(self) -> int:
        """Bytes of memory behind what waits for the client."""
        return self._small + sum(len(lease) for _, lease in self._leases)

    def _give_back(self, lease: memoryview | bytes) -> None:
        if isinstance(lease, memoryview):
            POOL.give(lease)
        self.budget.give_back(len(lease))

    def _give_back_all(self) -> None:
        """As `_give_back`, of what all replies have."""
        found = [lease for _, lease in self._leases]
        self._leases.clear()
        size = POOL.give_all([lease for lease in found if isinstance(lease, memoryview)])
        size += sum([len(lease) for lease in found if isinstance(lease, bytes)])
        self.budget.give_back(size)

    def _lease(self, lease: memoryview | None) -> None:
        """Give the pool's buffer back when everything queued so far is sent."""
        if lease is not None:
            self._leases.append((self.queued, lease))

    def _add(self, item: bytes) -> None:
        if not self.queue:
            self._ready()
        self.queue.append(item)
        self.queued += len(item)
        if len(item) >= COUNTED:
            self.budget.room -= len(item)
            self._leases.append((self.queued, item))

    # ---- encoding ---------------------------------------------------------------------------

    @abstractmethod
    def done(self, cookie: int, offset: int) -> None:
        """Success, of a request that returns no data.

        Args:
            cookie: the request's.
            offset: the request's, bytes.
        """

    @abstractmethod
    def error(self, cookie: int, offset: int, code: int, message: str = "") -> None:
        """Failure.

        Args:
            cookie: the request's.
            offset: the request's, bytes.
            code: an NBD error value.
            message: one line for a person, sent where the protocol has a place for it.
        """

    @abstractmethod
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

    @abstractmethod
    def head_of_done(self, cookie: int, offset: int) -> bytes:
        """What `done` queues, for who sends it at once and then tells `passed`."""

    @abstractmethod
    def head_of_data(self, cookie: int, offset: int, length: int) -> bytes:
        """The same of `data`: what stands before the content."""

    def pooled(self, reads: list[Moved]) -> int:
        """As `data` for each of several reads past the driver, with a buffer of the pool.

        Returns:
            Bytes of all these buffers.
        """
        queue, leases, queued = self.queue, self._leases, self.queued
        head_of, head, size = self.head_of_data, self.data_head, 0
        if not queue:
            self._ready()
        for _, (_, offset, length, cookie, lease) in reads:
            queue.append(head_of(cookie, offset, length))
            held = len(lease)
            queue.append(lease if held == length else lease[:length])
            queued += head + length
            leases.append((queued, lease))
            size += held
        self.queued = queued
        return size

    def passed(self, count: int) -> None:
        """So many bytes were sent without being queued, while nothing else was to be sent."""
        self.queued += count
        self.sent += count

    def mapped(self, cookie: int, offset: int, content: memoryview, length: int) -> None:
        """The same from mapped memory, which nothing here touches."""
        self.lane_reads.append((self.queued, cookie, offset, length))
        self.data(cookie, offset, content, length)

    # ---- sending ----------------------------------------------------------------------------

    def next_buffers(self) -> list[bytes | memoryview]:
        """What one sendmsg should take: everything up to the next file span."""
        queue = self.queue
        if len(queue) <= _MAX_BUFFERS and FileSpan not in map(type, queue):
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
            if self.late:
                self.late = False
                self._count_small(0)
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
        if len(leases) > 1 and sent == self.queued:
            self._give_back_all()
        while leases and leases[0][0] <= sent:
            self._give_back(leases.popleft()[1])

    def wait(self) -> None:
        """The client takes no more for now."""
        self.late = True
        self._count_small(len(self.queue))

    def _count_small(self, items: int) -> None:
        """So many are in memory: while replies are sent at once nobody needs to know."""
        before, self._small = self._small, items * SMALL_REPLY
        if before != self._small:
            self.budget.give_back(before - self._small)

    def read_out(self) -> None:
        """Read what was to be sent from host files: it is about to be given up there.

        It lies in the page cache, or did when it was queued.
        """
        queue, end, place = self.queue, self.queued, len(self.queue)
        found: list[_Held] = []
        while place and end > self._read_to:
            place -= 1
            item, behind = queue[place], end
            end -= _size(item)
            if isinstance(item, FileSpan):
                content, length = os.pread(item.fd, item.length, item.offset), item.length
            elif is_mapped(item):
                content, length = content_of(item), len(item)
            else:
                continue
            if len(content) == length:  # else its file has shrunk, as sending will find
                queue[place] = content
                found.append((behind, content))
        self._read_to = self.queued
        if found:
            self._leases = deque(sorted([*self._leases, *found], key=itemgetter(0)))
            self.budget.room -= sum(len(content) for _, content in found)

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
            (end - sum(self.data_head + read[3] for read in taken if read[0] < end), lease)
            for end, lease in self._leases
        )
        self.queued -= sum(self.data_head + read[3] for read in taken)
        self._read_to = 0
        self.queue = kept
        return taken

    @property
    def reads_file(self) -> bool:
        """Whether something that is to be sent is still mapped memory."""
        return any(is_mapped(item) for item in self.queue)

    @property
    def lies_in_files(self) -> bool:
        """Whether something that is to be sent is a part of a host file, in any way."""
        return any(isinstance(item, FileSpan) or is_mapped(item) for item in self.queue)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client."""
        return self.queued - self.sent

    def discard(self) -> None:
        """The client has gone: nothing more will be sent."""
        self.queue.clear()
        self.lane_reads.clear()
        leases, self._leases = self._leases, deque()
        for _, lease in leases:
            self._give_back(lease)
        self._count_small(0)
        self.sent = self.queued


def _size(item: Item) -> int:
    return item.length if isinstance(item, FileSpan) else len(item)


def _rest(item: Item, count: int) -> Item:
    if isinstance(item, FileSpan):
        return FileSpan(item.fd, item.offset + count, item.length - count)
    return memoryview(item)[count:]
