"""What the NBD protocol demands of servers: docs/nbd-protocol.md, and what had no test before it.

In quotation marks are section titles of doc/proto.md (NetworkBlockDevice/nbd).
"""

import ast
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers.late import LateImage
from handshakes import (
    ABORT,
    ACK,
    BOTH,
    CHOICE,
    EXTENDED,
    GO,
    INFO,
    LIST,
    STARTTLS,
    STRUCTURED,
    TLS_REQD,
    TRACED,
    Catalog,
    info,
    kinds,
    option,
    replies,
    talk,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from nbd_client import (
    BLOCK_STATUS,
    CACHE,
    FLUSH,
    FUA,
    NO_HOLE,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
)
from nbdwire import LateDisk, Wire, finish, late, opened, ram, settle

from tapcore.constants import TD_RDONLY
from tapcore.nbd.constants import TransmissionFlag
from tapcore.nbd.handshake import Handshake, HandshakeState, TlsMode

PAGE = Path(__file__).parent.parent / "docs" / "nbd-protocol.md"
MIB = 1 << 20


# ---- the page ------------------------------------------------------------------------------


def rows() -> Iterator[tuple[str, str]]:
    """What the protocol demands, and who shows that it is so."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 2 and cells[0] not in ("a server must", "---"):
            yield cells[0], cells[1]


def _names_of(name: str) -> set[str]:
    """The tests of a file."""
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text())
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_each_row_of_the_page_names_a_test_that_there_is() -> None:
    """Or says why it does not apply."""
    known: dict[str, set[str]] = {}
    found = list(rows())
    assert len(found) > 100
    for demand, shown in found:
        named = re.findall(r"`(test_\w+)::(test_\w+)`", shown)
        if not named:
            assert shown.startswith(("does not apply: ", "not so: ")), demand
            assert len(shown) > 40, demand
        for file, name in named:
            if file not in known:
                known[file] = _names_of(file)
            assert name in known[file], (demand, file, name)


def test_a_demand_stands_on_the_page_once() -> None:
    demands = [demand for demand, _ in rows()]
    assert len(set(demands)) == len(demands)


# ---- "Ordering of messages and writes", "Command flags" --------------------------------------


@pytest.mark.parametrize("extended", [False, True])
def test_a_flush_covers_what_was_answered_before(extended: bool) -> None:
    image = LateImage(4096, now=0.3, seed=7)
    with late(image, "latefull", extended=extended) as (wire, disk):
        for at in range(0, MIB, 65536):
            wire.feed(wire.make(WRITE, at, payload=b"w" * 5000))
        wire.feed(wire.make(WRITE_ZEROES, 0, 4096) + wire.make(TRIM, 65536, 4096))
        settle(wire, disk)
        written = image.writes
        assert written > image.flushed
        wire.feed(wire.make(FLUSH))
        settle(wire, disk)
        assert wire.answer().error == 0
        assert image.flushed >= written


@pytest.mark.parametrize("command", [WRITE, WRITE_ZEROES])
def test_a_write_with_fua_is_on_disk_when_it_is_answered(command: int) -> None:
    image = LateImage(4096, now=0.0)
    with late(image, "latefull") as (wire, disk):
        payload = b"f" * 4096 if command == WRITE else b""
        wire.feed(wire.make(command, 4096, 4096, FUA, payload))
        for _ in range(1000):
            wire.turn()
            if wire.parser.idle:
                break
            assert not wire.sent
            disk.step()
        assert wire.answer().error == 0
        assert image.flushed >= image.writes > 0


@pytest.mark.parametrize("command", [READ, CACHE, BLOCK_STATUS, FLUSH, TRIM, WRITE_ZEROES])
def test_fua_is_taken_with_every_command(command: int) -> None:
    for length in (512, 65536):
        with ram() as wire:
            wire.call(WRITE, 0, payload=b"x" * 100_000)
            assert wire.call(command, 0, length, FUA).error == 0


def test_no_hole_takes_the_space(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 4 * MIB)
    with opened(f"aio:{path}") as disk:
        wire = Wire(disk)
        wire.feed(wire.make(WRITE_ZEROES, 0, 2 * MIB, NO_HOLE))
        wire.feed(wire.make(WRITE_ZEROES, 2 * MIB, 2 * MIB))
        wire.feed(wire.make(READ, 0, 4096))
        finish(wire, LateDisk(wire))
        assert wire.errors() == [0, 0, 0]
        assert 2 * MIB <= path.stat().st_blocks * 512 < 3 * MIB
        assert wire.answer().content(0, 4096) == bytes(4096)
        wire.end()


# ---- "Option types" --------------------------------------------------------------------------


@pytest.mark.parametrize("before", [[], [option(STRUCTURED), CHOICE], [option(EXTENDED), CHOICE]])
@pytest.mark.parametrize("wanted", [(), (0, 1, 2, 3), (3,), (77, 1)])
@pytest.mark.parametrize("name", ["", "disk", "traced"])
def test_go_tells_what_info_told(before: list[bytes], wanted: tuple[int, ...], name: str) -> None:
    _, sent = talk(*before, option(INFO, info(name, *wanted)), option(GO, info(name, *wanted)))
    told = [(kind, data) for number, kind, data in replies(sent) if number == INFO]
    again = [(kind, data) for number, kind, data in replies(sent) if number == GO]
    assert told == again
    assert told[-1] == (ACK, b"")


def test_after_tls_nothing_is_refused_for_want_of_it() -> None:
    for mode in (TlsMode.ON, TlsMode.REQUIRE):
        handshake = Handshake(Catalog(), tls=mode)
        handshake.receive(BOTH + option(STARTTLS))
        handshake.data_to_send()
        handshake.tls_started()
        for number in (LIST, STRUCTURED, EXTENDED, INFO, STARTTLS, 99, GO, ABORT):
            handshake.receive(option(number, info("nothing") if number in (INFO, GO) else b""))
        assert TLS_REQD not in kinds(handshake.data_to_send())
        assert handshake.state is HandshakeState.CLOSED


def test_without_tls_nobody_is_told_to_use_it() -> None:
    numbers = [LIST, STRUCTURED, EXTENDED, STARTTLS, INFO, GO, 99]
    _, sent = talk(*(option(number, b"") for number in numbers), option(ABORT))
    assert len(kinds(sent)) > len(numbers)
    assert TLS_REQD not in kinds(sent)


def test_no_option_is_refused_for_its_block_size_or_its_headers() -> None:
    """Nothing but the defaults is enforced, and every context fits into 32 bits."""
    _, sent = talk(option(GO, info("nothing")), option(LIST), option(GO, info(TRACED.name)))
    assert {kind & 0xFF for kind in kinds(sent) if kind >> 31}.isdisjoint({8, 10})


# ---- "Transmission flags" --------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, TD_RDONLY])
def test_what_is_told_is_what_works(flags: int) -> None:
    named = TransmissionFlag
    with ram(flags=flags) as wire:
        told = named(wire.flags)
        works = {
            named.SEND_FLUSH: wire.call(FLUSH).error == 0,
            named.SEND_TRIM: wire.call(TRIM, 0, 512).error == 0,
            named.SEND_WRITE_ZEROES: wire.call(WRITE_ZEROES, 0, 512).error == 0,
            named.SEND_CACHE: wire.call(CACHE, 0, 512).error == 0,
            named.READ_ONLY: wire.call(WRITE, 0, payload=bytes(512)).error != 0,
            named.SEND_RESIZE: wire.call(8, 0, 512).error == 0,
        }
        assert told & named.HAS_FLAGS
        assert {flag: bool(told & flag) for flag in works} == works


# ---- "Structured reply types", NBD_REPLY_TYPE_BLOCK_STATUS -----------------------------------


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(0, 255), max_size=20),
    st.integers(0, MIB - 1),
    st.integers(1, MIB),
    st.booleans(),
)
def test_runs_begin_at_the_offset_and_stay_inside(
    written: list[int], offset: int, length: int, extended: bool
) -> None:
    """No run is empty, neighbours differ, and all but the last end before the request does."""
    length = min(length, MIB - offset)
    with ram(extended=extended, contexts=("base:allocation", "tapcore:depth")) as wire:
        for number in written:
            wire.call(WRITE, number << 12, payload=b"w" * 4096)
        for flags in (0, REQ_ONE):
            answer = wire.call(BLOCK_STATUS, offset, length, flags)
            assert set(answer.statuses) == {1, 2}
            for runs in answer.statuses.values():
                assert sum(size for size, _ in runs[:-1]) < length
                assert sum(size for size, _ in runs) <= length
                assert all(one[1] != two[1] for one, two in itertools.pairwise(runs))
                assert len(runs) == 1 or not flags & REQ_ONE
