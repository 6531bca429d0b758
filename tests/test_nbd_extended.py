"""Extended headers: lengths of 64 bits, payloads of any request, and what must not go wrong there.

In quotation marks are section titles of doc/proto.md (NetworkBlockDevice/nbd, the branch
extension-ext-header).
"""

import errno
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from hypothesis import given, settings
from hypothesis import strategies as st
from nbd_client import (
    BLOCK_STATUS,
    CACHE,
    DF,
    DISC,
    EINVAL,
    EIO,
    ENOSPC,
    ENOTSUP,
    EPERM,
    FAST_ZERO,
    FLUSH,
    FUA,
    NO_HOLE,
    PAYLOAD_LEN,
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Client,
    request,
    wanted_contexts,
)
from nbdwire import Leases, Wire, every_lease_comes_back, late, opened, ram, settle
from served import served

from tapcore.constants import TD_RDONLY
from tapcore.nbd import longrequest, status
from tapcore.nbd.constants import DEFAULT_BLOCK_MAX

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
DEPTH = ("base:allocation", "tapcore:depth")


@pytest.fixture(autouse=True)
def leases() -> Iterator[Leases]:
    """Every buffer of the pool has to come back, once."""
    with every_lease_comes_back() as watch:
        yield watch


def raw(wire: Wire, command: int, offset: int, length: int, flags: int, payload: bytes) -> bytes:
    """A request that says of its payload what it likes; its answer is expected from now on."""
    data = wire.make(command, offset, length)
    cookie = struct.unpack_from(">8xQ", data)[0]
    return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length) + payload


# ---- the same as with compact ones ----------------------------------------------------------


def test_every_command() -> None:
    """The parser of this client checks each head: the magic, the offset, the kind of chunk."""
    with ram(extended=True) as wire:
        assert wire.call(WRITE, 65536, payload=b"d" * 65536).error == 0
        assert wire.call(WRITE, 1000, payload=b"x" * 300, flags=FUA).error == 0
        assert wire.call(READ, 999, 302).content(999, 302) == b"\0" + b"x" * 300 + b"\0"
        assert {type(piece) for _, piece in wire.call(READ, 0, 196608).pieces} == {bytes, int}
        whole = wire.call(READ, 0, 196608, DF).pieces
        assert [len(piece) for _, piece in whole if isinstance(piece, bytes)] == [196608]
        assert wire.call(WRITE_ZEROES, 65536, 32768, NO_HOLE).error == 0
        assert wire.call(TRIM, 65536, 65536, FUA).error == 0
        assert wire.call(READ, 65536, 65536).content(65536, 65536) == bytes(65536)
        assert wire.call(CACHE, 0, MIB).error == 0
        assert wire.call(FLUSH).error == 0
        assert wire.call(FLUSH, 77, 3).error == 0, "reserved, and yet the offset is repeated"
        assert wire.call(READ, 5, 0).error == 0
        assert wire.call(BLOCK_STATUS, 0, 65536).runs
        wire.feed(wire.make(DISC))
        assert wire.side.finished


def test_errors_have_a_text_and_the_requests_offset() -> None:
    with ram(extended=True) as wire:
        past = f"512 bytes at {MIB} end behind the disk, which has {MIB}"
        for command, code in ((READ, EINVAL), (TRIM, EINVAL), (WRITE_ZEROES, ENOSPC)):
            answer = wire.call(command, MIB, 512)
            assert (answer.error, answer.message) == (code, past)
        answer = wire.call(WRITE, MIB, payload=b"w" * 512)
        assert (answer.error, answer.message) == (ENOSPC, past)
        assert wire.call(READ, 0, DEFAULT_BLOCK_MAX + 1).message == "a read has 32 MiB at most"
        assert wire.call(99, 7, 512).message == "command 99 is not offered"
        assert wire.call(READ, 0, 512, NO_HOLE).message == "a read does not take the flags 0x2"
    with ram(extended=True, flags=TD_RDONLY) as wire:
        for command in (TRIM, WRITE_ZEROES):
            assert wire.call(command, 0, MIB).error == EPERM
        assert wire.call(WRITE, 0, payload=bytes(300_000)).error == EPERM


@pytest.mark.parametrize("length", [1 << 32, (1 << 32) + 1, TIB, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("offset", [0, 1, 4096, (1 << 64) - 1])
def test_lengths_that_no_disk_has(length: int, offset: int) -> None:
    """Nothing of 64 bits is taken for the 32 lowest of them."""
    with ram(extended=True) as wire:
        wire.call(WRITE, 0, payload=b"s" * 8192)
        for command in (READ, TRIM, CACHE, BLOCK_STATUS):
            assert wire.call(command, offset, length).error == EINVAL
        assert wire.call(WRITE_ZEROES, offset, length).error == ENOSPC
        assert wire.call(WRITE_ZEROES, offset, length, FAST_ZERO).error == ENOSPC
        assert wire.call(READ, 0, 8192).content(0, 8192) == b"s" * 8192


# ---- payloads ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 8, 99])
@pytest.mark.parametrize("size", [1, 27, 4096, 300_000])
def test_a_payload_that_nobody_wants_is_passed_over(command: int, size: int) -> None:
    """It is consumed, whatever it looks like, and the next request is found ("Request message")."""
    looks_like_requests = request(DISC, 5, extended=True) * (size // 32 + 1)
    with ram(extended=True, contexts=()) as wire:
        wire.call(WRITE, 0, payload=b"s" * 512)
        data = raw(wire, command, 0, size, PAYLOAD_LEN, looks_like_requests[:size])
        for piece in (None, 1000):
            wire.feed(data, piece)
            assert wire.answer().error == EINVAL
            assert wire.call(READ, 0, 512).content(0, 512) == b"s" * 512
            data = raw(wire, command, 0, size, PAYLOAD_LEN, looks_like_requests[:size])


@pytest.mark.parametrize("command", [READ, WRITE, TRIM, BLOCK_STATUS, 99])
def test_a_payload_longer_than_advertised_is_the_end(command: int, leases: Leases) -> None:
    for length in (DEFAULT_BLOCK_MAX + 1, 1 << 32, (1 << 64) - 1):
        with ram("80M", extended=True) as wire:
            wire.feed_once(raw(wire, command, 0, length, PAYLOAD_LEN, b""))
            assert wire.side.finished
            assert "32 MiB" in wire.side.error
            assert leases.bytes < MIB


def test_the_longest_write() -> None:
    with ram("40M", extended=True) as wire:
        assert wire.call(WRITE, 0, payload=b"w" * DEFAULT_BLOCK_MAX).error == 0
        assert wire.call(WRITE, 9 * MIB, payload=b"x" * DEFAULT_BLOCK_MAX).error == ENOSPC
        assert wire.call(READ, DEFAULT_BLOCK_MAX - 1, 2).content(DEFAULT_BLOCK_MAX - 1, 2) == b"w\0"


@pytest.mark.parametrize("flags", [0, PAYLOAD_LEN])
@pytest.mark.parametrize("length", [0, 512, 200_000])
def test_a_write_has_its_data_with_the_flag_or_without(length: int, flags: int) -> None:
    """QEMU's client does not set it (10.0), though the protocol wants it; the data follows."""
    trick = request(WRITE, 9, 0, 4, payload=b"evil", extended=True)
    data = trick.ljust(length, b"e")[:length]
    with ram(extended=True) as wire:
        wire.feed(raw(wire, WRITE, 512, length, flags, data))
        assert wire.answer().error == 0
        assert wire.call(READ, 512, max(length, 1)).content(512, max(length, 1))[:length] == data
        wire.feed(raw(wire, WRITE, MIB, length, flags, data))
        assert wire.answer().error == (ENOSPC if length else 0)
        assert wire.call(READ, 0, 4).content(0, 4) == bytes(4)


def test_a_compact_request_is_garbage_and_the_other_way_round() -> None:
    for extended in (True, False):
        with ram(extended=extended) as wire:
            wire.feed(request(READ, 1, 0, 512, extended=not extended) + bytes(8))
            assert wire.side.finished
            assert "not a request" in wire.side.error


def test_without_extended_headers_there_is_no_such_flag() -> None:
    with ram() as wire:
        assert wire.call(WRITE, 0, payload=b"w" * 600, flags=PAYLOAD_LEN).error == EINVAL
        assert wire.call(READ, 0, 600, PAYLOAD_LEN).error == EINVAL
        assert wire.call(BLOCK_STATUS, 0, 12, PAYLOAD_LEN).error == EINVAL
        assert wire.call(READ, 0, 600).content(0, 600) == bytes(600)


# ---- block status --------------------------------------------------------------------------


def test_block_status_of_some_contexts_alone() -> None:
    with ram(extended=True, contexts=DEPTH) as wire:
        wire.call(WRITE, 65536, payload=b"d" * 65536)

        def ask(*numbers: int, length: int = 131072, flags: int = 0) -> Any:
            wanted = wanted_contexts(length, *numbers)
            return wire.call(BLOCK_STATUS, 0, flags=flags, payload=wanted)

        allocation, depth = [(65536, 3), (65536, 0)], [(131072, 1)]
        assert ask(1).statuses == {1: allocation}
        assert ask(2).statuses == {2: depth}
        assert ask(2, 1).statuses == {1: allocation, 2: depth}
        assert ask(1, flags=REQ_ONE).statuses == {1: allocation[:1]}
        assert wire.call(BLOCK_STATUS, 0, 131072).statuses == {1: allocation, 2: depth}
        assert ask(1, length=MIB + 1).error == EINVAL
        assert ask(1, length=0).error == EINVAL
        assert ask(1, length=(1 << 64) - 1).error == EINVAL
        assert ask(1, flags=NO_HOLE).error == EINVAL
        for wrong in ((3,), (0,), (1, 1), (1, 3), (1, 2, 3), (1, 2, 1), tuple(range(1, 5000))):
            assert ask(*wrong).error == EINVAL
        assert ask(1).statuses == {1: allocation}


@pytest.mark.parametrize("payload", [b"x", bytes(7), bytes(8), bytes(11), bytes(13), bytes(15)])
def test_block_status_with_a_payload_of_another_length(payload: bytes) -> None:
    with ram(extended=True, contexts=DEPTH) as wire:
        assert wire.call(BLOCK_STATUS, 0, payload=payload).error == EINVAL
        assert wire.call(BLOCK_STATUS, 0, 512).statuses == {1: [(512, 3)], 2: [(512, 1)]}


def test_its_payload_may_come_byte_by_byte() -> None:
    with ram(extended=True, contexts=DEPTH) as wire:
        wire.feed(wire.make(BLOCK_STATUS, 0, payload=wanted_contexts(512, 2)), 1)
        assert wire.answer().statuses == {2: [(512, 1)]}


def test_a_length_of_more_than_32_bits_in_one_run() -> None:
    """A compact request cannot ask for it, and a compact reply could not say it."""
    with ram("12G", extended=True, contexts=DEPTH) as wire:
        wire.call(WRITE, 8 * GIB, payload=b"d" * 65536)
        rest = 4 * GIB - 65536
        answer = wire.call(BLOCK_STATUS, 0, 12 * GIB)
        assert answer.statuses[1] == [(8 * GIB, 3), (65536, 0), (rest, 3)]
        assert answer.statuses[2] == [(12 * GIB, 1)]
        assert wire.call(BLOCK_STATUS, 0, 12 * GIB, REQ_ONE).statuses[1] == [(8 * GIB, 3)]


@pytest.mark.parametrize("extended", [False, True])
def test_cve_2025_47711_block_status_around_4_gib(extended: bool) -> None:
    """nbdkit was off by one where a run and the longest compact request end together."""
    with ram("12G", extended=extended) as wire:
        wire.call(WRITE, 4 * GIB, payload=b"d" * 65536)
        for offset in (0, 1, 4 * GIB - 1, 4 * GIB, 4 * GIB + 1, 8 * GIB - 1):
            for length in ((1 << 32) - 1, (1 << 32) - 2, (1 << 31) + 1):
                for flags in (0, REQ_ONE):
                    runs = wire.call(BLOCK_STATUS, offset, length, flags).runs
                    total = sum(size for size, _ in runs)
                    assert total == length if not flags else 0 < total <= length


def test_it_ends_early_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait meanwhile; a client asks again for the rest, and always gets on."""
    with ram("40G", extended=True) as wire:
        monkeypatch.setattr("tapcore.nbd.commands.STATUS_SECONDS", 0.0)
        assert wire.call(BLOCK_STATUS, GIB, 39 * GIB).runs == [(status.AT_ONCE, 3)]
        assert wire.call(BLOCK_STATUS, GIB, GIB).runs == [(GIB, 3)]


# ---- long requests -------------------------------------------------------------------------


def test_the_whole_of_a_large_disk_at_once() -> None:
    with opened("ram:5G") as disk:
        wire = Wire(disk, extended=True)
        places = [0, GIB - 4096, 3 * GIB - 1, 5 * GIB - 512]
        for command, flags in ((WRITE_ZEROES, 0), (WRITE_ZEROES, FAST_ZERO), (TRIM, FUA)):
            for place in places:
                assert wire.call(WRITE, place, payload=b"w").error == 0
            assert wire.call(command, 0, 5 * GIB, flags).error == 0
            assert [wire.call(READ, at, 1).content(at, 1) for at in places] == [b"\0"] * 4
        wire.end()


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes after which a long request is cut."""
    monkeypatch.setattr(longrequest, "PIECE", 64 * KIB)
    return 64 * KIB


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize("command", [TRIM, WRITE_ZEROES])
def test_pieces_make_no_difference(
    command: int, extended: bool, short_pieces: int, rng: random.Random
) -> None:
    size = 10 * short_pieces
    image = LateImage(size >> 9, cluster=16, now=0.5, seed=rng.randrange(1 << 30))
    with late(image, "latefull", extended=extended) as (wire, disk):
        model = bytearray(rng.randbytes(size))
        for at in range(0, size, 128 * KIB):
            wire.feed(wire.make(WRITE, at, payload=bytes(model[at : at + 128 * KIB])))
        settle(wire, disk)
        for _ in range(10):
            start = rng.randrange(size)
            length = rng.randint(1, size - start)
            wire.feed(wire.make(command, start, length, rng.choice([0, FUA])))
            settle(wire, disk)
            assert wire.answer().error == 0
            if command == WRITE_ZEROES:
                model[start : start + length] = bytes(length)
                at = rng.randrange(size - 4096)
                wire.feed(wire.make(READ, at, 4096))
                settle(wire, disk)
                assert wire.answer().content(at, 4096) == model[at : at + 4096]


def test_others_have_their_turn_between_two_pieces(short_pieces: int) -> None:
    with late(LateImage(20 * short_pieces >> 9, now=1.0, cluster=128), "latefull") as (wire, _):
        side = wire.side
        wire.feed_once(wire.make(WRITE_ZEROES, 0, 20 * short_pieces))
        for done in range(1, 20):
            side.engine.turn()
            assert side.unfinished, f"{done} pieces of 20"
            assert side.in_flight == 1
            assert not side.replies.queue
            side.go_on()
        side.engine.turn()
        assert not side.unfinished
        wire.turn()
        assert wire.answer().error == 0


def test_others_are_served_while_a_large_range_is_zeroed(tmp_path: Path) -> None:
    """16384 pieces, each in a batch of events of its own."""
    pieces = {"tapcore.nbd.longrequest.PIECE": 4096}
    with (
        served("ram:65M", "--socket", tmp_path / "s", changes=pieces) as server,
        Client(server.uri, extended=True) as large,
        Client(server.uri) as small,
    ):
        cookie = large.send(WRITE_ZEROES, 0, 64 * MIB)
        for number in range(10):
            small.write(64 * MIB + number, b"s")
            assert small.read(64 * MIB + number, 1) == b"s"
        large.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            large.sock.recv(1)
        large.sock.setblocking(True)
        assert large.answer(cookie).error == 0


def test_a_server_stops_in_the_middle_of_a_large_range(tmp_path: Path) -> None:
    changes = {
        "tapcore.nbd.longrequest.PIECE": 512,
        "tapcore.nbd.server.STOP_SECONDS": 0.3,
    }
    with (
        served("ram:512M", "--socket", tmp_path / "s", changes=changes) as server,
        Client(server.uri, extended=True) as large,
    ):
        large.send(WRITE_ZEROES, 0, 512 * MIB)
        server.sees_an_end()
        server.stop()
        assert large.at_end()


def test_an_error_in_the_middle_ends_it(short_pieces: int) -> None:
    count = 4 * short_pieces >> 9
    bad = {2 * short_pieces >> 9: errno.EIO}
    with late(FaultyImage(count, bad=bad), "faulty", extended=True) as (wire, disk):
        wire.feed(wire.make(WRITE_ZEROES, 512, 3 * short_pieces))
        settle(wire, disk)
        assert wire.answer().error == EIO


def test_fast_zero_is_refused_at_its_first_piece(short_pieces: int) -> None:
    image = LateImage(4 * short_pieces >> 9, zero="no")
    with late(image, "latefull", extended=True) as (wire, disk):
        wire.feed(wire.make(WRITE_ZEROES, 0, 4 * short_pieces, FAST_ZERO))
        settle(wire, disk)
        assert wire.answer().error == ENOTSUP
        assert not image.writes


def test_gone_in_the_middle_of_a_long_request(short_pieces: int) -> None:
    for turns in (0, 1, 3):
        image = LateImage(20 * short_pieces >> 9, now=1.0, cluster=128)
        with late(image, "latefull", extended=True) as (wire, _):
            wire.feed_once(wire.make(WRITE_ZEROES, 0, 20 * short_pieces))
            for _ in range(turns):
                wire.side.engine.turn()
                wire.side.go_on()
            wire.end()


# ---- anything ------------------------------------------------------------------------------

heads = st.builds(
    lambda flags, command, offset, length: struct.pack(
        ">IHHQQQ", 0x21E41C71, flags, command, 5, offset, length
    ),
    st.sampled_from([0, 0, PAYLOAD_LEN, PAYLOAD_LEN, FUA, DF | PAYLOAD_LEN, 0xFFFF]),
    st.sampled_from([*range(10), 99]),
    st.one_of(st.sampled_from([0, 512, 65536]), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 70_000), st.integers(0, (1 << 64) - 1)),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(heads, st.binary(max_size=300)), max_size=8), st.integers(1, 5000))
def test_any_bytes_at_all(parts: list[bytes], piece: int) -> None:
    """Answered or refused, byte by byte or at once, and nothing stays."""
    ends = []
    for size in (None, piece):
        with ram("64K", extended=True, contexts=DEPTH) as wire:
            wire.reads = False
            data = memoryview(b"".join(parts))
            while len(data) and not wire.side.finished and not wire.side.stalled:
                data = data[wire.feed_once(data[:size]) :]
                wire.turn()
            ends.append((wire.side.error, wire.side.replies.queued))
            wire.side.finish()
            wire.turn()
            wire.end()
    assert ends[0] == ends[1]
