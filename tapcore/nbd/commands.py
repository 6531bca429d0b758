"""Requests that write no data and read none: flush, trim, write zeroes, cache, block status."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from tapcore.engine import DISCARD, FLUSH, ZERO
from tapcore.engine.loop import Deadline
from tapcore.errors import TapError, errno_of
from tapcore.metrics.operations import CACHE, OTHER, STATUS
from tapcore.nbd import constants as nbd
from tapcore.nbd.exportinfo import Negotiated
from tapcore.nbd.exports import Export
from tapcore.nbd.longrequest import PIECE, LongRequest
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.replystyles import StructuredReplies
from tapcore.nbd.requestparser import Command, RequestParser
from tapcore.nbd.share import ANY_REQUEST
from tapcore.nbd.status import MAX_RUNS, STATUS_SECONDS, Context, block_status

_KNOWN_FLAGS: Final = {
    # FUA is taken with every command ("Command flags"), where nothing is written without effect
    nbd.CMD_FLUSH: nbd.CMD_FLAG_FUA,
    nbd.CMD_TRIM: nbd.CMD_FLAG_FUA,
    nbd.CMD_CACHE: nbd.CMD_FLAG_FUA,
    nbd.CMD_WRITE_ZEROES: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO,
    nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_REQ_ONE,
}

_OPERATIONS: Final = {
    nbd.CMD_FLUSH: FLUSH,
    nbd.CMD_TRIM: DISCARD,
    nbd.CMD_CACHE: CACHE,
    nbd.CMD_WRITE_ZEROES: ZERO,
    nbd.CMD_BLOCK_STATUS: STATUS,
}

_ALWAYS: Final = (nbd.CMD_FLUSH, nbd.CMD_CACHE)


class Commands:
    """Carries out such requests of one client.

    Args:
        export: the disk.
        negotiated: what the handshake agreed on.
        outstanding: what the client is owed.
        parser: of what it sends.
        ready: called when there is something for `go_on` to do.

    Attributes:
        unfinished: requests of which a piece is done and the next one is to be begun.
    """

    __slots__ = (
        "_chosen_names",
        "_contexts",
        "_engine",
        "_export",
        "_offered",
        "_outstanding",
        "_parser",
        "_read_only",
        "_ready",
        "_statuses",
        "unfinished",
    )

    def __init__(
        self,
        export: Export,
        negotiated: Negotiated,
        outstanding: Outstanding,
        parser: RequestParser,
        ready: Callable[[], object],
    ) -> None:
        self._export = export
        self._engine = export.engine
        self._outstanding = outstanding
        self._parser = parser
        self._ready = ready
        self.unfinished: list[LongRequest] = []
        flags = negotiated.transmission_flags
        self._read_only = bool(flags & nbd.TransmissionFlag.READ_ONLY)
        self._offered = set(_ALWAYS)
        if flags & nbd.TransmissionFlag.SEND_TRIM:
            self._offered.add(nbd.CMD_TRIM)
        if flags & nbd.TransmissionFlag.SEND_WRITE_ZEROES:
            self._offered.add(nbd.CMD_WRITE_ZEROES)
        replies = outstanding.replies
        self._statuses = replies if isinstance(replies, StructuredReplies) else None
        self._chosen_names = negotiated.contexts if self._statuses is not None else {}
        if self._chosen_names:
            self._offered.add(nbd.CMD_BLOCK_STATUS)
        self._contexts: dict[int, Context] = {}
        self.follow()

    def follow(self) -> None:
        """What contexts say is of the images that there are now."""
        context = self._export.context
        self._contexts = {number: context(name) for number, name in self._chosen_names.items()}

    def wants_payload(self, asked: Command) -> bool:
        """Whether a request with extended headers takes a payload of `asked.length` bytes."""
        ids, odd = divmod(asked.length - nbd.U64.size, nbd.U32.size)
        fits = not odd and 0 < ids <= len(self._contexts)
        return asked.number == nbd.CMD_BLOCK_STATUS and fits

    def memory_for(self, asked: Command) -> int:
        """Bytes that its answer takes at most, without its data."""
        if asked.number != nbd.CMD_BLOCK_STATUS or asked.flags & nbd.CMD_FLAG_REQ_ONE:
            return ANY_REQUEST
        return ANY_REQUEST + len(self._contexts) * MAX_RUNS * nbd.STATUS_DESCRIPTOR_EXT.size

    def take(self, asked: Command) -> None:
        """Any request but READ, WRITE and DISC; with a payload where it wants one."""
        command, length = asked.number, asked.length
        if command not in self._offered or asked.flags & ~_KNOWN_FLAGS[command]:
            self.refuse(asked, *self._why_not(command, asked.flags))
            return
        if asked.payload is not None:
            (length,) = nbd.U64.unpack_from(asked.payload)
        if command != nbd.CMD_FLUSH and asked.offset + length > self._engine.size:
            # the specification wants ENOSPC of what writes, EINVAL of what does not
            code = errno.ENOSPC if command == nbd.CMD_WRITE_ZEROES else errno.EINVAL
            self.refuse(asked, code, self._outstanding.past_end(asked.offset, length))
            return
        if command == nbd.CMD_BLOCK_STATUS:
            self._block_status(asked, length)
        elif command == nbd.CMD_CACHE:
            self._export.prefetch(asked.offset, min(length, PIECE))
            self._outstanding.told(CACHE, length)
            self._outstanding.replies.done(asked.cookie, asked.offset)
        elif command == nbd.CMD_FLUSH:
            self._flush(asked)
        else:
            self._queue(asked)

    def refuse(self, asked: Command, code: int, reason: str) -> None:
        """Answer with an error, without asking a driver; `code` is a positive errno."""
        operation = _OPERATIONS.get(asked.number, OTHER)
        refuse = self._outstanding.refuse_at_once
        refuse(operation, asked.length, asked.cookie, asked.offset, code, reason)

    def _why_not(self, command: int, flags: int) -> tuple[int, str]:
        """The errno and the reason for a request that cannot be, whatever its range."""
        if self._read_only and command in (nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
            return errno.EPERM, "the export is read-only"
        if command == nbd.CMD_BLOCK_STATUS and not self._contexts:
            return errno.EINVAL, "no metadata context was chosen"
        if command not in self._offered:
            return errno.EINVAL, f"command {command} is not offered"
        return errno.EINVAL, f"command {command} does not take the flags {flags:#x}"

    # ---- for the engine ---------------------------------------------------------------------

    def _flush(self, asked: Command) -> None:
        owed = self._outstanding

        def flushed(req: NbdRequest) -> None:
            owed.in_flight -= 1
            owed.driven(req)
            if not req.status:
                owed.replies.done(asked.cookie, asked.offset)
            elif not owed.gone:
                owed.refuse_failed(req, asked.cookie, asked.offset)

        owed.in_flight += 1
        req = NbdRequest(FLUSH, 0, 0, None, flushed)
        req.taken = owed.taken
        self._engine.submit(req)

    def _queue(self, asked: Command) -> None:
        """With all that follow, and are the same where this one ends."""
        parser, size, at_once = self._parser, self._engine.size, self._outstanding.may_join
        rx, same = parser.received, (asked.flags, asked.number)
        found, end = [(asked.cookie, asked.offset, asked.length)], asked.offset + asked.length
        while len(found) < at_once and (head := parser.first()) is not None:
            _, flags, number, cookie, offset, length = head
            if offset != end or (flags, number) != same or not length or end + length > size:
                break
            rx.start += parser.head_size
            found.append((cookie, offset, length))
            end += length
        op = _OPERATIONS[asked.number]
        LongRequest(self._export, self._outstanding, op, asked.flags, found, self._later).go_on()

    def _later(self, request: LongRequest) -> None:
        self.unfinished.append(request)
        self._ready()

    def go_on(self) -> None:
        """Begin the next piece of each long request."""
        requests, self.unfinished = self.unfinished, []
        for request in requests:
            request.go_on()

    def give_up(self) -> None:
        """The client has gone."""
        requests, self.unfinished = self.unfinished, []
        for request in requests:
            request.give_up()

    # ---- block status -----------------------------------------------------------------------

    def _block_status(self, asked: Command, length: int) -> None:
        assert self._statuses is not None
        chosen = self._chosen(asked.payload)
        if not length or chosen is None:
            why = "a context is named twice, or was not chosen" if length else "of no bytes"
            self.refuse(asked, errno.EINVAL, f"block status: {why}")
            return
        only_one = bool(asked.flags & nbd.CMD_FLAG_REQ_ONE)
        patience = Deadline(STATUS_SECONDS)
        look = partial(block_status, only_one=only_one, patience=patience)
        try:
            answers = [
                (number, look(context, asked.offset, length)) for number, context in chosen.items()
            ]
        except (OSError, TapError) as exc:
            self.refuse(asked, errno_of(exc), _reason(exc))
            return
        self._outstanding.told(STATUS, length)
        self._statuses.block_status(asked.cookie, asked.offset, answers)

    def _chosen(self, payload: bytes | None) -> Mapping[int, Context] | None:
        """The contexts that are asked for; None where a payload names others, or one twice."""
        if payload is None:
            return self._contexts
        numbers = [number for (number,) in nbd.U32.iter_unpack(payload[nbd.U64.size :])]
        chosen = {each: self._contexts[each] for each in numbers if each in self._contexts}
        return chosen if len(chosen) == len(numbers) else None


def _reason(exc: OSError) -> str:
    """For clients: what is wrong, but not the name of a file."""
    if isinstance(exc, TapError):
        return exc.message
    return exc.strerror or ""
