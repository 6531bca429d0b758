"""Requests that are not whole units: read around, or read, modified and written, one at a time."""

import errno
import itertools
import random

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import Op, bench, content_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tapcore.engine import DISCARD, READ, WRITE, ZERO

UNITS = pytest.mark.parametrize("unit", [512, 4096])
LATE = pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])


@settings(max_examples=150)
@given(
    st.sampled_from([512, 1024, 4096]),
    st.lists(st.integers(1, 5 * 512 - 1), min_size=1, max_size=12, unique=True),
    st.booleans(),
    st.booleans(),
    st.integers(),
)
def test_writes_to_different_bytes_of_the_same_units_all_persist(
    unit: int, cuts: list[int], late: bool, with_holes: bool, seed: int
) -> None:
    rng = random.Random(seed)
    image = FaultyImage(5, unit, late=late, seed=seed, data=bytearray(b"\xee" * 5 * 512))
    model = bytearray(image.data)
    edges = [0, *sorted(cuts), 5 * 512]
    pieces = list(enumerate(itertools.pairwise(edges), 1))
    rng.shuffle(pieces)
    with bench([image], "faulty", rng=rng) as disk:
        for number, (start, end) in pieces:
            if with_holes and rng.random() < 0.3:
                continue
            zero = rng.random() < 0.3
            model[start:end] = bytes([0 if zero else number]) * (end - start)
            if zero:
                disk.submit(ZERO, start, end - start)
            else:
                disk.write(start, bytes([number]) * (end - start))
            if rng.random() < 0.3:
                disk.step()
        disk.drain()
        assert disk.content() == model


@UNITS
@LATE
def test_a_read_of_some_bytes_gets_exactly_these(unit: int, late: bool, rng: random.Random) -> None:
    image = FaultyImage(19, unit, late=late, data=bytearray(rng.randbytes(19 * 512)))
    with bench([image], "faulty", rng=rng) as disk:
        for _ in range(100):
            a, b = sorted(rng.choices(range(19 * 512 + 1), k=2))
            op = disk.run(READ, a, b - a)
            assert op.status == 0
            assert op.buf == image.data[a:b]


@UNITS
def test_the_last_unit_of_a_disk_may_be_cut(unit: int) -> None:
    image = FaultyImage(9, unit, data=bytearray(b"o" * 9 * 512))
    with bench([image], "faulty") as disk:
        assert disk.run(WRITE, 4096, data=b"n" * 512).status == 0
        assert disk.run(WRITE, 9 * 512 - 3, data=b"end").status == 0
        assert disk.content() == b"o" * 4096 + b"n" * 509 + b"end"
    assert image.reads[-1] == (0, 9)


@LATE
def test_only_the_edges_are_read_before_a_large_unaligned_write(late: bool) -> None:
    image = FaultyImage(64, 4096, late=late)
    with bench([image], "faulty") as disk:
        disk.run(WRITE, 100, data=b"w" * (5 * 4096))
    assert sorted(image.reads) == [(0, 8), (40, 8)]
    assert sorted(image.writes) == [(0, 8), (8, 32), (40, 8)]


@pytest.mark.parametrize("op", [WRITE, ZERO])
@LATE
def test_an_unaligned_change_that_cannot_read_its_edge_changes_nothing(op: int, late: bool) -> None:
    image = FaultyImage(64, 4096, late=late, bad={3: errno.EREMOTEIO})
    with bench([image], "faulty") as disk:
        data = b"x" * 9000 if op == WRITE else None
        assert disk.run(op, 100, 9000, data).status == -errno.EREMOTEIO
        assert disk.run(WRITE, 4096, data=b"y" * 4096).status == 0  # nothing is held any more
    assert image.writes == [(8, 8)]


@pytest.mark.parametrize("call", range(5), ids=["read", "read", "write", "write", "middle"])
@LATE
def test_one_part_of_an_unaligned_write_that_fails_fails_it(call: int, late: bool) -> None:
    """Whichever it is of the reads of its edges, the writes of these, and what lies between."""
    image = FaultyImage(64, 4096, late=late, faults={call: -errno.EREMOTEIO})
    with bench([image], "faulty") as disk:
        assert disk.run(WRITE, 100, data=b"x" * 9000).status == -errno.EREMOTEIO
        assert image.queue_calls == (2 if call < 2 else 5)
        assert disk.run(WRITE, 100, data=b"y" * 9000).status == 0  # nothing is held any more
        assert disk.content()[100:9100] == b"y" * 9000


@LATE
def test_an_unaligned_discard_leaves_the_edges_alone(late: bool, rng: random.Random) -> None:
    image = LateImage(64, cluster=8, sector_size=4096, now=0.0 if late else 1.0)
    image.fill(rng, 1.0)
    before = bytes(image.data)
    with bench([image], "latefull") as disk:
        assert disk.run(DISCARD, 1, 4096 * 3).status == 0
        assert disk.run(DISCARD, 8192, 5).status == 0
        found = disk.content()
    assert found[:4096] == before[:4096]
    assert found[4096:12288] == bytes(8192)
    assert found[12288:] == before[12288:]
    assert image.allocated == {0, 3, 4, 5, 6, 7}


def test_an_unaligned_write_waits_for_aligned_ones_and_they_for_it() -> None:
    image = FaultyImage(64, 4096, late=True, data=bytearray(64 * 512))
    order: list[str] = []
    with bench([image], "faulty", rng=random.Random(1)) as disk:

        def note(name: str):  # type: ignore[no-untyped-def]
            return lambda op: order.append(name)

        disk.write(0, b"1" * 8192, then=note("first"))
        disk.write(5, b"2", then=note("within"))
        disk.write(4000, b"3" * 200, then=note("across"))
        disk.write(0, b"4" * 4096, then=note("over"))
        disk.write(16384, b"5" * 4096, then=note("elsewhere"))
        disk.drain()
        assert [name for name in order if name != "elsewhere"] == [
            "first",
            "within",
            "across",
            "over",
        ]
        assert disk.content()[:8192] == b"4" * 4096 + b"3" * 104 + b"1" * 3992


def test_nothing_overtakes_an_unaligned_write_for_ever() -> None:
    """Ordinary writes of the same place keep coming; the unaligned one has its turn."""
    image = FaultyImage(8, late=True, slots=None)
    with bench([image], "faulty") as disk:
        disk.write(0, b"a" * 512)
        mine = disk.write(1, b"b")
        for _ in range(50):
            disk.write(0, b"c" * 512)
            disk.step()
            if mine.done:
                break
        assert mine.done
        disk.drain()


def test_a_read_modify_write_begun_inside_another_writes_queue_call_sees_it() -> None:
    """The driver takes a write, answers an older request inside the same call, and that one's
    client writes some bytes of the same sector: it must wait for the write just taken."""
    image = FaultyImage(8, late=True)
    with bench([image], "faulty") as disk:
        layer = disk.engine.layers[0]
        real = layer.write
        older: list[tuple[object, ...]] = []

        def write(dd, sector, nb_sectors, buf, cb, id, prv):  # type: ignore[no-untyped-def]
            if sector == 7:
                older.append((cb, dd, 0, sector, nb_sectors, id, prv))
                return 0
            res = real(dd, sector, nb_sectors, buf, cb, id, prv)
            if older:
                old = older.pop()
                old[0](*old[1:])  # type: ignore[operator]
            return res

        layer.write = write
        patches: list[Op] = []
        disk.write(7 * 512, bytes(512), then=lambda op: patches.append(disk.write(3, b"patch")))
        disk.write(0, b"w" * 512)
        disk.drain()
        assert patches[0].status == 0
        assert disk.content()[:512] == b"w" * 3 + b"patch" + b"w" * 504


def test_parents_are_read_in_their_own_units(rng: random.Random) -> None:
    chain = [
        LateImage(33, cluster=1, seed=1),
        LateImage(40, cluster=3, sector_size=1024, seed=2),
        LateImage(29, cluster=16, sector_size=4096, seed=3),
    ]
    for image in chain:
        image.fill(rng, 0.4)
    expected = content_of(chain)
    with bench(chain, rng=rng) as disk:
        assert disk.content() == expected
        for sector in range(33):
            disk.read(sector * 512, 512, then=lambda op, s=sector: setattr(op.req, "tag", s))
        ops = list(disk.ops)
        disk.drain()
    for op in ops:
        assert op.buf == expected[op.req.tag * 512 : op.req.tag * 512 + 512]


def test_an_error_of_a_parent_that_is_read_around_reaches_the_request() -> None:
    child, parent = LateImage(8), LateImage(8, sector_size=4096)
    with bench([child, parent]) as disk:
        disk.engine.layers[1].read = lambda *args: -errno.EREMOTEIO
        assert disk.run(READ, 512, 512).status == -errno.EREMOTEIO
