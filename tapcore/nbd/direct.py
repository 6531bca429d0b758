"""Reads and writes of a client that go past driver and page cache, where their place is known.

The content of a read is sent from the buffer that the disk has filled; that of a write is copied
once, into one that the disk can take it from. Rows of them are begun together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from tapcore.buffers import POOL
from tapcore.engine import READ, WRITE, Engine
from tapcore.engine.directlane import MOST, DirectGroup, DirectLane
from tapcore.engine.lane import LONG
from tapcore.files.direct import DirectFile
from tapcore.files.pooledops import ADDRESSES, Moved, PooledOp
from tapcore.nbd import constants as nbd
from tapcore.nbd.outstanding import MAX_HELD, MAX_IN_FLIGHT, Outstanding
from tapcore.nbd.requestparser import RequestParser

MOST_WRITTEN: Final = 128 << 10
"""Bytes of a write at most; longer ones are begun before all of their content has come."""

_A_CALL: Final = 32 << 10
"""Bytes that are worth a call to the kernel of their own, while more is being parsed."""

_A_MOMENT: Final = 0.01
"""Seconds that the disk has for the only request of the only client."""

_ON_ITS_WAY: Final = memoryview(b"")

Token: TypeAlias = tuple[DirectGroup, int, int, int, memoryview]
"""Of an operation: its group, the request's offset and length (bytes), its cookie, its buffer."""

Answer: TypeAlias = Callable[[DirectGroup, list[Moved]], object]

Again: TypeAlias = Callable[[int, int, int, memoryview], object]
"""Lets the engine do what did not go: a request's cookie, its offset and length, and its buffer,
which is to be given back; its memory is not counted."""


class DirectRequests:
    """Those of one client.

    Args:
        engine: of the disk.
        outstanding: what the client is owed.
        parser: of what it sends.
        read_again: for reads that did not go.
        write_again: for writes; None: it may not write.

    Attributes:
        lane: of the disk.
    """

    __slots__ = (
        "_files",
        "_outstanding",
        "_parser",
        "_read_again",
        "_replies",
        "_write_again",
        "lane",
    )

    def __init__(
        self,
        engine: Engine,
        outstanding: Outstanding,
        parser: RequestParser,
        read_again: Again,
        write_again: Again | None,
    ) -> None:
        self.lane: DirectLane = engine.direct_lane
        self._outstanding = outstanding
        self._parser = parser
        self._replies = outstanding.replies
        self._read_again = read_again
        self._write_again = write_again
        self._files: list[DirectFile] = []

    # ---- rows of requests -------------------------------------------------------------------

    def take_rows(self) -> None:
        """Queue the plain READs and short WRITEs with which what was received begins.

        The first that is not in the lane, or has to wait, is left to others with all behind it.
        """
        lane, parser, replies = self.lane, self._parser, self._replies
        lane.begin()
        more = lane.on and not lane.accounts.dispatcher.busy  # nobody is overtaken
        if replies.queued - replies.sent > MAX_HELD:  # whoever is asked next says stop
            more = False
        while more and (head := parser.first()) is not None:
            if head[2] == nbd.CMD_READ:
                more = self._take_reads()
            else:
                more = head[2] == nbd.CMD_WRITE and self._take_writes()

    def _take_reads(self) -> bool:
        """Those that follow each other; returns whether there were any."""
        # In one function, and a long one, since calls would be most of what each costs.
        parser, lane, owed = self._parser, self.lane, self._outstanding
        whole, mask, stop, place = lane.whole, lane.mask, lane.end, lane.place_to_read
        left, magic = MAX_IN_FLIGHT - owed.in_flight, parser.magic
        address_of, take, ops = ADDRESSES.get, POOL.take, list[PooledOp]()
        room, known, free, queued, taken = self._room(), 0, 0, 0, 0
        shelf: list[memoryview] = []
        group = None
        for found, flags, command, cookie, offset, length in parser.reads():
            if command or flags or found != magic or not 0 < length <= MOST or taken >= left:
                break
            if whole is not None and length < LONG:
                if (offset | length) & mask or offset + length > stop:
                    break
                where = offset
            elif (where := place(offset, length)) < 0:
                break
            if group is None or (whole is None and group.is_other(lane)):
                if ops:
                    self._queue(ops)
                    ops, queued = [], 0
                group = lane.group(READ, self._have_read)
                free = group.file.room
            if length > room or not free:
                break
            if length != known:
                known, shelf = length, POOL.shelf(length)
            try:
                lease = shelf.pop()  # not asked first: disks in other threads take from it too
            except IndexError:
                lease = take(length)
            token = group, offset, length, cookie, lease
            ops.append((where, address_of(id(lease)) or group.file.address(lease), length, token))
            room -= len(lease)
            free -= 1
            taken += 1
            queued += length
            if queued >= _A_CALL:
                self._queue(ops)
                ops, queued = [], 0
        if ops:
            self._queue(ops)
        parser.passed(taken)
        return taken > 0

    def _take_writes(self) -> bool:
        """The same of writes, of whose content there are copies then."""
        parser, lane, owed = self._parser, self.lane, self._outstanding
        rx, head_size, known_flags = parser.received, parser.head_size, parser.known_flags
        left, first = MAX_IN_FLIGHT - owed.in_flight, parser.first
        whole, mask, place, ops = lane.whole, lane.mask, lane.place_to_write, list[PooledOp]()
        room, free, queued, taken = self._room(), 0, 0, 0
        group = None
        if self._write_again is None:
            return False
        view, address_of = rx.view, ADDRESSES.get
        start, stop = lane.writable() if whole is not None else (0, 0)
        while (head := first()) is not None:
            _, flags, command, cookie, offset, length = head
            body = rx.start + head_size
            if (
                command != nbd.CMD_WRITE
                or flags & known_flags
                or not 0 < length <= MOST_WRITTEN
                or rx.end - body < length
                or taken >= left
            ):
                break
            if whole is not None:
                if (offset | length) & mask or offset < start or offset + length > stop:
                    break
                where = offset
            elif (where := place(offset, length)) < 0:
                break
            if group is None or (whole is None and group.is_other(lane)):
                if ops:
                    self._queue(ops)
                    ops, queued = [], 0
                group = lane.group(WRITE, self._have_written)
                free = group.file.room
            if length > room or not free:
                break
            lease = POOL.take(length)
            lease[:length] = view[body : body + length]
            rx.start = body + length
            token = group, offset, length, cookie, lease
            address = address_of(id(lease)) or group.file.address(lease)
            ops.append((where, address, length, token))
            room -= len(lease)
            free -= 1
            taken += 1
            queued += length
            if queued >= _A_CALL:
                self._queue(ops)
                ops, queued = [], 0
        if ops:
            self._queue(ops)
        return taken > 0

    def _room(self) -> int:
        """Bytes of buffers that may be taken."""
        owed = self._outstanding
        return min(owed.budget.room, MAX_HELD - owed.held)

    def _queue(self, ops: list[PooledOp]) -> None:
        """Queue operations of one group."""
        owed = self._outstanding
        group: DirectGroup = ops[0][3][0]
        group.taken = owed.taken
        size = sum([len(op[3][4]) for op in ops])
        owed.held += size
        owed.budget.room -= size  # until the replies, which get it, give it back
        owed.in_flight += len(ops)
        group.queue(ops)
        if group.file not in self._files:
            self._files.append(group.file)

    def submit(self) -> None:
        """Hand to the kernel all that is queued. What it refuses is answered in the call."""
        files, self._files = self._files, []
        for file in files:
            file.submit()

    # ---- single ones ------------------------------------------------------------------------

    def read(self, cookie: int, offset: int, length: int) -> bool:
        """A plain READ between others; returns whether it is queued, for `submit`."""
        if not self.lane.on or not 0 < length <= MOST:
            return False
        where = self.lane.place_to_read(offset, length)
        if where < 0:
            return False
        return self._queue_one(READ, self._have_read, where, cookie, offset, length)

    def write(self, cookie: int, offset: int, content: memoryview) -> bool:
        """The same of a plain WRITE."""
        length = len(content)
        if not 0 < length <= MOST_WRITTEN or self._write_again is None:
            return False
        where = self.lane.place_to_write(offset, length)
        if where < 0:
            return False
        done = self._have_written
        return self._queue_one(WRITE, done, where, cookie, offset, length, content)

    def _queue_one(
        self,
        op: int,
        answer: Answer,
        where: int,
        cookie: int,
        offset: int,
        length: int,
        content: memoryview | None = None,
    ) -> bool:
        group = self.lane.group(op, answer)
        file = group.file
        if not file.room or self.lane.accounts.dispatcher.busy:
            return False
        lease = POOL.take(length)
        if content is not None:
            lease[:length] = content
        token = group, offset, length, cookie, lease
        address = ADDRESSES.get(id(lease)) or file.address(lease)
        self._queue([(where, address, length, token)])
        return True

    def at_once(
        self, op: int, cookie: int, offset: int, length: int, content: memoryview | None
    ) -> memoryview | None:
        """The only request of the only client: the disk has a moment for it.

        Returns:
            Its buffer, which is to be given back: it is done, and not answered. An empty one: it is
            on its way, and answered as any other. None: ask somebody else.
        """
        lane = self.lane
        if lane.accounts.in_flight or not lane.on or not 0 < length <= MOST_WRITTEN:
            return None
        lane.begin()
        answer: Answer = self._have_read
        if op == READ:
            where = lane.place_to_read(offset, length)
        else:
            answer = self._have_written
            where = -1 if self._write_again is None else lane.place_to_write(offset, length)
        if where < 0:
            return None
        group = lane.group(op, answer)
        file = group.file
        if file.in_flight or not file.room:
            return None
        lease = POOL.take(length)
        if content is not None:
            lease[:length] = content
        address = ADDRESSES.get(id(lease)) or file.address(lease)
        moved = (where, address, length, (group, offset, length, cookie, lease))
        res = file.move(op != READ, moved, _A_MOMENT)
        lane.changes += op != READ
        if res == length:
            return lease
        owed = self._outstanding
        group.taken = owed.taken
        owed.held += len(lease)
        owed.budget.room -= len(lease)
        owed.in_flight += 1
        if res is None:
            group.begun()  # so far nobody else could have asked
        else:
            answer(group, [(res, moved[3])])
        return _ON_ITS_WAY

    # ---- answers ----------------------------------------------------------------------------

    def _have_read(self, group: DirectGroup, moved: list[Moved]) -> None:
        whole = moved
        if self._outstanding.gone or _any_short(moved):
            whole = self._without_failed(moved, self._read_again)
        if whole:
            owed = self._outstanding
            owed.in_flight -= len(whole)
            owed.held -= self._replies.pooled(whole)
            self._count(READ, group.taken, whole)

    def _have_written(self, group: DirectGroup, moved: list[Moved]) -> None:
        whole = moved
        if self._outstanding.gone or _any_short(moved):
            assert self._write_again is not None
            whole = self._without_failed(moved, self._write_again)
        if whole:
            owed = self._outstanding
            leases = [token[4] for _, token in whole]
            size = POOL.give_all(leases)
            owed.in_flight -= len(whole)
            owed.held -= size
            owed.budget.give_back(size)
            self._count(WRITE, group.taken, whole)
            done = self._replies.done
            for _, (_, offset, _, cookie, _) in whole:
                done(cookie, offset)

    def _count(self, op: int, taken: float, moved: list[Moved]) -> None:
        """As `Outstanding.driven`, of many."""
        meter = self._outstanding.meter
        if meter is not None:
            meter.driven += [(meter, op, token[2], taken, 0.0, 0) for _, token in moved]

    def _without_failed(self, moved: list[Moved], again: Again) -> list[Moved]:
        """Let the engine do what did not go, unless nobody waits for it; returns the rest."""
        owed, whole = self._outstanding, []
        for each in moved:
            res, (_, offset, length, cookie, lease) = each
            if res == length and not owed.gone:
                whole.append(each)
                continue
            owed.in_flight -= 1
            owed.held -= len(lease)
            owed.budget.give_back(len(lease))
            if owed.gone:
                POOL.give(lease)
            else:
                again(cookie, offset, length, lease)
        return whole


def _any_short(moved: list[Moved]) -> bool:
    return bool([None for res, token in moved if res != token[2]])  # no generator: each batch asks
