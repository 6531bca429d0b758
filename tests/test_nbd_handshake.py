"""The NBD handshake, bytes in and bytes out: no sockets."""

import errno
import struct

import attrs
import pytest
from handshakes import (
    ABORT,
    ACK,
    BLOCK_STATUS_PAYLOAD,
    BOTH,
    DISK,
    EXPORT_NAME,
    EXTENDED,
    FIXED,
    GO,
    GREETING,
    HAS_FLAGS,
    INFO,
    INVALID,
    LIST,
    NO_ZEROES,
    PEEK,
    REP_INFO,
    SEND_DF,
    SEND_FAST_ZERO,
    SERVER,
    SET_META,
    STARTTLS,
    STRUCTURED,
    TRACED,
    UNKNOWN,
    UNSUP,
    Catalog,
    block_size,
    info,
    info_export,
    kinds,
    meta,
    option,
    outcome,
    replies,
    reply,
    run,
    string,
    talk,
)

from tapcore.nbd import constants
from tapcore.nbd.exportinfo import ExportInfo
from tapcore.nbd.handshake import (
    Handshake,
    HandshakeState,
)


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
