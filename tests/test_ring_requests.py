"""One request at a time, of every shape: what is refused, and that each has exactly one answer."""

import random
import struct
from pathlib import Path

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import bench
from nbdwire import opened
from ringbench import Rig, content

from tapcore.engine import engine_of
from tapcore.ring import flight
from tapcore.ring.wire import X86_32, X86_64, Op, Protocol, Status

SECTORS = 64
OKAY, ERROR, EOPNOTSUPP = Status.OKAY, Status.ERROR, Status.EOPNOTSUPP


@pytest.fixture
def image() -> LateImage:
    image = LateImage(SECTORS, now=1.0)
    image.fill(random.Random(1), 1.0)
    return image


@pytest.mark.parametrize("protocol", [X86_64, X86_32], ids=lambda protocol: protocol.name)
def test_a_read_of_any_sectors_of_any_pages(image: LateImage, protocol: Protocol) -> None:
    with bench([image]) as disk:
        rig = Rig(disk, protocol=protocol)
        segments = [(5, 2, 2), (5, 0, 1), (9, 0, 7), (10, 0, 7), (2, 7, 7)]  # 20 sectors
        assert rig.raw(Op.READ, 3, segments, id=77) == [(77, Op.READ, OKAY)]
        read = b"".join(
            bytes(rig.pages[(page << 12) + first * 512 : (page << 12) + (last + 1) * 512])
            for page, first, last in segments
        )
        assert read == image.data[3 * 512 : 23 * 512]
        assert bytes(rig.pages[5 << 12 : (6 << 12)])[3 * 512 :] == bytes(5 * 512)  # untouched


@pytest.mark.parametrize(
    ("operation", "sector", "segments", "number", "status"),
    [
        pytest.param(Op.READ, 0, [(0, 0, 8)], None, ERROR, id="last_sect 8"),
        pytest.param(Op.READ, 0, [(0, 0, 255)], None, ERROR, id="last_sect 255"),
        pytest.param(Op.READ, 0, [(0, 3, 2)], None, ERROR, id="last before first"),
        pytest.param(Op.WRITE, 0, [(0, 0, 7), (1, 9, 9)], None, ERROR, id="second segment"),
        pytest.param(Op.READ, 0, [(0, 0, 7)] * 11, 12, ERROR, id="12 segments"),
        pytest.param(Op.READ, 0, [(0, 0, 7)] * 11, 255, ERROR, id="255 segments"),
        pytest.param(Op.READ, 0, [], None, ERROR, id="read of nothing"),
        pytest.param(Op.WRITE, 0, [], None, ERROR, id="write of nothing"),
        pytest.param(Op.READ, SECTORS, [(0, 0, 0)], None, ERROR, id="start at the end"),
        pytest.param(Op.READ, SECTORS - 7, [(0, 0, 7)], None, ERROR, id="end past the end"),
        pytest.param(Op.WRITE, SECTORS - 7, [(0, 0, 7)], None, ERROR, id="write past the end"),
        pytest.param(Op.READ, (1 << 64) - 1, [(0, 0, 7)], None, ERROR, id="sector wraps"),
        pytest.param(Op.READ, 1 << 55, [(0, 0, 7)], None, ERROR, id="bytes wrap"),
        pytest.param(Op.READ, 0, [(64, 0, 7)], None, ERROR, id="not granted"),
        pytest.param(Op.READ, 0, [(0xFFFFFFFF, 0, 7)], None, ERROR, id="no such grant"),
        pytest.param(Op.WRITE, 0, [(0, 0, 7), (64, 0, 7)], None, ERROR, id="second not granted"),
        pytest.param(4, 0, [(0, 0, 7)], None, EOPNOTSUPP, id="operation 4"),
        pytest.param(7, 0, [(0, 0, 7)], None, EOPNOTSUPP, id="operation 7"),
        pytest.param(9, 0, [(0, 0, 7)], None, EOPNOTSUPP, id="operation 9"),
        pytest.param(255, 0, [], 255, EOPNOTSUPP, id="operation 255"),
        pytest.param(Op.WRITE_BARRIER, SECTORS, [(0, 0, 7)], None, ERROR, id="barrier past end"),
        pytest.param(Op.FLUSH_DISKCACHE, 0, [(0, 4, 3)], None, ERROR, id="flush, bad segment"),
    ],
)
@pytest.mark.parametrize("protocol", [X86_64, X86_32], ids=lambda protocol: protocol.name)
def test_what_is_malformed_is_answered_and_touches_nothing(
    image: LateImage,
    operation: int,
    sector: int,
    segments: list[tuple[int, int, int]],
    number: int | None,
    status: int,
    protocol: Protocol,
) -> None:
    before = bytes(image.data)
    with bench([image], "latefull") as disk:
        rig = Rig(disk, protocol=protocol)
        pages = bytes(rig.pages)
        answers = rig.raw(operation, sector, segments, number=number, id=1 << 63)
        assert answers == [(1 << 63, operation, status)]
        assert bytes(rig.pages) == pages
        assert rig.back.refused == 1
        assert not disk.engine.in_flight
        assert rig.raw(Op.READ, 0, id=4) == [(4, Op.READ, OKAY)]  # and all goes on
    assert bytes(image.data) == before


@pytest.mark.parametrize("operation", [Op.WRITE, Op.WRITE_BARRIER, Op.DISCARD])
@pytest.mark.parametrize("image_too", [False, True])
def test_nothing_is_written_where_that_is_not_allowed(
    image: LateImage, operation: int, image_too: bool
) -> None:
    before = bytes(image.data)
    with bench([image], "latefull", flags=int(image_too)) as disk:
        rig = Rig(disk, read_only=not image_too)
        if operation == Op.DISCARD:
            answers = rig.send(X86_64.discard.pack(Op.DISCARD, 0, 0, 0, 8))
        else:
            answers = rig.raw(operation)
        assert answers == [(0, operation, ERROR)]
        assert rig.raw(Op.FLUSH_DISKCACHE, 0, []) == [(0, Op.FLUSH_DISKCACHE, OKAY)]
        assert rig.raw(Op.READ) == [(0, Op.READ, OKAY)]
    assert bytes(image.data) == before


# ---- indirect ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [X86_64, X86_32], ids=lambda protocol: protocol.name)
def test_an_indirect_request_takes_its_segments_from_pages(protocol: Protocol) -> None:
    image = LateImage(1100, now=1.0)
    with bench([image]) as disk:
        rig = Rig(disk, protocol=protocol, max_indirect=1024, pages=8)
        segments = [(number % 4, number % 8, number % 8) for number in range(700)]
        for page in range(4):
            rig.pages[page << 12 : (page + 1) << 12] = content(page, 4096)
        rig.list_segments(6, segments[:512])
        rig.list_segments(7, segments[512:])
        assert rig.indirect(Op.WRITE, 5, 700, [6, 7], id=3) == [(3, Op.WRITE, OKAY)]
        expected = b"".join(
            bytes(rig.pages[(page << 12) + at * 512 : (page << 12) + (at + 1) * 512])
            for page, at, _ in segments
        )
        assert bytes(image.data[5 * 512 : 705 * 512]) == expected


@pytest.mark.parametrize(
    ("operation", "number", "pages", "answer"),
    [
        pytest.param(Op.READ, 0, [1], (Op.READ, ERROR), id="no segments"),
        pytest.param(Op.READ, 257, [1], (Op.READ, ERROR), id="more than were offered"),
        pytest.param(Op.READ, 0xFFFF, [1] * 8, (Op.READ, ERROR), id="as many as can be said"),
        pytest.param(Op.READ, 1, [64], (Op.READ, ERROR), id="the list is not granted"),
        pytest.param(Op.FLUSH_DISKCACHE, 1, [1], (Op.FLUSH_DISKCACHE, ERROR), id="a flush"),
        pytest.param(Op.INDIRECT, 1, [1], (Op.INDIRECT, ERROR), id="an indirect one"),
        pytest.param(Op.READ, 2, [1], (Op.READ, ERROR), id="its second segment is bad"),
    ],
)
def test_malformed_indirect_requests(
    image: LateImage, operation: int, number: int, pages: list[int], answer: tuple[int, int]
) -> None:
    with bench([image]) as disk:
        rig = Rig(disk)
        rig.list_segments(1, [(0, 0, 7), (0, 5, 4)])
        assert rig.indirect(operation, 0, number, pages, id=8) == [(8, *answer)]
        assert rig.back.refused == 1


def test_indirect_requests_are_unknown_where_they_were_not_offered(image: LateImage) -> None:
    with bench([image]) as disk:
        rig = Rig(disk, max_indirect=0)
        rig.list_segments(1, [(0, 0, 7)])
        assert rig.indirect(Op.READ, 0, 1, [1]) == [(0, Op.READ, EOPNOTSUPP)]


def test_a_list_that_is_read_into_is_the_one_that_was_copied(image: LateImage) -> None:
    """The page of the list is itself what is read into: what comes there is no list any more."""
    with bench([image]) as disk:
        rig = Rig(disk)
        rig.list_segments(1, [(1, 0, 7), (2, 0, 7)])
        assert rig.indirect(Op.READ, 0, 2, [1]) == [(0, Op.READ, OKAY)]
        assert bytes(rig.pages[1 << 12 : 3 << 12]) == image.data[:8192]


# ---- discard, flush, barrier -------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [X86_64, X86_32], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize(
    ("flag", "sector", "count", "status"),
    [
        (0, 8, 16, OKAY),
        (0, 0, SECTORS, OKAY),
        (0, 8, 0, OKAY),
        (1, 8, 16, EOPNOTSUPP),
        (0, 8, SECTORS - 7, ERROR),
        (0, 0, (1 << 64) - 1, ERROR),
        (0, (1 << 64) - 1, 1, ERROR),
    ],
)
def test_a_discard(
    image: LateImage, protocol: Protocol, flag: int, sector: int, count: int, status: int
) -> None:
    with bench([image], "latefull") as disk:
        rig = Rig(disk, protocol=protocol)
        packed = protocol.discard.pack(Op.DISCARD, flag, 9, sector, count)
        assert rig.send(packed) == [(9, Op.DISCARD, status)]
    gone = set(range(sector, sector + count)) if status == OKAY else set()
    assert image.allocated == set(range(SECTORS)) - gone


def test_a_long_discard_is_done_piece_by_piece(
    image: LateImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "DISCARD_PIECE", 4096)
    with bench([image], "latefull") as disk:
        rig = Rig(disk)
        rig.ring.put(X86_64.discard.pack(Op.DISCARD, 0, 9, 4, 50))
        assert rig.kick()  # there is more to do: others first
        assert len(image.allocated) == SECTORS - 4
        rig.settle()
        assert rig.ring.responses() == [(9, Op.DISCARD, OKAY)]
    assert image.allocated == {0, 1, 2, 3, *range(54, SECTORS)}


def test_a_driver_that_cannot_discard_says_nothing_of_it(image: LateImage) -> None:
    """It is advice: the engine's own default ignores it."""
    with bench([image]) as disk:
        rig = Rig(disk)
        assert rig.send(X86_64.discard.pack(Op.DISCARD, 0, 9, 0, 8)) == [(9, Op.DISCARD, OKAY)]


@pytest.mark.parametrize("operation", [Op.FLUSH_DISKCACHE, Op.WRITE_BARRIER])
def test_a_flush_with_content_is_on_disk_with_its_answer(image: LateImage, operation: int) -> None:
    with bench([image], "latefull") as disk:
        rig = Rig(disk)
        rig.pages[:4096] = content(1, 4096)
        assert rig.raw(operation, 8) == [(0, operation, OKAY)]
        assert image.data[4096:8192] == content(1, 4096)
        assert image.writes == image.flushed > 0


def test_a_barrier_keeps_the_order() -> None:
    image = LateImage(SECTORS, now=0.0, seed=3)
    with bench([image], "latefull", rng=random.Random(2)) as disk:
        rig = Rig(disk)
        made = []
        for number in range(12):
            if number % 4 == 3:
                made.append(rig.front.write(0, content(number, 512), Op.WRITE_BARRIER))
            else:
                made.append(rig.front.write(number % 4 * 4096, content(number, 4096)))
        order = []
        while rig.front.pending:
            rig.step()
            order += [each.id for each in rig.front.answered()]
        assert all(each.status == OKAY for each in made)
        for barrier in (3, 7, 11):
            at = order.index(barrier)
            assert set(order[:at]) == set(range(barrier))
        assert image.data[:512] == content(11, 512)
        assert image.flushed == image.writes


def test_a_barrier_holds_up_what_the_lane_could_do_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(content(1, 65536))
    with opened(f"sync:{path}") as state:
        rig = Rig(engine_of(state))
        rig.back.flights[1 << 31] = flight.Flight(0, None, rig.back)  # type: ignore[arg-type]
        rig.ring.put(X86_64.head.pack(Op.WRITE_BARRIER, 0, 1, 0))
        read = rig.front.read(0, 4096)
        rig.kick()
        assert read.status is None
        assert not rig.front.answered()
        assert len(rig.back.waiting) == 2
        del rig.back.flights[1 << 31]
        rig.kick()
        while rig.back.busy:
            for dd_fd in engine_of(state).poll_fds():
                engine_of(state).readable(dd_fd[1], dd_fd[2])
            rig.kick()
        assert [id for id, _, _ in rig.ring.responses()] == [1, read.id]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("operation", [Op.READ, Op.WRITE])
def test_an_error_in_one_segment_is_one_error_and_the_others_are_moved(
    operation: int, late: bool
) -> None:
    image = FaultyImage(SECTORS, late=late, bad={9: 5}, data=bytearray(content(2, SECTORS * 512)))
    before = bytes(image.data)
    with bench([image], "faulty") as disk:
        rig = Rig(disk)
        rig.pages[:] = b"\x11" * len(rig.pages)
        segments = [(0, 0, 7), (2, 0, 7), (4, 0, 7)]  # not one run
        assert rig.raw(operation, 0, segments, id=6) == [(6, operation, ERROR)]
        for page, _, _ in (segments[0], segments[2]):
            at = page * 2048
            moved = bytes(rig.pages[page << 12 : (page + 1) << 12])
            expected = image.data if operation == Op.WRITE else before
            assert moved == expected[at : at + 4096]
        assert rig.raw(Op.READ, 0) == [(0, Op.READ, OKAY)]


@pytest.mark.parametrize("fault", [OSError(5, "bad"), -5, "too many", "half"])
@pytest.mark.parametrize("operation", [Op.READ, Op.WRITE])
def test_a_driver_that_fails_is_an_error_and_never_silence(operation: int, fault: object) -> None:
    image = FaultyImage(SECTORS, faults={0: fault})  # type: ignore[dict-item]
    with bench([image], "faulty") as disk:
        rig = Rig(disk)
        assert rig.raw(operation) == [(0, operation, ERROR)]
        assert rig.raw(operation) == [(0, operation, OKAY)]


def test_a_failed_submit_and_a_failed_flush_are_errors() -> None:
    image = FaultyImage(
        SECTORS, late=True, submit_faults={0: OSError(5, "bad")}, flush_faults={0: -5, 2: -5}
    )
    with bench([image], "faulty") as disk:
        rig = Rig(disk)
        assert rig.raw(Op.WRITE) == [(0, Op.WRITE, ERROR)]
        assert rig.raw(Op.FLUSH_DISKCACHE, 0, []) == [(0, Op.FLUSH_DISKCACHE, ERROR)]
        assert rig.raw(Op.WRITE_BARRIER, 0) == [(0, Op.WRITE_BARRIER, ERROR)]  # the second flush
        assert rig.raw(Op.WRITE_BARRIER, 0) == [(0, Op.WRITE_BARRIER, OKAY)]


def test_an_id_may_be_used_twice_and_each_is_answered(image: LateImage) -> None:
    with bench([image]) as disk:
        rig = Rig(disk)
        for _ in range(3):
            rig.ring.put(X86_64.one.pack(Op.READ, 1, 5, 0, 0, 0, 7))
        rig.settle()
        assert rig.ring.responses() == [(5, Op.READ, OKAY)] * 3


def test_what_is_behind_the_segments_does_not_matter(image: LateImage) -> None:
    with bench([image]) as disk:
        rig = Rig(disk)
        entry = bytearray(random.Random(1).randbytes(112))
        struct.pack_into("<BB6xQQIBB", entry, 0, 0, 1, 6, 0, 3, 0, 7)
        assert rig.send(bytes(entry)) == [(6, Op.READ, OKAY)]
        assert rig.pages[3 << 12 : 4 << 12] == image.data[:4096]
