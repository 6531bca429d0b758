"""A client's bytes taken apart into requests, without doing anything about them.

"Request message" of doc/proto.md (NetworkBlockDevice/nbd), and of its branch extension-ext-header.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import attrs

from tapcore.nbd import constants as nbd
from tapcore.nbd.receive import ReceiveBuffer

Head: TypeAlias = tuple[int, int, int, int, int, int]
"""A request's header as it is unpacked: magic, flags, command, cookie, offset, length (bytes). A
plain tuple: each request has one."""

Asked: TypeAlias = tuple[int, int, int]
"""A request as its answer names it: the client's cookie for it; its offset and length, bytes."""


@attrs.frozen
class Command:
    """A request that is neither a plain READ nor a WRITE: those are many, and have no object.

    Attributes:
        number: NBD_CMD_...
        flags: NBD_CMD_FLAG_..., without PAYLOAD_LEN where there is a payload.
        cookie: the client's name for it.
        offset: bytes.
        length: bytes of the disk; with a payload its own bytes.
        payload: what came with it; None where nothing did.
    """

    number: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: bytes | None = None


_COMMAND: Final = 7
"""Where in a header the command's last byte stands: a READ's is zero."""


class RequestParser:
    """Where one request ends, and the next begins.

    Args:
        extended: extended headers were negotiated.
        initial: bytes that came after the handshake's last option.

    Attributes:
        received: the bytes that are there.
        payload_flag: what tells that a payload follows the header, whatever the command; 0 where
            only a WRITE has one.
        known_flags: the flags of a WRITE that mean something. That its payload follows does not: it
            does without that flag as well (QEMU's client, 10.0, does not set it).
        head_size: bytes of a header.
        skipping: bytes of a payload that nobody wants, and that have not arrived yet.
        magic: with which a header begins.
        error: why the rest cannot be told apart; empty where it can.
    """

    __slots__ = (
        "_then",
        "_unpack",
        "_unpack_all",
        "error",
        "head_size",
        "known_flags",
        "magic",
        "payload_flag",
        "received",
        "skipping",
    )

    def __init__(self, *, extended: bool, initial: bytes = b"") -> None:
        self.received = ReceiveBuffer(initial)
        form: Final = nbd.EXTENDED_REQUEST if extended else nbd.REQUEST
        self._unpack = form.unpack_from
        self._unpack_all = form.iter_unpack
        self.magic = nbd.EXTENDED_REQUEST_MAGIC if extended else nbd.REQUEST_MAGIC
        self.head_size = form.size
        self.payload_flag = nbd.CMD_FLAG_PAYLOAD_LEN if extended else 0
        self.known_flags = ~self.payload_flag
        self.skipping = 0
        self._then: Callable[[], object] = _nothing
        self.error = ""

    def heads(self) -> Iterator[Head]:
        """Each request whose header is there, taken out of what was received.

        Who takes one takes its payload too (`payload`, `pass_over`) before he asks for the next, or
        stops, and puts it back (`put_back`).
        """
        rx, size, unpack, magic = self.received, self.head_size, self._unpack, self.magic
        while rx.end - rx.start >= size:
            head = unpack(rx.view, rx.start)
            if head[0] != magic:
                self.error = "sent something that is not a request"
                return
            rx.start += size
            yield head

    def read_comes_first(self) -> bool:
        """Whether a READ is there whole, and more behind it: then `reads` pays."""
        rx = self.received
        return rx.end - rx.start > self.head_size and not rx.view[rx.start + _COMMAND]

    def reads(self) -> Iterator[Head]:
        """What was received, as if there were headers only: true up to the first that is no READ.

        They stay there: `passed` is told how many were taken. Whoever takes one looks at its magic.
        """
        rx, size = self.received, self.head_size
        start = rx.start
        return self._unpack_all(rx.view[start : start + (rx.end - start) // size * size])

    def passed(self, count: int) -> None:
        """So many of those are taken."""
        self.received.start += count * self.head_size

    def first(self) -> Head | None:
        """The header with which what was received begins, which stays there; None: ask `heads`."""
        rx = self.received
        if rx.end - rx.start < self.head_size:
            return None
        head: Head = self._unpack(rx.view, rx.start)
        return head if head[0] == self.magic else None

    def put_back(self) -> None:
        """The header that was taken last: its payload has not arrived yet."""
        self.received.start -= self.head_size

    def payload(self, length: int) -> bytes | None:
        """A short payload (bytes), which is taken; None where it has not arrived yet."""
        rx = self.received
        if rx.end - rx.start < length:
            return None
        start = rx.start
        rx.start = start + length
        return bytes(rx.view[start : rx.start])

    def pass_over(self, length: int, then: Callable[[], object]) -> None:
        """Nobody wants a payload (bytes): call `then` when all of it has come, and is forgotten.

        Not before, since clients take an answer in the middle of what they send for garbage (libnbd
        1.14).
        """
        self.skipping, self._then = length, then
        self.skip()

    def skip(self) -> None:
        """Go on with a payload that nobody wants."""
        rx = self.received
        count = min(self.skipping, rx.end - rx.start)
        rx.start += count
        self.skipping -= count
        if not self.skipping:
            self._then()


def _nothing() -> None:
    """Nobody waits for the end of a payload."""
