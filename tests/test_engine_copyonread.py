"""Copy on read: the child ends up with what was read from below, and never with old content."""

import errno
import random
from functools import partial

import pytest
from drivers.late import LateImage
from enginebench import Bench, Op, bench, content_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tapcore.constants import TD_RDONLY
from tapcore.engine import READ, WRITE
from tapcore.engine import dispatch as engine_module


def _nothing_writes(disk: Bench, start: int, end: int) -> bool:
    """No request on its way lies in a range (bytes)."""
    return not any(
        other.req.op == WRITE and start < other.range[1] and other.range[0] < end
        for other in disk.unfinished
    )


def chain_of(rng: random.Random, size: int, below: int, cluster: int, unit: int) -> list[LateImage]:
    chain = [
        LateImage(size, cluster=cluster, sector_size=unit, seed=rng.getrandbits(32)),
        LateImage(below, cluster=2, seed=rng.getrandbits(32)),
    ]
    chain[0].fill(rng, 0.3)
    chain[1].fill(rng, 0.7)
    return chain


@settings(max_examples=200)
@given(
    st.integers(),
    st.integers(8, 64),
    st.integers(1, 80),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([512, 4096]),
    st.lists(
        st.tuples(
            st.sampled_from([READ, READ, WRITE]),
            st.integers(0, 63),
            st.integers(1, 20),
            st.booleans(),
        ),
        max_size=20,
    ),
)
def test_newer_writes_survive_and_what_was_read_is_in_the_child(
    seed: int,
    size: int,
    below: int,
    cluster: int,
    unit: int,
    plans: list[tuple[int, int, int, bool]],
) -> None:
    rng = random.Random(seed)
    chain = chain_of(rng, size, below, cluster, unit)
    model = content_of(chain)
    parent = chain[1].snapshot()
    read: set[int] = set()
    with bench(chain, rng=rng, copy_on_read=True) as disk:
        reads: list[Op] = []
        for serial, (op, sector, count, byte) in enumerate(plans):
            step = unit // 512
            sector, count = sector % size // step * step, -(-count // step) * step
            count = min(count, size - sector)
            a, b = sector * 512, (sector + count) * 512
            if op == READ:  # may overlap a write under way: then its result is not looked at
                reads.append(disk.read(a, b - a))
                read |= set(range(sector, min(sector + count, below)))
            else:
                a += byte
                disk.wait_for(partial(_nothing_writes, disk, a, b))
                model[a:b] = bytes([serial + 1]) * (b - a)
                disk.write(a, bytes(model[a:b]))
            if rng.random() < 0.5:
                disk.step()
        disk.drain()
        assert {op.status for op in reads} <= {0}
        in_child = {s for c in chain[0].allocated for s in range(*chain[0].bounds(c))}
        assert read <= in_child
        assert disk.content() == model
    assert chain[1].snapshot() == parent
    assert content_of(chain) == model


def test_a_read_larger_than_one_segment_is_copied_as_well(rng: random.Random) -> None:
    chain = [LateImage(5 << 11, cluster=128), LateImage(5 << 11, cluster=128, seed=1)]
    chain[1].fill(rng, 1.0)
    with bench(chain, copy_on_read=True) as disk:
        assert disk.content() == chain[1].data
    assert chain[0].data == chain[1].data


def test_copies_are_whole_units_of_the_child(rng: random.Random) -> None:
    """The parent ends inside a unit; the driver itself notes a write that is not whole units."""
    chain = [LateImage(32, cluster=3, sector_size=4096), LateImage(13, cluster=1, seed=1)]
    chain[1].fill(rng, 0.9)
    expected = content_of(chain)
    with bench(chain, copy_on_read=True) as disk:
        assert disk.content() == expected
        assert disk.content() == expected


def test_a_copy_that_cannot_be_made_does_not_fail_the_read(
    rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    chain = [LateImage(32), LateImage(32)]
    chain[1].fill(rng, 1.0)
    with bench(chain, copy_on_read=True) as disk:
        disk.engine.layers[0].write = lambda *args: -errno.ENOSPC
        assert disk.content() == chain[1].data
    assert not chain[0].allocated
    assert "copy on read failed" in caplog.text


def test_what_could_not_be_read_is_not_copied(rng: random.Random) -> None:
    chain = [LateImage(32), LateImage(32)]
    chain[1].fill(rng, 1.0)
    with bench(chain, copy_on_read=True) as disk:
        disk.engine.layers[1].read = lambda *args: -errno.EREMOTEIO
        assert disk.run(READ, 0, 16384).status == -errno.EREMOTEIO
        assert disk.run(WRITE, 1, data=b"nothing is held").status == -errno.EREMOTEIO
        assert disk.run(WRITE, 0, data=bytes(512)).status == 0
    assert chain[0].allocated == {0}


def test_a_read_only_disk_is_not_copied_into(rng: random.Random) -> None:
    chain = [LateImage(32), LateImage(32)]
    chain[1].fill(rng, 1.0)
    with bench(chain, flags=TD_RDONLY, copy_on_read=True) as disk:
        assert disk.content() == chain[1].data
    assert not chain[0].allocated


def test_nothing_stalls_when_both_images_are_busy(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BUSY_RETRY_SECONDS", 0.0)
    chain = [
        LateImage(64, cluster=8, depth=4, busy=0.5, now=0.0),
        LateImage(64, cluster=2, depth=4, busy=0.5, now=0.0, seed=1),
    ]
    chain[1].fill(rng, 0.8)
    model = content_of(chain)
    with bench(chain, rng=rng, copy_on_read=True) as disk:
        for n in range(16):
            disk.read(n * 2048, 2048)
            model[n * 2048 + 100 : n * 2048 + 300] = b"w" * 200
            disk.write(n * 2048 + 100, b"w" * 200)
        disk.drain()
        assert disk.content() == model
