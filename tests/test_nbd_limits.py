"""The NBD handshake: malformed data, limits, and what has hurt other servers."""

import struct

import pytest
from cputime import CpuTime
from handshakes import (
    ABORT,
    ACK,
    BOTH,
    CHOICE,
    EXPORT_NAME,
    EXTENDED,
    FIXED,
    GO,
    GREETING,
    INFO,
    INVALID,
    LIST,
    LIST_META,
    NO_ZEROES,
    REP_INFO,
    SERVER,
    SET_META,
    STARTTLS,
    STRUCTURED,
    TOO_BIG,
    UNKNOWN,
    UNSUP,
    Catalog,
    info,
    kinds,
    meta,
    option,
    outcome,
    replies,
    run,
    split,
    string,
    talk,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapcore.nbd.exportinfo import ExportInfo
from tapcore.nbd.handshake import (
    Handshake,
    HandshakeLimits,
    HandshakeState,
)

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
