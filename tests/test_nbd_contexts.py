"""The NBD handshake: metadata contexts, TLS, and what goes with structured replies."""

import struct

import attrs
import pytest
from handshakes import (
    ABORT,
    ACK,
    BLOCK_STATUS_PAYLOAD,
    BOTH,
    CHOICE,
    DISK,
    EMPTY,
    EXPORT_NAME,
    EXT_HEADER_REQD,
    EXTENDED,
    GO,
    HAS_FLAGS,
    INFO,
    INVALID,
    LIST,
    LIST_META,
    META,
    PEEK,
    SEND_DF,
    SET_META,
    STARTTLS,
    STRUCTURED,
    TLS_REQD,
    TRACED,
    UNKNOWN,
    UNSUP,
    Catalog,
    info,
    info_export,
    kinds,
    meta,
    option,
    reply,
    started,
    talk,
)

from tapcore.nbd.exportinfo import ExportInfo
from tapcore.nbd.handshake import (
    Handshake,
    HandshakeState,
    TlsMode,
)

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
