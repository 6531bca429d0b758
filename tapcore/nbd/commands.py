"""Requests that bring no data and ask for none: flush, trim, write zeroes, cache, block status."""

from __future__ import annotations

import errno
from typing import Final

from tapcore.engine import DISCARD, FLUSH, ZERO
from tapcore.errors import TapError, errno_of
from tapcore.nbd import constants as nbd
from tapcore.nbd.exports import Export
from tapcore.nbd.handshake import Negotiated
from tapcore.nbd.outstanding import NbdRequest, Outstanding
from tapcore.nbd.status import block_status

_KNOWN_FLAGS: Final = {
    nbd.CMD_FLUSH: nbd.CMD_FLAG_FUA,  # meaningless there, but harmless
    nbd.CMD_TRIM: nbd.CMD_FLAG_FUA,
    nbd.CMD_CACHE: 0,
    nbd.CMD_WRITE_ZEROES: nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO,
    nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_REQ_ONE,
}

_ALWAYS: Final = (nbd.CMD_FLUSH, nbd.CMD_CACHE)


class Commands:
    """Carries out such requests of one client.

    Args:
        export: the disk.
        negotiated: what the handshake agreed on.
        outstanding: what the client is owed.
    """

    __slots__ = ("_contexts", "_engine", "_export", "_offered", "_outstanding", "_read_only")

    def __init__(self, export: Export, negotiated: Negotiated, outstanding: Outstanding) -> None:
        self._export = export
        self._engine = export.engine
        self._outstanding = outstanding
        flags = negotiated.transmission_flags
        self._read_only = bool(flags & nbd.TransmissionFlag.READ_ONLY)
        self._offered = set(_ALWAYS)
        if flags & nbd.TransmissionFlag.SEND_TRIM:
            self._offered.add(nbd.CMD_TRIM)
        if flags & nbd.TransmissionFlag.SEND_WRITE_ZEROES:
            self._offered.add(nbd.CMD_WRITE_ZEROES)
        if negotiated.contexts:
            self._offered.add(nbd.CMD_BLOCK_STATUS)
        self._contexts = [
            (number, export.context(name)) for number, name in negotiated.contexts.items()
        ]

    def take(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        """Any request but READ, WRITE and DISC: offset and length in bytes."""
        if command not in self._offered or flags & ~_KNOWN_FLAGS[command]:
            self._outstanding.refuse(cookie, *self._why_not(command, flags))
            return
        if command != nbd.CMD_FLUSH and offset + length > self._engine.size:
            # the specification wants ENOSPC of what writes, EINVAL of what does not
            code = errno.ENOSPC if command == nbd.CMD_WRITE_ZEROES else errno.EINVAL
            self._outstanding.refuse(cookie, code, self._outstanding.past_end(offset, length))
            return
        if command == nbd.CMD_BLOCK_STATUS:
            self._block_status(flags, cookie, offset, length)
            return
        if command == nbd.CMD_CACHE:
            self._export.prefetch(offset, length)
            self._outstanding.replies.done(cookie)
            return
        self._queue(command, flags, cookie, offset, length)

    def _why_not(self, command: int, flags: int) -> tuple[int, str]:
        """The errno and the reason for a request that cannot be, whatever its range."""
        if self._read_only and command in (nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
            return errno.EPERM, "the export is read-only"
        if command == nbd.CMD_BLOCK_STATUS and not self._contexts:
            return errno.EINVAL, "no metadata context was chosen"
        if command not in self._offered:
            return errno.EINVAL, f"command {command} is not offered"
        return errno.EINVAL, f"command {command} does not take the flags {flags:#x}"

    def _queue(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        if command == nbd.CMD_FLUSH:
            op, offset, length = FLUSH, 0, 0
        else:
            op = DISCARD if command == nbd.CMD_TRIM else ZERO
            self._export.before_giving_up()
        req = NbdRequest(op, offset, length, None, self._outstanding.finished)
        req.cookie = cookie
        req.fua = bool(flags & nbd.CMD_FLAG_FUA) and op != FLUSH
        req.may_unmap = not flags & nbd.CMD_FLAG_NO_HOLE
        req.fast = bool(flags & nbd.CMD_FLAG_FAST_ZERO)
        self._outstanding.in_flight += 1
        self._engine.submit(req)

    def _block_status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if not length:
            self._outstanding.refuse(cookie, errno.EINVAL, "the status of no bytes was asked for")
            return
        only_one = bool(flags & nbd.CMD_FLAG_REQ_ONE)
        try:
            answers = [
                (number, block_status(context, offset, length, only_one=only_one))
                for number, context in self._contexts
            ]
        except (OSError, TapError) as exc:
            self._outstanding.refuse(cookie, errno_of(exc), _reason(exc))
            return
        self._outstanding.replies.block_status(cookie, answers)


def _reason(exc: OSError) -> str:
    """For clients: what is wrong, but not the name of a file."""
    if isinstance(exc, TapError):
        return exc.message
    return exc.strerror or ""
