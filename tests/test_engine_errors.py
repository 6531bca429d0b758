"""Errors reach exactly the requests that they hit, with their errno, and never become silence."""

import errno
import logging
import random
from functools import partial

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import Bench, Op, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from tapcore import TapError
from tapcore.constants import TD_RDONLY
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, ZERO

LATE = pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.integers(0, 63), st.sampled_from([errno.EIO, errno.ENOSPC, errno.EREMOTEIO])
    ),
    st.lists(
        st.tuples(st.sampled_from([READ, WRITE]), st.integers(0, 32767), st.integers(0, 9000)),
        max_size=20,
    ),
    st.sampled_from([512, 4096]),
    st.booleans(),
    st.integers(),
)
def test_errors_hit_exactly_the_requests_that_touch_bad_sectors(
    bad: dict[int, int],
    plans: list[tuple[int, int, int]],
    sector_size: int,
    late: bool,
    seed: int,
) -> None:
    rng = random.Random(seed)
    image = FaultyImage(
        64, sector_size, bad=bad, late=late, seed=seed, data=bytearray(rng.randbytes(64 * 512))
    )
    model = bytearray(image.data)
    with bench([image], "faulty", rng=rng) as disk:
        for serial, (op, offset, length) in enumerate(plans):
            length = min(length, len(model) - offset)
            end = offset + length
            disk.wait_for(partial(_nothing_touches, disk, offset, end))
            first = offset // sector_size * sector_size // 512
            last = -(-end // sector_size) * sector_size // 512
            possible = {-bad[s] for s in range(first, last) if s in bad} if length else set()
            if op == WRITE and not possible:
                model[offset:end] = bytes([serial + 1]) * length
            content = bytes(model[offset:end])

            def check(
                done: Op,
                possible: set[int] = possible,
                content: bytes = content,
                read: bool = op == READ,
            ) -> None:
                if possible:
                    done.req.tag = done.req.status in possible
                else:
                    done.req.tag = done.req.status == 0 and (not read or done.buf == content)

            if op == READ:
                mine = disk.read(offset, length, then=check)
            else:
                mine = disk.write(offset, bytes([serial + 1]) * length, then=check)
            if rng.random() < 0.5:
                disk.step()
            if possible and op == WRITE:  # what is in the sectors around the bad ones is open
                disk.drain()
                model[offset:end] = image.data[offset:end]
            assert not mine.done or mine.req.tag
        ops = list(disk.ops)
        disk.drain()
        assert all(op.answers == 1 and op.req.tag for op in ops)
        untouched = [s for s in range(64) if s not in bad]
        assert [image.data[s * 512 : s * 512 + 512] for s in untouched] == [
            model[s * 512 : s * 512 + 512] for s in untouched
        ]


@LATE
def test_the_first_of_several_errors_is_kept_and_the_good_parts_are_read(late: bool) -> None:
    image = FaultyImage(8, late=late, bad={2: errno.EREMOTEIO, 5: errno.ENOSPC})
    image.data[:] = b"d" * 4096
    with bench([image], "faulty") as disk:
        op = disk.run(READ, 0, 4096)
    assert op.status == -errno.EREMOTEIO
    assert op.buf is not None
    assert op.buf[:1024] == b"d" * 1024
    assert op.buf[3072:] == b"d" * 1024


def _nothing_touches(disk: Bench, start: int, end: int) -> bool:
    """No request on its way lies in a range (bytes)."""
    return not any(other.range[0] < end and start < other.range[1] for other in disk.unfinished)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (TapError("odd", errno=errno.EPERM), errno.EPERM),
        (TapError("no errno", errno=0), errno.EIO),
        (OSError(-errno.ENOSPC, "wrong sign"), errno.ENOSPC),
        (OSError("no errno"), errno.EIO),
        (ValueError("a bug"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (-errno.ENOSPC, errno.ENOSPC),
        ("too many", errno.EIO),
        ("half", errno.EIO),
    ],
    ids=repr,
)
@pytest.mark.parametrize("op", [READ, WRITE])
def test_a_queue_call_that_fails_fails_its_request_and_no_other(
    fault: Exception | int | str, expected: int, op: int
) -> None:
    image = FaultyImage(64, late=True, faults={1: fault})
    with bench([image], "faulty") as disk:
        ops = [disk.submit(op, n * 1024, 1024, bytes(1024)) for n in range(3)]
        disk.drain()
        assert [o.status for o in ops] == [0, -expected, 0]


def test_half_answered_and_then_refused_is_not_tried_again() -> None:
    image = FaultyImage(64, faults={0: "half"})
    with bench([image], "faulty") as disk:
        assert disk.run(WRITE, 0, data=bytes(1024)).status == -errno.EIO
    assert image.queue_calls == 1


@LATE
def test_an_answer_too_many_is_logged_and_harms_nobody(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    image = FaultyImage(64, late=late, faults={0: "too many"})
    with bench([image], "faulty") as disk:
        assert disk.run(READ, 0, 512).status == -errno.EIO
        assert disk.run(READ, 0, 512).status == 0
    assert "answered 2 sectors of a read that has 1" in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(errno.EAGAIN, "no room"), errno.EAGAIN), (RuntimeError("bug"), errno.EIO)],
)
def test_a_failed_submit_reaches_every_request_of_the_batch(
    error: Exception, expected: int
) -> None:
    image = FaultyImage(8 << 11, late=True, submit_faults={1: error}, bad={0: errno.EIO})
    with bench([image], "faulty") as disk:
        early = [disk.read(512, 512), disk.read(0, 512)]
        disk.engine.turn()
        batch = [
            disk.read(1024, 512),
            disk.write(4096, bytes(4096)),
            disk.write(0, bytes(3 << 20)),
            disk.write(5 << 20 | 7, b"unaligned"),
            disk.submit(FLUSH),
        ]
        disk.engine.turn()
        later = disk.read(2048, 512)
        disk.drain()
        assert [op.status for op in early] == [0, -errno.EIO]
        assert [op.status for op in batch] == [-expected] * 5
        assert later.status == 0


def test_a_failed_submit_of_a_parent_fails_what_was_sent_there() -> None:
    class Refuses(OSError):
        pass

    child = LateImage(16, now=0.0)
    parent = LateImage(16, now=0.0)
    parent.allocated = set(range(8))
    child.allocated = {0, 1}
    with bench([child, parent]) as disk:
        layer = disk.engine.layers[1]
        submit, layer.submit = layer.submit, _raising(OSError(errno.EREMOTEIO, "gone"))
        # the driver drops what it could not submit
        layer.dd.private.queued = _Forgetting()
        mine, holes = disk.read(0, 1024), disk.read(1024, 4096)
        disk.drain()
        assert [mine.status, holes.status] == [0, -errno.EREMOTEIO]
        layer.submit = submit
        layer.dd.private.queued = []
        assert disk.run(READ, 1024, 4096).status == 0


class _Forgetting(list):  # type: ignore[type-arg]
    def extend(self, items: object) -> None:
        pass


def _raising(error: Exception):  # type: ignore[no-untyped-def]
    def submit(dd: object) -> int:
        raise error

    return submit


def test_a_reap_that_is_to_be_tried_again_loses_nothing() -> None:
    faults: dict[int, Exception] = {0: OSError(errno.EINTR, ""), 2: BlockingIOError()}
    image = FaultyImage(64, late=True, reap_faults=faults)
    with bench([image], "faulty") as disk:
        ops = [disk.read(n * 512, 512) for n in range(4)]
        disk.drain()
        assert [op.status for op in ops] == [0] * 4


@pytest.mark.parametrize("op", [WRITE, ZERO, DISCARD])
def test_a_read_only_disk_refuses_changes_and_flushes(op: int) -> None:
    image = LateImage(8)
    with bench([image], flags=TD_RDONLY) as disk:
        data = bytes(512) if op == WRITE else None
        assert disk.run(op, 0, 512, data).status == -errno.EROFS
        assert disk.run(FLUSH).status == 0
        assert disk.run(READ, 0, 512).status == 0
    assert not image.allocated


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (READ, errno.EINVAL),
        (DISCARD, errno.EINVAL),
        (WRITE, errno.ENOSPC),
        (ZERO, errno.ENOSPC),
    ],
)
@pytest.mark.parametrize(
    ("offset", "length"), [(4096, 1), (4095, 2), (0, 4097), (-1, 1), (1 << 70, 512)]
)
def test_past_the_end_nothing_reaches_the_driver(
    op: int, code: int, offset: int, length: int
) -> None:
    image = LateImage(8)
    with bench([image], "latefull") as disk:
        data = bytes(length) if op == WRITE else None
        assert disk.run(op, offset, length, data).status == -code
        assert disk.run(op, 4096, 0, b"" if op == WRITE else None).status == 0
    assert not image.allocated


def test_a_parents_error_fails_the_read_of_its_child_and_only_there() -> None:
    child = LateImage(8, now=0.0, cluster=1)
    parent = LateImage(8, now=0.0, cluster=1)
    child.allocated = {0}
    parent.allocated = set(range(8))
    with bench([child, parent]) as disk:
        parent_layer = disk.engine.layers[1]
        real = parent_layer.read

        def failing(dd, sector, nb_sectors, buf, cb, id, prv):  # type: ignore[no-untyped-def]
            if sector <= 3 < sector + nb_sectors:
                return -errno.EREMOTEIO
            return real(dd, sector, nb_sectors, buf, cb, id, prv)

        parent_layer.read = failing
        ops = [disk.read(0, 512), disk.read(512, 512), disk.read(1536, 512)]
        disk.drain()
        assert [op.status for op in ops] == [0, 0, -errno.EREMOTEIO]


@LATE
def test_fua_fails_when_its_flush_does(late: bool) -> None:
    image = FaultyImage(8, late=late, flush_faults={0: -errno.EIO})
    with bench([image], "faulty") as disk:
        first = disk.write(0, bytes(512), fua=True)
        disk.drain()
        second = disk.write(3, b"unaligned", fua=True)
        disk.drain()
        assert [first.status, second.status] == [-errno.EIO, 0]
    assert image.flush_calls == 2


@LATE
def test_a_fua_write_that_failed_is_not_flushed(late: bool) -> None:
    image = FaultyImage(8, late=late, bad={0: errno.ENOSPC})
    with bench([image], "faulty") as disk:
        op = disk.write(0, bytes(512), fua=True)
        disk.drain()
        assert op.status == -errno.ENOSPC
    assert image.flush_calls == 0


def test_an_error_of_io_is_not_logged_with_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    image = FaultyImage(8, faults={0: OSError(errno.EIO, "bad disk"), 1: KeyError("bug")})
    with bench([image], "faulty") as disk:
        disk.run(READ, 0, 512)
        assert caplog.records == []
        disk.run(READ, 0, 512)
    assert [bool(r.exc_info) for r in caplog.records] == [True]
