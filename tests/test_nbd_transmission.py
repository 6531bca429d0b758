"""NBD's transmission phase without sockets: bytes go in, replies come out, the disk changes."""

import errno
import random
from collections.abc import Iterator
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
    READ,
    REQ_ONE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    request,
)
from nbdwire import Leases, Wire, every_lease_comes_back, late, opened, ram, settle

from tapcore.constants import TD_RDONLY
from tapcore.interface.damage import content_damaged
from tapcore.nbd import transmission
from tapcore.nbd.outstanding import MAX_HELD, MAX_IN_FLIGHT
from tapcore.nbd.writes import STREAM_MIN

KIB, MIB = 1 << 10, 1 << 20
EDGE = 8 * KIB


@pytest.fixture(autouse=True)
def leases() -> Iterator[Leases]:
    """Every buffer of the pool has to come back, once."""
    with every_lease_comes_back() as watch:
        yield watch


# ---- how the bytes arrive ------------------------------------------------------------------


def conversation(wire: Wire, rng: random.Random, long: int = 200 * KIB + 700) -> bytes:
    """One of each request, in order."""
    data = rng.randbytes(long)
    sent = [
        wire.make(WRITE, 1000, payload=data[:3000]),
        wire.make(READ, 0, 5000),
        wire.make(WRITE, 65536, payload=data),
        wire.make(READ, 65536, 100_000),
        wire.make(READ, 0, MIB),
        wire.make(READ, 60_000, 70_000, DF),
        wire.make(WRITE_ZEROES, 70_000, 40_000),
        wire.make(TRIM, 131072, 65536),
        wire.make(BLOCK_STATUS, 0, MIB),
        wire.make(CACHE, 0, 4096),
        wire.make(WRITE, MIB - 100, payload=data[:101]),
        wire.make(WRITE, 512, payload=data[:512], flags=FUA),
        wire.make(FLUSH),
        wire.make(READ, MIB, 1),
        wire.make(99, 0, 1),
        wire.make(WRITE, 262144, payload=data[: STREAM_MIN + 1024]),
        wire.make(READ, 0, MIB),
    ]
    return b"".join(sent)


@pytest.mark.parametrize("structured", [True, False])
def test_it_does_not_matter_how_the_bytes_arrive(structured: bool, rng: random.Random) -> None:
    seed = rng.getrandbits(32)
    outcomes = []
    for pieces in ("whole", "bytes", "random", "random"):
        with ram(structured=structured, spans=False) as wire:
            data = conversation(wire, random.Random(seed))
            if pieces == "random":
                while data:
                    count = min(rng.choice([1, 27, 28, 29, 500, 4096, 50_000]), len(data))
                    wire.feed(data[:count])
                    data = data[count:]
            elif pieces == "bytes":  # but for the middle of a long write
                wire.feed(data[:EDGE], 1)
                wire.feed(data[EDGE:-EDGE], 997)
                wire.feed(data[-EDGE:], 1)
            else:
                wire.feed(data)
            assert wire.parser.idle
            outcomes.append((bytes(wire.sent), wire.content()))
    assert outcomes == outcomes[:1] * 4


def test_bytes_that_came_with_the_handshake() -> None:
    start = request(WRITE, 7, 0, 512, payload=b"x" * 512) + request(READ, 8, 0, 600)
    rest = request(READ, 9, 5, 1)
    with opened("ram:64K") as disk:
        wire = Wire(disk, initial=start + rest[:20], reads=False)
        for command, cookie, offset, length in (
            (WRITE, 7, 0, 512),
            (READ, 8, 0, 600),
            (READ, 9, 5, 1),
        ):
            wire.parser.expect(command, cookie, offset, length)
        wire.reads = True
        wire.feed(rest[20:])
        assert wire.parser.order == [7, 8, 9]
        assert wire.parser.answers[8].content(0, 600) == b"x" * 512 + bytes(88)
        assert wire.parser.answers[9].content(5, 1) == b"x"
        wire.end()


def test_after_goodbye_nothing_is_taken() -> None:
    with ram() as wire:
        wire.feed(wire.make(WRITE, 0, payload=b"a" * 10) + wire.make(DISC) + b"garbage" * 10)
        assert wire.side.finished
        assert wire.side.error == ""
        assert wire.parser.idle


@pytest.mark.parametrize("garbage", [b"\0" * 28, b"\x25\x60\x95\x14" + bytes(24), b"\xa5" * 28])
def test_garbage_is_the_end(garbage: bytes) -> None:
    with ram() as wire:
        wire.feed(wire.make(READ, 0, 512) + garbage + wire.make(READ, 0, 1)[:5])
        assert wire.side.finished
        assert "not a request" in wire.side.error
        assert wire.parser.order == [1]


# ---- limits --------------------------------------------------------------------------------


def test_buffers_in_use_are_bounded(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transmission, "MAX_HELD", 4 * MIB)
    with late(LateImage(512, now=0.0)) as (wire, disk):
        data = b"".join(wire.make(READ, 0, 256 * KIB, DF) for _ in range(60))
        assert wire.feed_once(data) == len(data)
        assert wire.side.stalled
        assert leases.bytes <= 4 * MIB + 3 * 256 * KIB
        assert wire.side.in_flight < 20
        settle(wire, disk)
        assert wire.errors() == [0] * 60


@pytest.mark.parametrize("length", [1024 - 1, 32 * KIB - 512, MIB, 32 * MIB])
def test_replies_that_wait_are_bounded(length: int, leases: Leases) -> None:
    """A driver that answers at once fills no queue of requests, but one of replies."""
    with ram("32M", spans=False, structured=False) as wire:
        wire.reads = False
        count = 9000 if length < MIB else 50
        data = b"".join(wire.make(READ, 0, length) for _ in range(count))
        rest = memoryview(data)
        while len(rest) and not wire.side.stalled:
            rest = rest[wire.feed_once(rest) :]
            assert wire.side.replies.unsent <= MAX_HELD + length + 16
            assert leases.bytes <= 2 * MAX_HELD + 3 * length
        if length == MIB:  # and it goes on
            wire.reads = True
            wire.turn()
            assert not wire.side.stalled
            wire.feed(bytes(rest))
            assert wire.parser.idle
        else:
            wire.end()


def test_spans_that_wait_are_bounded() -> None:
    with ram("1M") as wire:
        wire.feed(wire.make(WRITE, 0, payload=b"x" * MIB))
        wire.reads = False
        wire.feed_once(b"".join(wire.make(READ, 0, MIB) for _ in range(100)))
        assert wire.side.stalled
        assert wire.side.replies.unsent <= MAX_HELD + 2 * MIB
        wire.reads = True
        wire.turn()
        assert wire.parser.idle


def test_requests_under_way_are_bounded() -> None:
    with late(LateImage(4096, now=0.0)) as (wire, disk):
        count = 3 * MAX_IN_FLIGHT
        data = b"".join(wire.make(READ, 512 * (n % 4096), 512) for n in range(count))
        assert wire.feed_once(data) == len(data)
        assert wire.side.stalled
        assert wire.side.in_flight == MAX_IN_FLIGHT
        settle(wire, disk)
        assert wire.errors() == [0] * count


def test_a_stream_stalls_with_the_rest() -> None:
    """A long write is not read on while memory is short, and goes on after that."""
    with late(LateImage(40 << 11, now=0.0, cluster=2048)) as (wire, disk):
        wire.feed(b"".join(wire.make(READ, 0, MIB, DF) for _ in range(31)))
        data = random.Random(1).randbytes(4 * MIB)
        sent = memoryview(wire.make(WRITE, MIB, payload=data))
        while not wire.side.stalled:
            sent = sent[wire.feed_once(sent[: 100 * KIB]) :]
        assert len(sent) > 2 * MIB
        while len(sent):
            while wire.side.stalled:
                disk.step()
                wire.turn()
            sent = sent[wire.feed_once(sent) :]
            wire.turn()
        settle(wire, disk)
        assert set(wire.errors()) == {0}


# ---- answers -------------------------------------------------------------------------------


def test_holes_are_sent_as_holes() -> None:
    with ram() as wire:
        wire.feed(wire.make(WRITE, 65536, payload=b"d" * 65536))
        assert wire.call(READ, 32768, 131072).pieces == [
            (32768, 32768),
            (65536, b"d" * 65536),
            (131072, 32768),
        ]
        assert wire.call(READ, 0, 65536).pieces == [(0, 65536)]
        pieces = wire.call(READ, 32768 + 7, 131072 - 9).pieces
        assert [piece if isinstance(piece, int) else len(piece) for _, piece in pieces] == [
            32761,
            65536,
            32766,
        ]
        whole = wire.call(READ, 32768, 131072, DF).pieces
        assert whole == [(32768, bytes(32768) + b"d" * 65536 + bytes(32768))]
    with ram(spans=False) as wire:
        wire.feed(wire.make(WRITE, 65536, payload=b"d" * 65536))
        assert wire.call(READ, 0, 131072).pieces == [(0, 65536), (65536, b"d" * 65536)]


def test_holes_without_structured_replies() -> None:
    with ram(structured=False) as wire:
        wire.feed(wire.make(WRITE, 65536, payload=b"d" * 65536))
        want = bytes(65536) + b"d" * 65536 + bytes(65536)
        assert wire.call(READ, 0, 196608).content(0, 196608) == want


def test_scattered_content_is_one_run() -> None:
    with ram("4M") as wire:
        want = bytearray(4 * MIB)
        for at in range(0, 2 * MIB, 8192):
            want[at : at + 4096] = b"s" * 4096
            wire.feed(wire.make(WRITE, at, payload=b"s" * 4096))
        assert wire.call(READ, 0, 2 * MIB).pieces == [(0, bytes(want[: 2 * MIB]))]
        assert wire.content() == want


def test_block_status() -> None:
    with ram() as wire:
        wire.feed(wire.make(WRITE, 65536, payload=b"d" * 65536))
        rest = MIB - 131072
        assert wire.call(BLOCK_STATUS, 0, MIB).runs == [(65536, 3), (65536, 0), (rest, 3)]
        assert wire.call(BLOCK_STATUS, 0, MIB, REQ_ONE).runs == [(65536, 3)]
        assert wire.call(BLOCK_STATUS, 65537, 65537).runs == [(65535, 0), (2, 3)]
        assert wire.call(BLOCK_STATUS, MIB - 1, 1).runs == [(1, 3)]
        assert wire.call(BLOCK_STATUS, 0, 0).error == EINVAL
        assert wire.call(BLOCK_STATUS, MIB - 1, 2).error == EINVAL
        assert wire.call(BLOCK_STATUS, 0, 0xFFFFFFFF).error == EINVAL


def test_several_contexts_at_once() -> None:
    names = "base:allocation", "tapcore:depth", "qemu:allocation-depth"
    with ram(contexts=names) as wire:
        wire.feed(wire.make(WRITE, 65536, payload=b"d" * 65536))
        answer = wire.call(BLOCK_STATUS, 65000, 1000)
        depth = [(1000, 1)]
        assert answer.statuses == {1: [(536, 3), (464, 0)], 2: depth, 3: depth}
        assert wire.call(BLOCK_STATUS, 65000, 1000, REQ_ONE).statuses == {
            1: [(536, 3)],
            2: depth,
            3: depth,
        }


def test_why_a_request_was_refused() -> None:
    with ram() as wire:
        past = f"512 bytes at {MIB} end behind the disk, which has {MIB}"
        assert wire.call(READ, MIB, 512).message == past
        assert wire.call(WRITE, MIB, 512, payload=b"w" * 512).message == past
        assert wire.call(TRIM, MIB, 512).message == past
        assert wire.call(WRITE_ZEROES, MIB, 512).message == past
        assert wire.call(99, 0, 512).message == "command 99 is not offered"
        assert wire.call(TRIM, 0, 512, NO_HOLE).message == "command 4 does not take the flags 0x2"
    with ram(flags=TD_RDONLY) as wire:
        for command in (WRITE, TRIM, WRITE_ZEROES):
            payload = b"w" * 512 if command == WRITE else b""
            answer = wire.call(command, 0, 512, payload=payload)
            assert (answer.error, answer.message) == (EPERM, "the export is read-only")


@pytest.mark.parametrize(("structured", "extended"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("length", [4096, 300_000])
def test_a_write_is_refused_when_its_data_has_come(
    structured: bool, extended: bool, length: int
) -> None:
    """libnbd (1.14) takes an answer in the middle of what it sends for garbage."""
    for flags in (0, TD_RDONLY):
        with ram(structured=structured, extended=extended, flags=flags) as wire:
            data = wire.make(WRITE, MIB - 512, payload=b"w" * length)
            wire.feed(data[:-1], 1000)
            assert not wire.sent
            wire.feed(data[-1:])
            assert wire.answer().error == (EPERM if flags else ENOSPC)
            assert wire.call(READ, 0, 512).error == 0


def test_what_the_driver_noted_is_told() -> None:
    image = FaultyImage(256, faults={0: -errno.EIO, 1: -errno.EIO})
    with late(image, "faulty") as (wire, _):
        content_damaged(wire.export.disk.disks, 8, 8, "has a cluster\nthat\udcff is bad")
        answer = wire.call(READ, 4096, 512)
        assert (answer.error, answer.message) == (EIO, "has a cluster\\x0athat\\xff is bad")
        assert wire.call(READ, 0, 512).message == "input/output error"


def test_block_status_needs_its_context() -> None:
    with ram(structured=False) as wire:
        assert wire.call(BLOCK_STATUS, 0, 512).error == EINVAL


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("command", [READ, WRITE, TRIM, WRITE_ZEROES, FLUSH, CACHE])
def test_nothing_is_asked_for(command: int, structured: bool) -> None:
    with ram(structured=structured) as wire:
        for offset in (0, 77, 512, MIB):
            assert wire.call(command, offset, 0).error == 0


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (READ, NO_HOLE),
        (READ, 0x8000),
        (WRITE, NO_HOLE),
        (FLUSH, REQ_ONE),
        (TRIM, NO_HOLE),
        (CACHE, NO_HOLE),
        (WRITE_ZEROES, REQ_ONE),
        (BLOCK_STATUS, DF),
        (BLOCK_STATUS, FAST_ZERO | FUA),
        (8, 0),
        (99, 0),
        (0xFFFF, 0),
    ],
)
def test_unknown_commands_and_flags(command: int, flags: int) -> None:
    payload = b"p" * 600 if command == WRITE else b""
    with ram() as wire:
        assert wire.call(command, 0, 600, flags, payload).error == EINVAL
        assert wire.call(READ, 0, 600).content(0, 600) == bytes(600)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("offset", [MIB - 511, MIB, MIB + 1, 1 << 40, (1 << 63) + 5, (1 << 64) - 1])
@pytest.mark.parametrize(
    ("command", "error"),
    [
        (READ, EINVAL),
        (WRITE, ENOSPC),
        (TRIM, EINVAL),
        (WRITE_ZEROES, ENOSPC),
        (CACHE, EINVAL),
        (BLOCK_STATUS, EINVAL),
    ],
)
def test_past_the_end(command: int, error: int, offset: int, structured: bool) -> None:
    with ram(structured=structured) as wire:
        for length in (512, 40_000, 200_000):
            payload = bytes(length) if command == WRITE else b""
            assert wire.call(command, offset, length, 0, payload).error == error
        assert wire.call(WRITE, MIB - 1, payload=b"!").error == 0
        assert wire.call(READ, MIB - 2, 2).content(MIB - 2, 2) == b"\0!"


def test_longer_than_32_mib(leases: Leases) -> None:
    with ram("80M") as wire:
        assert wire.call(READ, 0, 32 * MIB).error == 0
        assert wire.call(READ, 0, 32 * MIB + 1).error == EINVAL
        assert wire.call(READ, 0, 0xFFFFFFFF).error == EINVAL
        assert wire.call(WRITE, 0, payload=b"w" * (32 * MIB)).error == 0
        assert wire.call(WRITE, 0, payload=b"x" * (32 * MIB + 1)).error == EINVAL
        assert wire.call(WRITE, 0, payload=b"x" * (64 * MIB)).error == EINVAL
        assert wire.call(READ, 0, 3).content(0, 3) == b"www"
        assert leases.bytes < 64 * MIB
        wire.feed(request(WRITE, 1000, 0, 0xFFFFFFFF))
        assert wire.side.finished
        assert "64 MiB" in wire.side.error


def test_a_read_only_disk() -> None:
    with ram(flags=TD_RDONLY) as wire:
        assert wire.call(WRITE, 0, payload=bytes(512)).error == EPERM
        assert wire.call(WRITE, 0, payload=bytes(STREAM_MIN * 2)).error == EPERM
        assert wire.call(WRITE_ZEROES, 0, 512).error == EPERM
        assert wire.call(TRIM, 0, 512).error == EPERM
        assert wire.call(READ, 0, 512).error == 0
        assert wire.call(FLUSH).error == 0


def test_fast_zero() -> None:
    with late(LateImage(64, zero="no"), "latefull") as (wire, disk):
        wire.feed(wire.make(WRITE, 0, payload=b"x" * 4096))
        settle(wire, disk)
        for flags, error in ((FAST_ZERO, ENOTSUP), (0, 0), (FAST_ZERO | NO_HOLE, ENOTSUP)):
            wire.feed(wire.make(WRITE_ZEROES, 0, 2048, flags))
            settle(wire, disk)
            assert wire.answer().error == error
    with late(LateImage(64)) as (wire, disk):  # no such hook at all
        wire.feed(wire.make(WRITE_ZEROES, 0, 2048, FAST_ZERO))
        settle(wire, disk)
        assert wire.answer().error == ENOTSUP
    with ram() as wire:
        assert wire.call(WRITE_ZEROES, 0, 65536, FAST_ZERO).error == 0


def test_a_hole_map_that_fails() -> None:
    """Reads do without; block status says so; neither may be the end of anything."""
    with late(LateImage(512, now=1.0, allocated=set(range(512)))) as (wire, _):

        def fails(*_: object) -> Any:
            raise OSError(errno.EIO, "no map today")

        leaf = wire.export.disk.disks
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(leaf.drv), "td_extents", fails, raising=False)
            patch.setattr("tapcore.nbd.exports.chain_extents", fails)
            patch.setattr("tapcore.nbd.status.chain_extents", fails)
            wire.feed(wire.make(READ, 0, 128 * KIB))
            assert wire.answer().content(0, 128 * KIB) == bytes(128 * KIB)
            wire.feed(wire.make(BLOCK_STATUS, 0, 4096))
            assert wire.answer().error == EIO
            wire.feed(wire.make(CACHE, 0, 4096))
            assert wire.answer().error == 0


# ---- errors of the disk --------------------------------------------------------------------


@pytest.mark.parametrize("answers_late", [True, False])
@pytest.mark.parametrize("size", [4096, 2 * STREAM_MIN + 512])
@pytest.mark.parametrize("cut", [None, 0.1, 0.5, 0.9])
def test_errors_of_a_write(
    answers_late: bool, size: int, cut: float | None, rng: random.Random
) -> None:
    """In the middle of one that streams, too; also where its client goes then."""
    image = FaultyImage(4096, late=answers_late, bad={5: errno.ENOSPC, 400: errno.EIO})
    with late(image, "faulty") as (wire, disk):
        data = wire.make(WRITE, 0, payload=rng.randbytes(size))
        wire.feed(data[: None if cut is None else int(cut * len(data))], 60_000)
        if cut is None:
            settle(wire, disk)
            assert wire.answer().error in ((ENOSPC, EIO) if answers_late else (ENOSPC,))
            wire.feed(wire.make(WRITE, 64 * 512, payload=bytes(4096)))
            settle(wire, disk)
            assert wire.answer().error == 0


@pytest.mark.parametrize("where", ["gone", "finish"])
@pytest.mark.parametrize("offset", [0, 512, 77])
@pytest.mark.parametrize("now", [0.0, 0.5, 1.0])
def test_a_long_write_that_stops_in_the_middle(
    where: str, offset: int, now: float, rng: random.Random
) -> None:
    image = LateImage(4096, now=now, seed=rng.getrandbits(20))
    with late(image) as (wire, disk):
        data = wire.make(WRITE, offset, payload=b"1" * 700_000)
        wire.feed(data[: rng.choice([200, 130_000, 300_000, len(data) - 1])], 50_000)
        other = disk.write(offset + 3, b"2" * 700)  # has to wait, and to go on after it
        wire.end() if where == "gone" else wire.side.finish()
        disk.drain()
        wire.turn()
        assert other.status == 0
        assert wire.side.in_flight == 0
        assert disk.content()[offset + 3 : offset + 703] == b"2" * 700


def test_a_client_that_goes_with_everything_under_way(rng: random.Random) -> None:
    for _ in range(20):
        with late(LateImage(4096, now=rng.choice([0.0, 0.5]))) as (wire, disk):
            wire.reads = rng.random() < 0.5
            sent = b"".join(
                wire.make(WRITE, 7, payload=bytes(size)) + wire.make(READ, 3, size)
                for size in (600, 40_000, 140_000, 300_000)
            )
            wire.feed(sent[: rng.randrange(len(sent))], 70_000)
            for _ in range(rng.randrange(10)):
                disk.step()
                wire.take()


# ---- against a model -----------------------------------------------------------------------

SIZE = 256 * KIB
_steps = st.lists(
    st.tuples(
        st.sampled_from([READ, READ, WRITE, WRITE, WRITE_ZEROES, TRIM, FLUSH, BLOCK_STATUS]),
        st.one_of(st.integers(0, SIZE + 600), st.integers(0, 520).map(lambda n: n << 9)),
        st.one_of(st.integers(0, 1500), st.integers(0, 400).map(lambda n: n << 9)),
        st.sampled_from([0, FUA, DF, NO_HOLE]),
    ),
    max_size=12,
)


def apply(
    model: bytearray, wire: Wire, step: tuple[int, int, int, int], fill: int
) -> tuple[bytes, int, bytes | None]:
    """A request, the error it has to get, and what a read has to give."""
    command, offset, length, flags = step
    flags &= {READ: DF, WRITE: FUA, WRITE_ZEROES: FUA | NO_HOLE, TRIM: FUA}.get(command, 0)
    payload = bytes([fill]) * length if command == WRITE else b""
    sent = wire.make(command, offset, length, flags, payload)
    if command == FLUSH:
        return sent, 0, None
    if command == BLOCK_STATUS and not length:
        return sent, EINVAL, None
    if offset + length > SIZE:
        return sent, ENOSPC if command in (WRITE, WRITE_ZEROES) else EINVAL, None
    if command == READ:
        return sent, 0, bytes(model[offset : offset + length])
    if command in (WRITE, WRITE_ZEROES):
        model[offset : offset + length] = payload or bytes(length)
    if command == TRIM:
        start, end = -(-offset // 512) * 512, (offset + length) // 512 * 512
        model[start:end] = bytes(max(end - start, 0))
    return sent, 0, None


@settings(max_examples=80)
@given(_steps, st.booleans(), st.booleans(), st.integers(0, 1 << 30))
def test_any_requests_in_any_pieces(
    steps: list[tuple[int, int, int, int]], structured: bool, spans: bool, seed: int
) -> None:
    """All at once, to a driver that does one thing after the other."""
    rng = random.Random(seed)
    model = bytearray(SIZE)
    with ram("256K", structured=structured, spans=spans, rng=rng) as wire:
        sent, wanted = b"", []
        for number, step in enumerate(steps):
            if not structured and step[0] == BLOCK_STATUS:
                continue
            if step[0] == TRIM and (step[1] | step[2]) & 4095:
                continue  # what an unaligned discard discards is the driver's affair
            data, error, content = apply(model, wire, step, number + 1)
            sent += data
            wanted.append((wire._cookies, step, error, content))
            if spans:  # what is sent from its file is read when it is sent
                wire.feed(sent)
                sent = b""
        while sent:
            count = rng.choice([1, 30, 5000, 200_000])
            wire.feed(sent[:count])
            sent = sent[count:]
        for cookie, step, error, content in wanted:
            answer = wire.parser.answers[cookie]
            assert answer.error == error, step
            if content is not None:
                assert answer.content(step[1], step[2]) == content
        assert wire.content() == model


@settings(max_examples=40)
@given(_steps, st.sampled_from(["late", "latefull"]), st.integers(0, 1 << 30))
def test_any_requests_to_a_driver_that_is_late(
    steps: list[tuple[int, int, int, int]], handle: str, seed: int
) -> None:
    """One after the other, with reads of elsewhere beside them."""
    rng = random.Random(seed)
    model = bytearray(SIZE)
    image = LateImage(
        SIZE // 512, cluster=rng.choice([1, 8]), seed=seed, depth=rng.choice([None, 3])
    )
    with late(image, handle, structured=rng.random() < 0.7, rng=rng) as (wire, disk):
        for number, step in enumerate(steps):
            if step[0] in (TRIM, BLOCK_STATUS):
                continue
            sent, error, content = apply(model, wire, step, number + 1)
            cookie = wire._cookies
            sent += b"".join(wire.make(READ, 512 * n, 100) for n in range(rng.randrange(4)))
            while sent:
                if wire.side.stalled or (disk.ready() and rng.random() < 0.3):
                    disk.step()
                    wire.turn()
                else:
                    count = wire.feed_once(sent[: rng.choice([1, 100, 9000, 200_000])])
                    sent = sent[count:]
            settle(wire, disk)
            answer = wire.parser.answers[cookie]
            assert answer.error == error
            if content is not None:
                assert answer.content(step[1], step[2]) == content
        assert disk.content() == model
