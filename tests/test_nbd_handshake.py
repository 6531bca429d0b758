"""The NBD handshake, bytes in and bytes out: no sockets.

What a client sends and what it has to get is spelled here with struct formats of its own, so that
a wrong constant in the code is not repeated by its test.
"""

import errno
import itertools
import struct
from collections.abc import Iterable, Sequence

import attrs
import pytest
from cputime import CpuTime
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapcore.nbd import constants
from tapcore.nbd.exportinfo import ExportInfo
from tapcore.nbd.handshake import (
    Handshake,
    HandshakeLimits,
    HandshakeState,
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


def test_the_server_greets_before_the_client_says_anything() -> None:
    handshake = Handshake(Catalog())
    assert handshake.data_to_send() == GREETING
    assert handshake.data_to_send() == b""
    assert handshake.state is HandshakeState.NEGOTIATING
    assert (handshake.negotiated, handshake.leftover, handshake.error) == (None, b"", None)


def test_any_buffer_may_be_fed() -> None:
    data = BOTH + option(GO, info("disk"))
    expected, sent = run(data)
    for fed in (bytearray(data), memoryview(data)):
        handshake = Handshake(Catalog())
        handshake.receive(fed)
        assert handshake.data_to_send() == GREETING + sent
        assert outcome(handshake) == outcome(expected)


# Client flags.


@pytest.mark.parametrize("flags", [4, 8, 1 << 31, 0xFFFFFFFF, 0x00010001])
def test_unknown_client_flags_close(flags: int) -> None:
    handshake, sent = talk(option(LIST), flags=struct.pack(">I", flags))
    assert handshake.state is HandshakeState.CLOSED
    assert sent == b""
    assert handshake.error == f"unknown client flags {flags:#x}"


@pytest.mark.parametrize("flags", [bytes(4), NO_ZEROES])
def test_without_fixed_newstyle_only_export_name_is_served(flags: bytes) -> None:
    for number in (*range(2, 13), 0, 0xFFFFFFFF):
        handshake, sent = talk(option(number), flags=flags)
        assert (handshake.state, sent) == (HandshakeState.CLOSED, b"")
        assert handshake.error == f"option {number} from a client without fixed newstyle"
    handshake, _ = talk(option(EXPORT_NAME, b"disk"), flags=flags)
    assert handshake.state is HandshakeState.TRANSMISSION


# EXPORT_NAME.


@pytest.mark.parametrize(
    ("flags", "zeroes"), [(FIXED, 124), (BOTH, 0), (bytes(4), 124), (NO_ZEROES, 0)]
)
def test_export_name(flags: bytes, zeroes: int) -> None:
    handshake, sent = talk(option(EXPORT_NAME, b"disk"), b"request", flags=flags)
    assert sent == struct.pack(">QH", 1 << 40, 0x0C65) + bytes(zeroes)
    assert handshake.state is HandshakeState.TRANSMISSION
    assert handshake.leftover == b"request"
    assert handshake.negotiated is not None
    assert handshake.negotiated.export is DISK
    assert not handshake.negotiated.structured_replies
    assert handshake.negotiated.contexts == {}


def test_export_name_without_a_name_is_the_default_export() -> None:
    handshake, _ = talk(option(EXPORT_NAME))
    assert handshake.negotiated is not None
    assert handshake.negotiated.export is DISK


def test_export_name_keeps_what_was_negotiated() -> None:
    options = (option(STRUCTURED), option(SET_META, meta("disk", "base:allocation")))
    handshake, _ = talk(*options, option(EXPORT_NAME, b"disk"))
    assert handshake.negotiated is not None
    assert handshake.negotiated.structured_replies
    assert handshake.negotiated.contexts == {1: "base:allocation"}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"nothing", "there is no export 'nothing'"),
        (b"Disk", "there is no export 'Disk'"),
        (b"a\nb\x1b", r"there is no export 'a\nb\x1b'"),
        (b"x" * 4096, "there is no export '" + "x" * 64 + "'"),
        (b"x" * 4097, "export name has 4097 bytes"),
        (b"\xff", "export name is not UTF-8"),
        (b"\xed\xa0\x80", "export name is not UTF-8"),
        (b"disk\0", "export name contains a NUL"),
    ],
)
def test_export_name_that_cannot_be_served_closes_without_a_word(name: bytes, error: str) -> None:
    handshake, sent = talk(option(EXPORT_NAME, name), option(LIST))
    assert sent == b""
    assert handshake.state is HandshakeState.CLOSED
    assert handshake.error == error
    assert handshake.negotiated is None


def test_export_name_too_long_closes_before_its_data_is_there() -> None:
    handshake, _ = run(BOTH + option(EXPORT_NAME, length=4097))
    assert handshake.state is HandshakeState.CLOSED


# LIST.


def test_list() -> None:
    _, sent = talk(option(LIST))
    assert sent == (
        reply(LIST, SERVER, string("disk") + b"the first")
        + reply(LIST, SERVER, string("lé vide"))
        + reply(LIST, SERVER, string("traced"))
        + reply(LIST, ACK)
    )


def test_list_of_nothing() -> None:
    handshake = Handshake(Catalog(()))
    handshake.receive(BOTH + option(LIST) + option(GO, info("")) + option(INFO, info("disk")))
    sent = handshake.data_to_send().removeprefix(GREETING)
    assert kinds(sent) == [ACK, UNKNOWN, UNKNOWN]


# INFO and GO.


@pytest.mark.parametrize("number", [INFO, GO])
def test_info_and_go_tell_size_and_block_sizes_unasked(number: int) -> None:
    handshake, sent = talk(option(number, info("disk")))
    assert sent == (
        info_export(number, 1 << 40, 0x0C65)
        + block_size(number, 512, 65536, 1 << 20)
        + reply(number, ACK)
    )
    if number == GO:
        assert handshake.state is HandshakeState.TRANSMISSION
    else:
        assert handshake.state is HandshakeState.NEGOTIATING
        assert handshake.negotiated is None


@pytest.mark.parametrize("number", [INFO, GO])
@pytest.mark.parametrize(
    "wanted", [(0, 1, 2, 3), (3, 2, 1), (1, 1, 2, 2, 3, 3), (77, 2, 0xFFFF, 1)]
)
def test_info_and_go_tell_what_is_asked_once(number: int, wanted: tuple[int, ...]) -> None:
    _, sent = talk(option(number, info("", *wanted)))
    assert sent == (
        info_export(number, 1 << 40, 0x0C65)
        + reply(number, REP_INFO, b"\x00\x01disk")
        + reply(number, REP_INFO, b"\x00\x02the first")
        + block_size(number, 512, 65536, 1 << 20)
        + reply(number, ACK)
    )


def test_an_export_without_description_has_none_to_tell() -> None:
    _, sent = talk(option(INFO, info("lé vide", 1, 2)))
    assert sent == (
        info_export(INFO, 0, HAS_FLAGS)
        + reply(INFO, REP_INFO, b"\x00\x01" + "lé vide".encode())
        + block_size(INFO)
        + reply(INFO, ACK)
    )


def test_go_leaves_the_bytes_after_it_alone() -> None:
    handshake, sent = talk(
        option(INFO, info("disk")), option(GO, info("disk")), option(LIST), b"end"
    )
    assert handshake.leftover == option(LIST) + b"end"
    assert sent.endswith(reply(GO, ACK))
    handshake.receive(b", more")
    assert handshake.leftover == option(LIST) + b"end, more"
    assert handshake.data_to_send() == b""


def test_a_failed_go_may_be_followed_by_another() -> None:
    handshake, sent = talk(option(GO, info("nothing")), option(GO, info("traced")))
    assert replies(sent)[0] == (GO, UNKNOWN, b"there is no export 'nothing'")
    assert handshake.negotiated is not None
    assert handshake.negotiated.export is TRACED


def test_transmission_flags_follow_the_negotiation() -> None:
    export = attrs.evolve(DISK, transmission_flags=SEND_DF | SEND_FAST_ZERO)
    for before, expected in ((b"", HAS_FLAGS), (option(STRUCTURED), HAS_FLAGS | SEND_DF)):
        handshake = Handshake(Catalog((export,)))
        handshake.receive(BOTH + before + option(GO, info("")))
        assert info_export(GO, 1 << 40, expected) in handshake.data_to_send()
        assert handshake.negotiated is not None
        assert handshake.negotiated.transmission_flags == expected
    _, sent = talk(option(STRUCTURED), option(INFO, info("traced")))
    assert info_export(INFO, 7, 0xFFFF & ~BLOCK_STATUS_PAYLOAD) in sent


# ABORT, STRUCTURED_REPLY, STARTTLS and what nobody knows.


@pytest.mark.parametrize("data", [b"", b"so long", bytes(100_000)])
def test_abort_is_acknowledged_whatever_it_carries(data: bytes) -> None:
    handshake, sent = talk(option(ABORT, data), option(LIST))
    assert sent == reply(ABORT, ACK)
    assert outcome(handshake) == (HandshakeState.CLOSED, None, b"", None)
    handshake.receive(option(LIST))
    assert handshake.data_to_send() == b""


def test_structured_reply() -> None:
    handshake, sent = talk(option(STRUCTURED), option(STRUCTURED), option(GO, info("disk")))
    assert sent.startswith(reply(STRUCTURED, ACK) * 2)
    assert handshake.negotiated is not None
    assert handshake.negotiated.structured_replies


@pytest.mark.parametrize("number", [LIST, STRUCTURED, EXTENDED])
@pytest.mark.parametrize("size", [1, 65536, 65537])
def test_options_without_data_refuse_it(number: int, size: int) -> None:
    handshake, sent = talk(option(number, bytes(size)), option(GO, info("disk")))
    assert replies(sent)[0] == (number, INVALID, b"option takes no data")
    assert handshake.negotiated is not None
    assert not handshake.negotiated.structured_replies
    assert not handshake.negotiated.extended_headers


@pytest.mark.parametrize("number", [0, PEEK, STARTTLS, 12, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 1 << 20])
def test_unknown_options_are_passed_over(number: int, size: int) -> None:
    handshake, sent = talk(option(number, bytes(size)), option(ABORT))
    text = f"option {number} is not supported".encode()
    assert sent == reply(number, UNSUP, text) + reply(ABORT, ACK)
    assert handshake.error is None


# Metadata contexts.

ALL_TRACED = [b"base:allocation", b"x-tap:depth", b"x-tap:hot"]


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ([], ALL_TRACED),
        (["base:"], ALL_TRACED[:1]),
        (["x-tap:"], ALL_TRACED[1:]),
        (["x-tap:hot"], ALL_TRACED[2:]),
        (["base:", "base:allocation", "base:", "x-tap:", "base:"], ALL_TRACED),
        (["base:dirty"], []),
        (["qemu:", "qemu:dirty-bitmap:b0"], []),
        (["", ":", "base", "x-", "x-tap:h", "allocation", "BASE:"], []),
    ],
)
def test_list_meta_context(queries: list[str], expected: list[bytes]) -> None:
    handshake, sent = talk(
        option(STRUCTURED), option(LIST_META, meta("traced", *queries)), option(GO, info("traced"))
    )
    wanted = [reply(LIST_META, META, bytes(4) + name) for name in expected]
    assert sent.startswith(reply(STRUCTURED, ACK) + b"".join(wanted) + reply(LIST_META, ACK))
    assert handshake.negotiated is not None
    assert handshake.negotiated.contexts == {}


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ([], []),
        (["base:"], []),
        (["x-tap:"], []),
        (["base:allocation"], [1]),
        (["x-tap:hot", "base:allocation", "x-tap:hot"], [1, 3]),
        (["base:allocation", "qemu:allocation-depth", "", "base:other"], [1]),
    ],
)
def test_set_meta_context(queries: list[str], expected: list[int]) -> None:
    handshake, sent = talk(
        option(STRUCTURED), option(SET_META, meta("traced", *queries)), option(GO, info("traced"))
    )
    chosen = {number: ALL_TRACED[number - 1] for number in expected}
    wanted = [reply(SET_META, META, struct.pack(">I", n) + name) for n, name in chosen.items()]
    assert sent.startswith(reply(STRUCTURED, ACK) + b"".join(wanted) + reply(SET_META, ACK))
    assert handshake.negotiated is not None
    assert handshake.negotiated.contexts == {n: name.decode() for n, name in chosen.items()}


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ([], [0, 1, 2]),
        (["qemu:"], [0, 1, 2]),
        (["qemu:dirty-bitmap:"], [1, 2]),
        (["qemu:dirty-bitmap:a:"], [2]),
        (["qemu:dirty-bitmap", "qemu:allocation-depth:", "qemu:dirty-bitmap:b"], []),
    ],
)
def test_qemus_wildcards(queries: list[str], expected: list[int]) -> None:
    names = "qemu:allocation-depth", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:a:"
    catalog = Catalog((ExportInfo("disk", 512, HAS_FLAGS, contexts=names),))
    handshake = Handshake(catalog)
    handshake.data_to_send()
    handshake.receive(BOTH + option(STRUCTURED) + option(LIST_META, meta("disk", *queries)))
    wanted = [reply(LIST_META, META, bytes(4) + names[each].encode()) for each in expected]
    end = reply(LIST_META, ACK)
    assert handshake.data_to_send() == reply(STRUCTURED, ACK) + b"".join(wanted) + end
    exact = {each for each in queries if each in names}
    handshake.receive(option(SET_META, meta("disk", *queries)) + option(GO, info("disk")))
    assert handshake.negotiated is not None
    assert set(handshake.negotiated.contexts.values()) == exact


# TLS.


def started(mode: TlsMode, *options: bytes) -> tuple[Handshake, bytes]:
    handshake = Handshake(Catalog(), tls=mode)
    handshake.data_to_send()
    handshake.receive(BOTH + b"".join(options))
    return handshake, handshake.data_to_send()


@pytest.mark.parametrize("mode", [TlsMode.ON, TlsMode.REQUIRE])
def test_starting_tls_forgets_what_was_agreed(mode: TlsMode) -> None:
    handshake = Handshake(Catalog(), tls=mode)
    handshake.data_to_send()
    handshake.receive(BOTH)
    before = [option(STRUCTURED), option(SET_META, meta("traced", "base:allocation"))]
    before += [option(EXTENDED)]
    for each in [*before, option(STARTTLS)]:
        handshake.receive(each)
    assert handshake.state is HandshakeState.STARTING_TLS
    assert handshake.data_to_send().endswith(reply(STARTTLS, ACK))
    handshake.receive(b"what is in the clear does not count")
    handshake.tls_started()
    handshake.receive(option(LIST_META, meta("traced")) + option(STARTTLS))
    assert kinds(handshake.data_to_send()) == [INVALID, INVALID]
    handshake.receive(option(GO, info("traced")))
    negotiated = handshake.negotiated
    assert negotiated is not None
    assert (negotiated.structured_replies, negotiated.contexts) == (False, {})
    assert not negotiated.extended_headers


def test_tls_is_asked_for_before_anything_else() -> None:
    others = [LIST, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED, PEEK, 99]
    _, sent = started(TlsMode.REQUIRE, *(option(n, bytes(100)) for n in others), option(ABORT))
    assert kinds(sent) == [TLS_REQD] * len(others) + [ACK]
    _, sent = started(TlsMode.ON, option(LIST), option(INFO, info("disk")), option(99))
    assert TLS_REQD not in kinds(sent)
    handshake, sent = started(TlsMode.REQUIRE, option(EXPORT_NAME, b"disk"))
    assert (handshake.state, sent) == (HandshakeState.CLOSED, b"")


def test_starttls_alone() -> None:
    handshake, sent = started(TlsMode.REQUIRE, option(STARTTLS, b"data"))
    assert kinds(sent) == [INVALID]
    assert handshake.state is HandshakeState.NEGOTIATING
    for more in (b"I", option(LIST), option(STARTTLS)):
        handshake, sent = started(TlsMode.ON, option(STARTTLS), more)
        assert (handshake.state, sent) == (HandshakeState.CLOSED, b"")
    _, sent = started(TlsMode.OFF, option(STARTTLS))
    assert kinds(sent) == [UNSUP]


@pytest.mark.parametrize("number", [LIST_META, SET_META])
def test_contexts_need_structured_replies_first(number: int) -> None:
    data = option(number, meta("disk", "base:allocation"))
    handshake, sent = talk(data, option(STRUCTURED), option(GO, info("disk")))
    assert kinds(sent)[:2] == [INVALID, ACK]
    assert handshake.negotiated is not None
    assert handshake.negotiated.contexts == {}


# Extended headers.


def test_extended_headers_take_the_place_of_structured_replies() -> None:
    handshake, sent = talk(option(EXTENDED), option(STRUCTURED), option(GO, info("disk")))
    assert kinds(sent)[:2] == [ACK, EXT_HEADER_REQD]
    assert handshake.negotiated is not None
    assert handshake.negotiated.extended_headers
    handshake, sent = talk(option(STRUCTURED), option(EXTENDED), option(GO, info("disk")))
    assert kinds(sent)[:2] == [ACK, ACK]
    assert handshake.negotiated is not None
    assert handshake.negotiated.extended_headers


def test_contexts_with_extended_headers() -> None:
    """They need no structured replies besides."""
    handshake, sent = talk(
        option(EXTENDED), option(LIST_META, meta("disk")), CHOICE, option(GO, info("disk"))
    )
    assert kinds(sent)[:5] == [ACK, META, ACK, META, ACK]
    assert handshake.negotiated is not None
    assert handshake.negotiated.contexts == {1: "base:allocation"}


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ([EXTENDED], SEND_DF),
        ([EXTENDED, SET_META], SEND_DF | BLOCK_STATUS_PAYLOAD),
        ([STRUCTURED, SET_META], SEND_DF),
        ([STRUCTURED, SET_META, EXTENDED], SEND_DF | BLOCK_STATUS_PAYLOAD),
    ],
)
def test_payloads_of_block_status_are_offered_with_contexts(before: list[int], added: int) -> None:
    export = attrs.evolve(DISK, transmission_flags=HAS_FLAGS | SEND_DF)
    for choosing in (INFO, GO):
        handshake = Handshake(Catalog((export, EMPTY)))
        handshake.receive(BOTH)
        for number in before:
            handshake.receive(CHOICE if number == SET_META else option(number))
        handshake.data_to_send()
        handshake.receive(option(choosing, info("disk")))
        assert info_export(choosing, 1 << 40, HAS_FLAGS | added) in handshake.data_to_send()
        if choosing == INFO:  # chosen for one export, which does not count for another
            handshake.receive(option(choosing, info("lé vide")))
            assert info_export(choosing, 0, HAS_FLAGS) in handshake.data_to_send()


def test_export_name_after_extended_headers_closes() -> None:
    """The protocol forbids it, and this option knows no error replies."""
    handshake, sent = talk(option(EXTENDED), option(EXPORT_NAME, b"disk"))
    assert sent == reply(EXTENDED, ACK)
    assert handshake.state is HandshakeState.CLOSED
    assert "after extended headers" in (handshake.error or "")


@pytest.mark.parametrize("number", [LIST_META, SET_META])
def test_contexts_of_an_unknown_export(number: int) -> None:
    _, sent = talk(option(STRUCTURED), option(number, meta("nothing", "base:allocation")))
    assert kinds(sent) == [ACK, UNKNOWN]


CHOICE = option(SET_META, meta("disk", "base:allocation"))


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        ([], True),
        ([option(LIST_META, meta("traced", "base:"))], True),
        ([option(INFO, info("traced"))], True),
        ([option(GO, info("nothing"))], True),
        ([option(STARTTLS)], True),
        ([option(STRUCTURED)], True),
        ([option(EXTENDED)], True),
        ([option(SET_META, meta("disk"))], False),
        ([option(SET_META, meta("disk", "base:"))], False),
        ([option(SET_META, meta("traced", "base:allocation"))], False),
        ([option(SET_META, meta("nothing", "base:allocation"))], False),
        ([option(SET_META, b"malformed")], False),
        ([option(SET_META, bytes(65537))], False),
        ([option(SET_META), CHOICE], True),
    ],
)
def test_a_choice_of_contexts_holds_until_the_next(later: list[bytes], kept: bool) -> None:
    handshake, _ = talk(option(STRUCTURED), CHOICE, *later, option(GO, info("disk")))
    assert handshake.negotiated is not None
    assert handshake.negotiated.contexts == ({1: "base:allocation"} if kept else {})


@pytest.mark.parametrize("go", [option(GO, info("traced")), option(EXPORT_NAME, b"traced")])
def test_contexts_chosen_for_another_export_are_dropped(go: bytes) -> None:
    handshake, _ = talk(option(STRUCTURED), CHOICE, go)
    assert handshake.negotiated is not None
    assert handshake.negotiated.export is TRACED
    assert handshake.negotiated.contexts == {}


def test_contexts_for_the_default_export() -> None:
    choice = option(SET_META, meta("", "base:allocation"))
    handshake, _ = talk(option(STRUCTURED), choice, option(GO, info("")))
    assert handshake.negotiated is not None
    assert handshake.negotiated.contexts == {1: "base:allocation"}


# Malformed data, one option after the other: each is answered and the next one is understood.

LONG = b"x" * 4097


@pytest.mark.parametrize("number", [INFO, GO])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", INVALID),
        (b"\0\0\0", INVALID),
        (struct.pack(">I", 0), INVALID),  # the count is missing
        (struct.pack(">IB", 0, 0), INVALID),
        (struct.pack(">I4s", 4, b"disk"), INVALID),
        (struct.pack(">I4sH", 5, b"disk", 0), INVALID),  # the count is half in the name
        (struct.pack(">I4sH", 7, b"disk", 0), INVALID),
        (struct.pack(">I4sH", 0xFFFFFFFF, b"disk", 0), INVALID),
        (struct.pack(">I4sH", 0x80000000, b"disk", 0), INVALID),
        (struct.pack(">I4sH", 4, b"disk", 1), INVALID),
        (struct.pack(">I4sHH", 4, b"disk", 0xFFFF, 3), INVALID),
        (info("disk", 3) + b"\0", INVALID),
        (info("disk") + b"\0\3", INVALID),
        (info(b"\xff\xfe"), INVALID),
        (info(b"dis\xc3"), INVALID),
        (info(b"disk\0"), INVALID),
        (info(LONG), TOO_BIG),
        (info(LONG[1:]), UNKNOWN),
        (info("disk", *range(40000)), TOO_BIG),
    ],
)
def test_malformed_info_and_go(number: int, data: bytes, kind: int) -> None:
    handshake, sent = talk(option(number, data), option(ABORT))
    assert kinds(sent) == [kind, ACK]
    assert handshake.negotiated is None
    assert handshake.error is None


@pytest.mark.parametrize("number", [LIST_META, SET_META])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", INVALID),
        (b"\0\0\0", INVALID),
        (string("disk"), INVALID),
        (string("disk") + b"\0\0\0", INVALID),
        (struct.pack(">I4sI", 0xFFFFFFFF, b"disk", 0), INVALID),
        (struct.pack(">I4sI", 9, b"disk", 0), INVALID),
        (string("disk") + struct.pack(">I", 1), INVALID),
        (string("disk") + struct.pack(">I", 0xFFFFFFFF), INVALID),
        (string("disk") + struct.pack(">II", 0xFFFFFFFF, 0), INVALID),
        (string("disk") + struct.pack(">II", 1, 0xFFFFFFFF), INVALID),
        (string("disk") + struct.pack(">II4s", 1, 5, b"base"), INVALID),
        (meta("disk") + b"\0", INVALID),
        (meta("disk", "base:") + b"\0", INVALID),
        (meta("disk", b"base:\xff"), INVALID),
        (meta("disk", b"base:\0"), INVALID),
        (meta(b"\xff", "base:"), INVALID),
        (meta(b"\0"), INVALID),
        (meta(LONG), TOO_BIG),
        (meta("disk", LONG), TOO_BIG),
        (meta("disk", *["base:"] * 257), TOO_BIG),
        (meta("disk", *["base:"] * 20000), TOO_BIG),
    ],
)
def test_malformed_context_options(number: int, data: bytes, kind: int) -> None:
    handshake, sent = talk(option(STRUCTURED), option(number, data), option(ABORT))
    assert kinds(sent) == [ACK, kind, ACK]
    assert handshake.error is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),  # a TLS ClientHello
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        bytes(64),
        b"\xff" * 64,
        BOTH + bytes(16),
        BOTH + b"\xff" * 16,
        BOTH + b"NBDMAGIC" + bytes(8),
        BOTH + struct.pack(">QII", 0x0003E889045565A9, GO, 0),
        BOTH + struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 512),  # a request too early
        BOTH + option(LIST) + b"\0" + option(LIST) + bytes(16),
    ],
)
def test_garbage_closes(garbage: bytes) -> None:
    handshake, sent = talk(garbage[4:], flags=garbage[:4])
    assert handshake.state is HandshakeState.CLOSED
    assert handshake.error is not None
    assert len(handshake.error) < 200
    assert "\n" not in handshake.error
    assert set(kinds(sent)) <= {SERVER, ACK}


# Limits.


def fed(handshake: Handshake, data: bytes, chunk: int = 65536) -> bytes:
    """What comes back while `data` goes in as a socket would give it."""
    sent = bytearray()
    for start in range(0, len(data), chunk):
        handshake.receive(data[start : start + chunk])
        sent += handshake.data_to_send()
    return bytes(sent)


def held(handshake: Handshake) -> int:
    """Bytes of input that are kept."""
    return len(handshake._in)


@pytest.mark.parametrize("number", [INFO, GO, LIST_META, SET_META])
def test_limit_of_what_is_stored(number: int) -> None:
    before = BOTH + option(STRUCTURED)
    _, sent = run(before + option(number, bytes(65536)) + option(ABORT))
    assert kinds(sent) == [ACK, INVALID, ACK]
    _, sent = run(before + option(number, bytes(65537)) + option(ABORT))
    assert kinds(sent) == [ACK, TOO_BIG, ACK]


@pytest.mark.parametrize("number", [ABORT, LIST, INFO, GO, SET_META, STARTTLS, 99])
def test_limit_of_what_is_passed_over(number: int) -> None:
    handshake, _ = run(BOTH)
    handshake.receive(option(number, length=1 << 20))
    for _ in range(15):
        handshake.receive(bytes(65536))
        assert held(handshake) == 0
    assert handshake.data_to_send() == b""
    handshake.receive(bytes(65536))
    assert len(replies(handshake.data_to_send())) == 1
    handshake, sent = run(BOTH + option(number, length=(1 << 20) + 1))
    assert (handshake.state, sent) == (HandshakeState.CLOSED, b"")
    assert handshake.error == f"option {number} has 1048577 bytes, of 1048577 in all"


def test_limit_of_all_data() -> None:
    handshake, _ = run(BOTH)
    sent = fed(handshake, option(99, bytes(1 << 20)) * 16)
    assert kinds(sent) == [UNSUP] * 16
    assert fed(handshake, option(LIST)) != b""
    assert fed(handshake, option(99, b"x")) == b""
    assert handshake.error == "option 99 has 1 bytes, of 16777217 in all"


def test_limit_of_options() -> None:
    handshake, _ = run(BOTH)
    assert kinds(fed(handshake, option(99) * 4096)) == [UNSUP] * 4096
    assert handshake.error is None
    assert fed(handshake, option(99)) == b""
    assert handshake.state is HandshakeState.CLOSED
    assert handshake.error == "more than 4096 options"


def test_limit_of_replies_that_nobody_takes() -> None:
    handshake, _ = run(BOTH)
    exports = tuple(ExportInfo(f"export{n:04}", 512, 1, "d" * 4000) for n in range(100))
    handshake = Handshake(Catalog(exports))
    handshake.receive(BOTH + option(LIST) * 4000)
    assert handshake.state is HandshakeState.CLOSED
    assert handshake.error == "client does not wait for replies"
    assert len(handshake.data_to_send()) < (1 << 20) + 100 * 4100
    patient = Handshake(Catalog(exports))
    patient.receive(BOTH)
    for _ in range(10):
        patient.receive(option(LIST))
        assert len(replies(patient.data_to_send().removeprefix(GREETING))) == 101
    assert patient.state is HandshakeState.NEGOTIATING


def test_limits_can_be_set() -> None:
    limits = HandshakeLimits(options=2, stored=8, skipped=16, queries=1)
    _, sent = run(BOTH + option(INFO, info("disk")) + option(INFO, info("")), limits=limits)
    assert kinds(sent) == [TOO_BIG, REP_INFO, REP_INFO, ACK]
    handshake, sent = run(BOTH + option(LIST) * 3, limits=limits)
    assert handshake.error == "more than 2 options"
    handshake, sent = run(BOTH + option(GO, length=17), limits=limits)
    assert (handshake.state, sent) == (HandshakeState.CLOSED, b"")
    handshake, sent = run(BOTH + option(EXPORT_NAME, b"long name"), limits=limits)
    assert (handshake.error, sent) == ("option has over 8 bytes", b"")


# Vulnerabilities of other servers.


def test_cve_2017_15118_export_name_of_3000_characters() -> None:
    name = "n" * 3000
    handshake, sent = talk(
        option(INFO, info(name)), option(GO, info(name)), option(GO, info("disk"))
    )
    assert kinds(sent)[:2] == [UNKNOWN, UNKNOWN]
    assert all(len(data) < 200 for _, _, data in replies(sent))
    assert handshake.state is HandshakeState.TRANSMISSION
    handshake, sent = talk(option(EXPORT_NAME, name.encode()))
    assert (handshake.state, sent) == (HandshakeState.CLOSED, b"")


@pytest.mark.parametrize("number", [*range(12), 0xFFFFFFFF])
@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, 0x7FFFFFFF])
def test_cve_2017_15119_option_of_4_gib(number: int, length: int) -> None:
    handshake, sent = run(BOTH + option(number, length=length))
    assert (handshake.state, sent) == (HandshakeState.CLOSED, b"")
    assert handshake.error is not None
    handshake.receive(bytes(1 << 20))
    assert held(handshake) == 0


@pytest.mark.parametrize("number", [INFO, GO, LIST_META, SET_META])
def test_cve_2022_26495_name_length_of_ffffffff(number: int) -> None:
    for length in (0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFA, 0x80000000):
        for rest in (b"", bytes(2), bytes(4), b"disk" + bytes(6)):
            data = option(number, struct.pack(">I", length) + rest)
            handshake, sent = talk(option(STRUCTURED), data, option(ABORT))
            assert kinds(sent) == [ACK, INVALID, ACK]
            assert handshake.error is None


@pytest.mark.parametrize("number", [INFO, GO, LIST_META, SET_META])
def test_cve_2022_26496_long_name(number: int) -> None:
    for size, kind in ((4096, UNKNOWN), (4097, TOO_BIG), (65000, TOO_BIG)):
        data = (meta if number in (LIST_META, SET_META) else info)(b"n" * size)
        _, sent = run(BOTH + option(STRUCTURED) + option(number, data) + option(ABORT))
        assert kinds(sent) == [ACK, kind, ACK]


def test_cve_2021_3716_nothing_from_before_starttls_survives_it() -> None:
    # An attacker in the middle puts options before and behind the client's STARTTLS. It is not
    # acknowledged, so a client that wants TLS goes away, and there is no session to inject into.
    before = option(STRUCTURED) + CHOICE
    for tls in (option(STARTTLS), option(STARTTLS, b"x")):
        handshake, sent = talk(before, tls, before, option(LIST))
        assert [kind for number, kind, _ in replies(sent) if number == STARTTLS] == [UNSUP]
        assert handshake.state is HandshakeState.NEGOTIATING
        _, alone = talk(tls)
        assert kinds(alone) == [UNSUP]


def test_cve_2020_10761_error_texts_are_short() -> None:
    worst = "\U0010ffff" * 1024
    _, sent = talk(option(GO, info(worst)))
    ((_, kind, text),) = replies(sent)
    assert kind == UNKNOWN
    assert len(text) < 1000
    assert text.decode().isprintable()


def test_a_long_option_takes_no_long_time() -> None:
    # The most that can be asked in one option, for each of those that are read.
    worst = [
        option(INFO, info("", *range(32000))),
        option(SET_META, meta("traced", *(f"base:{n:0200}" for n in range(256)))),
        option(LIST_META, meta("traced", *["\U0010ffff" * 50] * 256)),
    ]
    spent = CpuTime()
    handshake, _ = run(BOTH + option(STRUCTURED) + b"".join(worst) * 10)
    assert handshake.state is HandshakeState.NEGOTIATING
    assert spent.is_about(1)


# Anything at all.

numbers = st.one_of(st.integers(0, 12), st.sampled_from([0xFFFFFFFF, 99]))
names = st.one_of(
    st.sampled_from([b"", b"disk", b"traced", b"nothing", b"\xff", b"base:", b"base:allocation"]),
    st.binary(max_size=40),
)
payloads = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda name, wanted: info(name, *wanted), names, st.lists(st.integers(0, 5))),
    st.builds(lambda name, queries: meta(name, *queries), names, st.lists(names, max_size=5)),
    st.integers(65000, 70000).map(bytes),
)
options = st.one_of(
    st.builds(option, numbers, payloads),
    st.builds(option, numbers, payloads, st.one_of(st.integers(0, 80), st.integers(0, 0xFFFFFFFF))),
    st.just(option(STRUCTURED)),
    st.just(option(EXTENDED)),
    st.binary(max_size=20),
)
conversations = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda flags, parts: flags + b"".join(parts),
        st.sampled_from([BOTH, BOTH, FIXED, NO_ZEROES, bytes(4)]),
        st.lists(options, max_size=12),
    ),
)


@settings(deadline=None)
@given(conversations, st.lists(st.integers(0, 1000), max_size=20))
@example(BOTH + option(GO, info("disk")) + b"rest", [4, 20])
def test_nothing_raises_and_no_split_matters(data: bytes, cuts: list[int]) -> None:
    handshake, sent = run(data)
    bound = 16 + 65536
    assert held(handshake) <= bound
    cut, cut_sent = run(data, pieces=split(data, cuts))
    assert cut_sent == sent
    assert outcome(cut) == outcome(handshake)
    # Each option gets at most its replies: three exports, or four pieces of information.
    assert len(sent) <= 1000 * (1 + data.count(b"IHAVEOPT"))
    assert len(handshake.error or "") < 1000
    assert (handshake.negotiated is not None) == (handshake.state is HandshakeState.TRANSMISSION)
    if handshake.state is HandshakeState.TRANSMISSION:
        assert data.endswith(handshake.leftover)
        assert held(handshake) == 0
    else:
        assert handshake.leftover == b""


@settings(deadline=None, max_examples=30)
@given(st.lists(options, min_size=1, max_size=4), st.integers(1, 70000))
def test_what_is_kept_is_bounded_at_every_moment(parts: list[bytes], chunk: int) -> None:
    # As a client that repeats itself, on and on.
    data = BOTH + b"".join(parts) * 20
    handshake, _ = run(b"")
    for start in range(0, min(len(data), 200 * chunk), chunk):
        handshake.receive(data[start : start + chunk])
        assert held(handshake) <= 16 + 65536
        assert len(handshake.data_to_send()) <= (1 << 20) + 1000


# Exports, and the numbers.


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x" * 4097},
        {"name": "a\0b"},
        {"name": "\udcff"},
        {"description": "é" * 2049},
        {"contexts": ("base:allocation", "x-\0:y")},
        {"size": -1},
        {"size": 1 << 64},
        {"transmission_flags": -1},
        {"transmission_flags": 1 << 16},
        {"block_min": 0},
        {"block_min": 3},
        {"block_min": 1 << 17, "block_preferred": 1 << 17},
        {"block_preferred": 256},
        {"block_preferred": 4097},
        {"block_min": 8192, "block_preferred": 4096},
        {"block_max": 4095},
        {"block_max": 1 << 32},
    ],
)
def test_exports_that_could_not_be_told_are_refused(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {"name": "disk", "size": 512, "transmission_flags": 1}
    with pytest.raises(ValueError, match=r".+"):
        ExportInfo(**(good | wrong))  # type: ignore[arg-type]


def test_largest_export() -> None:
    export = ExportInfo("x" * 4096, (1 << 64) - 1, 0xFFFF, "é" * 2048, 65536, 1 << 31, 0xFFFFFFFF)
    handshake = Handshake(Catalog((export,)))
    handshake.receive(BOTH + option(LIST) + option(INFO, info("", 1, 2, 3)))
    assert len(replies(handshake.data_to_send().removeprefix(GREETING))) == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (errno.EPERM, 1),
        (errno.EROFS, 1),
        (errno.EIO, 5),
        (errno.ENOMEM, 12),
        (errno.EINVAL, 22),
        (errno.ENOSPC, 28),
        (errno.EDQUOT, 28),
        (errno.EFBIG, 28),
        (errno.EOVERFLOW, 75),
        (errno.EOPNOTSUPP, 95),
        (errno.ESHUTDOWN, 108),
        (errno.EACCES, 5),
        (errno.EBUSY, 5),
        (99999, 5),
        (-1, 5),
        (0, 5),
    ],
)
def test_errno(value: int, expected: int) -> None:
    assert constants.nbd_errno(value) == expected
