"""Requests with a payload that are no WRITE: with extended headers any may have one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import attrs

from tapcore.nbd import constants as nbd
from tapcore.nbd.commands import Commands
from tapcore.nbd.requestparser import Command, RequestParser


@attrs.frozen
class Payloads:
    """Takes them for one client, though hardly one is wanted.

    Args:
        parser: of what the client sends.
        commands: carries out those that want one.
        has_room: whether a request may take so many bytes; else it was put back, and is tried again
            later.
    """

    _parser: RequestParser
    _commands: Commands
    _has_room: Callable[[int], bool]

    def take(self, asked: Command) -> bool:
        """Returns False where more must come first, or the client has broken the protocol."""
        parser, length = self._parser, asked.length
        if length > nbd.DEFAULT_BLOCK_MAX:
            parser.error = "sent a payload that is longer than 32 MiB"
            return False
        asked = attrs.evolve(asked, flags=asked.flags ^ parser.payload_flag)
        if not self._commands.wants_payload(asked):
            why = f"command {asked.number} takes no payload of {length} bytes"
            refuse = partial(self._commands.refuse, asked, errno.EINVAL, why)
            parser.pass_over(length, refuse)
            return True
        if not self._has_room(self._commands.memory_for(asked)):
            return False
        payload = parser.payload(length)
        if payload is None:
            parser.put_back()
            return False
        self._commands.take(attrs.evolve(asked, payload=payload))
        return True
