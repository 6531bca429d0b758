"""JSON-RPC 2.0 without I/O, and verbs with their parameters."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapcore import UsageError
from tapcore.daemon import jsonrpc
from tapcore.daemon.jsonrpc import (
    Call,
    Lines,
    LineTooLongError,
    RpcError,
    call_line,
    error_line,
    parse_answer,
    parse_call,
    result_line,
)
from tapcore.daemon.verbs import Later, VerbTable


def test_a_call_comes_through_as_it_was() -> None:
    call = Call("attach", {"image": "d.qcow2", "odd": "\udcff"}, 7)
    line = call_line(call)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_call(line) == call
    assert parse_call(call_line(Call("list", notification=True))).notification


def test_answers_come_through_with_what_went_wrong() -> None:
    assert parse_answer(result_line("a", {"x": [1]})).result == {"x": [1]}
    answer = parse_answer(error_line(3, UsageError("is no disk", image="d.img", errno=16)))
    assert answer.id == 3
    assert answer.error is not None
    assert answer.error.code == jsonrpc.FAILED
    found = answer.error
    assert (found.message, found.image, found.errno) == ("is no disk", "d.img", 16)
    assert found.kind == "UsageError"
    again = parse_answer(error_line(3, found)).error  # a daemon hands on what a disk process said
    assert again is not None
    assert (again.code, again.message, again.kind) == (found.code, "is no disk", "UsageError")


@pytest.mark.parametrize(
    ("line", "code", "known"),
    [
        (b"", jsonrpc.PARSE_ERROR, None),
        (b"{", jsonrpc.PARSE_ERROR, None),
        (b"\xff\xfe", jsonrpc.PARSE_ERROR, None),
        (b"[" * 100_000, jsonrpc.PARSE_ERROR, None),
        (b"[]", jsonrpc.INVALID_REQUEST, None),
        (b"7", jsonrpc.INVALID_REQUEST, None),
        (b'{"method":"list","id":1}', jsonrpc.INVALID_REQUEST, 1),
        (b'{"jsonrpc":"2.0","id":"x"}', jsonrpc.INVALID_REQUEST, "x"),
        (b'{"jsonrpc":"2.0","method":7,"id":2}', jsonrpc.INVALID_REQUEST, 2),
        (b'{"jsonrpc":"2.0","method":"list","id":[1]}', jsonrpc.INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","method":"list","id":true}', jsonrpc.INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","method":"list","params":[1],"id":2}', jsonrpc.INVALID_PARAMS, 2),
        (b'{"jsonrpc":"2.0","method":"list","params":"x","id":2}', jsonrpc.INVALID_REQUEST, 2),
    ],
)
def test_what_is_no_call_is_refused_with_its_code(line: bytes, code: int, known: Any) -> None:
    with pytest.raises(RpcError) as found:
        parse_call(line)
    assert (found.value.code, found.value.details.get("id")) == (code, known)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"x", b'{"jsonrpc":"2.0","id":1}'])
def test_what_is_no_answer_is_an_error(line: bytes) -> None:
    with pytest.raises(RpcError):
        parse_answer(line)


def test_a_stream_is_cut_into_lines_however_it_arrives() -> None:
    for size in (1, 2, 3, 100):
        lines, found = Lines(10), []
        stream = b"one\n\ntwo\r\n0123456789\nrest"
        for at in range(0, len(stream), size):
            lines.receive(stream[at : at + size])
            while (line := lines.next_line()) is not None:
                found.append(line)
        assert found == [b"one", b"", b"two\r", b"0123456789"]
        assert lines.begun


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_without_end_is_refused_before_it_fills_memory(end: bytes) -> None:
    lines = Lines(10)
    lines.receive(b"x" * 11 + end)
    with pytest.raises(LineTooLongError):
        lines.next_line()


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"{", b"\n", b'"jsonrpc":"2.0",'])))
def test_whatever_comes_is_a_call_or_an_error_with_a_code(parts: list[bytes]) -> None:
    lines = Lines(64)
    with suppress(LineTooLongError):
        for part in parts:
            lines.receive(part)
            while (line := lines.next_line()) is not None:
                with suppress(RpcError):
                    parse_call(line)
                with suppress(RpcError):
                    parse_answer(line)


# ---- verbs -----------------------------------------------------------------------------------


def _verb(
    host: list[Any],
    *,
    name: str,
    count: int = 3,
    share: float = 0.5,
    force: bool = False,
    words: tuple[str, ...] = (),
    size: int | None = None,
) -> list[Any]:
    """Do something."""
    return [host, name, count, share, force, words, size]


TABLE: VerbTable[list[Any]] = VerbTable({"do": _verb})


def test_a_verb_gets_its_parameters_with_their_defaults() -> None:
    verb = TABLE.find("do")
    assert verb.does == "Do something."
    assert verb([], {"name": "x"}) == [[], "x", 3, 0.5, False, (), None]
    given = {"name": "x", "count": 1, "share": 2, "force": True, "words": ["a"], "size": None}
    assert verb([], given) == [[], "x", 1, 2.0, True, ("a",), None]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"name": None},
        {"name": 7},
        {"name": "x" * 5000},
        {"name": "x", "other": 1},
        {"name": "x", "count": True},
        {"name": "x", "count": 1.5},
        {"name": "x", "count": 1 << 64},
        {"name": "x", "share": float("nan")},
        {"name": "x", "share": "1"},
        {"name": "x", "force": 1},
        {"name": "x", "words": "ab"},
        {"name": "x", "words": [1]},
        {"name": "x", "words": ["x"] * 257},
        {"name": "x", "size": "1"},
    ],
)
def test_a_wrong_parameter_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(RpcError) as found:
        TABLE.find("do")([], json.loads(json.dumps(params)))
    assert found.value.code == jsonrpc.INVALID_PARAMS


def test_there_is_no_verb_that_is_not_in_the_table() -> None:
    with pytest.raises(RpcError) as found:
        TABLE.find("undo")
    assert found.value.code == jsonrpc.METHOD_NOT_FOUND


def test_an_answer_that_comes_later_is_told_once() -> None:
    told: list[Any] = []
    early, late = Later(), Later()
    early.answer(1)
    early.fail(OSError())
    early.then(lambda result, error: told.append((result, error)))
    late.then(lambda result, error: told.append("first"))
    late.then(lambda result, error: told.append((result, error)))
    late.answer(2)
    late.answer(3)
    assert told == [(1, None), "first", (2, None)]
