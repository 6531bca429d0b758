"""Write zeroes: by the driver's quick way, or by writing, or by parts of both."""

import errno
import random

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import bench, content_of

from tapcore.engine import READ, ZERO
from tapcore.engine.zerofill import AT_ONCE, UNDER_WAY

WAYS = pytest.mark.parametrize("way", ["yes", "no", "raise", "mixed"])


@WAYS
@pytest.mark.parametrize("now", [0.0, 1.0], ids=["late", "at once"])
def test_zeroes_reach_a_driver_with_any_way_of_writing_them(
    way: str, now: float, rng: random.Random
) -> None:
    chain = [LateImage(64, cluster=4, zero=way, now=now), LateImage(50, cluster=4, seed=1)]
    for image in chain:
        image.fill(rng, 0.6)
    model = content_of(chain)
    with bench(chain, "latefull", rng=rng) as disk:
        for start, end in [(0, 16384), (17000, 18000), (20480, 20992), (30000, 32768)]:
            op = disk.submit(ZERO, start, end - start)
            model[start:end] = bytes(end - start)
            disk.drain()
            assert op.status == 0
            assert disk.content() == model


def test_many_megabytes_of_zeroes_are_written_in_segments() -> None:
    image = FaultyImage(7 << 11, late=True, slots=2, data=bytearray(b"x") * (7 << 20))
    with bench([image], "faulty") as disk:
        assert disk.run(ZERO, 512, 6 << 20).status == 0
    assert image.data == b"x" * 512 + bytes(6 << 20) + b"x" * ((1 << 20) - 512)
    assert len(image.writes) == 6


@pytest.mark.parametrize("way", ["no", "raise", "mixed"])
def test_who_asks_for_speed_is_told_when_there_is_none(way: str) -> None:
    image = LateImage(64, cluster=4, zero=way)
    with bench([image], "latefull") as disk:
        op = disk.submit(ZERO, 0, 16384, fast=True)
        disk.drain()
        assert op.status == -errno.EOPNOTSUPP


def test_who_asks_for_speed_gets_it_where_there_is_some() -> None:
    image = LateImage(64, cluster=4)
    with bench([image], "latefull") as disk:
        op = disk.submit(ZERO, 0, 16384, fast=True)
        disk.drain()
        assert op.status == 0


def test_a_driver_that_gives_up_after_answering_some_is_still_counted_right() -> None:
    """It answers one part -EOPNOTSUPP, takes another, and then returns -EOPNOTSUPP itself."""
    image = FaultyImage(64, late=True)
    with bench([image], "faulty") as disk:

        def zero(dd, sector, nb_sectors, may_unmap, cb, id, prv):  # type: ignore[no-untyped-def]
            cb(dd, -errno.EOPNOTSUPP, sector, 4, id, prv)
            return -errno.EOPNOTSUPP

        disk.engine.layers[0].zero = zero
        op = disk.submit(ZERO, 0, 8192)
        disk.engine.turn()
        assert not op.done  # four sectors are being written
        disk.drain()
        assert op.status == -errno.EOPNOTSUPP
        assert disk.run(READ, 0, 8192).status == 0


def test_an_error_of_the_writes_behind_zeroes_is_the_requests() -> None:
    image = FaultyImage(64, late=True, bad={9: errno.ENOSPC})
    with bench([image], "faulty") as disk:
        assert disk.run(ZERO, 0, 8192).status == -errno.ENOSPC
        assert disk.run(ZERO, 0, 4096).status == 0


def test_a_driver_that_blocks_does_not_hold_the_loop_with_zeroes() -> None:
    """Others have their turn after every few MiB; the loop is told to come back at once."""
    image = FaultyImage(64 << 11)
    with bench([image], "faulty") as disk:
        op = disk.submit(ZERO, 0, 64 << 20)
        assert len(image.writes) == AT_ONCE
        assert [disk.engine.timeout] == [0.0]
        turns = 0
        while not op.done:
            turns += 1
            before = len(image.writes)
            disk.engine.turn()
            assert len(image.writes) - before <= AT_ONCE
            read = disk.submit(READ, 1 << 20, 4096)
            assert read.done
        assert turns == 64 // AT_ONCE - 1
        assert [disk.engine.timeout] == [None]
    assert sorted(image.writes) == [(n << 11, 1 << 11) for n in range(64)]


def test_zeroes_do_not_fill_the_queue_of_a_driver() -> None:
    image = FaultyImage(64 << 11, late=True)
    with bench([image], "faulty") as disk:
        ops = [disk.submit(ZERO, n << 25, 1 << 25) for n in range(2)]
        while not all(op.done for op in ops):
            for _ in range(20):
                disk.engine.turn()
            queued = disk.engine.layers[0].dd.private
            assert len(queued.queued) + len(queued.submitted) <= 2 * UNDER_WAY
            if disk.engine._dispatcher.timeout is None:  # the engine's own has other reasons, too
                disk.step()
        assert [op.status for op in ops] == [0, 0]
    assert len(image.writes) == 64
