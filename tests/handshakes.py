"""A client's side of the NBD handshake, bytes in and bytes out: no sockets.

What a client sends and what it has to get is spelled here with struct formats of its own, so that
a wrong constant in the code is not repeated by its test.
"""

import itertools
import struct
from collections.abc import Iterable, Sequence

import attrs

from tapcore.nbd.exportinfo import ExportInfo
from tapcore.nbd.handshake import (
    Handshake,
    HandshakeLimits,
    TlsMode,
)

GREETING = b"NBDMAGICIHAVEOPT" + b"\x00\x03"
FIXED, NO_ZEROES, BOTH = (struct.pack(">I", flags) for flags in (1, 2, 3))

EXPORT_NAME, ABORT, LIST, PEEK, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = (
    range(1, 12)
)
ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, INVALID, TLS_REQD, UNKNOWN, TOO_BIG, EXT_HEADER_REQD = (
    (1 << 31) + n for n in (1, 3, 5, 6, 9, 10)
)
HAS_FLAGS, SEND_WRITE_ZEROES, SEND_DF, SEND_FAST_ZERO = 1, 1 << 6, 1 << 7, 1 << 11
BLOCK_STATUS_PAYLOAD = 1 << 12

DISK = ExportInfo("disk", 1 << 40, 0x0C65, "the first", 512, 65536, 1 << 20)
EMPTY = ExportInfo("lé vide", 0, HAS_FLAGS)
TRACED = ExportInfo("traced", 7, 0xFFFF, contexts=("base:allocation", "x-tap:depth", "x-tap:hot"))


@attrs.frozen
class Catalog:
    """Exports in memory; the first is the default one."""

    exports: tuple[ExportInfo, ...] = (DISK, EMPTY, TRACED)

    def list_exports(self) -> Sequence[ExportInfo]:
        return self.exports

    def find_export(self, name: str) -> ExportInfo | None:
        if not name and self.exports:
            return self.exports[0]
        return next((export for export in self.exports if export.name == name), None)


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """One option as a client sends it; `length` is a lie about its data."""
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data) if length is None else length) + data


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def info(name: str | bytes, *wanted: int) -> bytes:
    return string(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta(name: str | bytes, *queries: str | bytes) -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    """One option reply as a server has to send it."""
    return struct.pack(">QIII", 0x0003E889045565A9, number, kind, len(data)) + data


def info_export(number: int, size: int, flags: int) -> bytes:
    return reply(number, REP_INFO, struct.pack(">HQH", 0, size, flags))


def block_size(number: int, low: int = 1, preferred: int = 4096, high: int = 1 << 25) -> bytes:
    return reply(number, REP_INFO, struct.pack(">HIII", 3, low, preferred, high))


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """Option replies taken apart: option, type, data."""
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x0003E889045565A9
        assert len(data) >= 20 + length
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def run(
    data: bytes, *, pieces: Iterable[bytes] | None = None, limits: HandshakeLimits | None = None
) -> tuple[Handshake, bytes]:
    """A handshake that got `data`, and what it sent after its greeting."""
    handshake = Handshake(Catalog(), limits=limits or HandshakeLimits())
    assert handshake.data_to_send() == GREETING
    sent = bytearray()
    for piece in [data] if pieces is None else pieces:
        handshake.receive(piece)
        sent += handshake.data_to_send()
    return handshake, bytes(sent)


def outcome(handshake: Handshake) -> tuple[object, ...]:
    return handshake.state, handshake.negotiated, handshake.leftover, handshake.error


def talk(*options: bytes, flags: bytes = BOTH) -> tuple[Handshake, bytes]:
    """The outcome of a conversation, which must not depend on how it is cut into pieces."""
    data = flags + b"".join(options)
    handshake, sent = run(data)
    if len(data) < 20000:
        slow, slowly_sent = run(data, pieces=[data[n : n + 1] for n in range(len(data))])
        assert slowly_sent == sent
        assert outcome(slow) == outcome(handshake)
    return handshake, sent


def kinds(sent: bytes) -> list[int]:
    return [kind for _, kind, _ in replies(sent)]


def started(mode: TlsMode, *options: bytes) -> tuple[Handshake, bytes]:
    handshake = Handshake(Catalog(), tls=mode)
    handshake.data_to_send()
    handshake.receive(BOTH + b"".join(options))
    return handshake, handshake.data_to_send()


CHOICE = option(SET_META, meta("disk", "base:allocation"))
