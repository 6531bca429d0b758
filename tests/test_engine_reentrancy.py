"""Callbacks inside calls inside callbacks: a request's `done` may do anything that a client may."""

import random

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import Bench, Op, bench, content_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tapcore.engine import FLUSH, READ, WRITE
from tapcore.engine import dispatch as engine_module


@settings(max_examples=100)
@given(st.integers(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, 3]), st.booleans())
def test_requests_that_are_submitted_from_done_are_requests_like_others(
    seed: int, now: float, depth: int | None, copy_on_read: bool
) -> None:
    rng = random.Random(seed)
    chain = [
        LateImage(40, cluster=4, now=now, depth=depth, seed=seed, sector_size=1024),
        LateImage(30, cluster=2, now=now, depth=depth, seed=seed + 1),
    ]
    for image in chain:
        image.fill(rng, 0.5)
    model = content_of(chain)
    everything: list[Op] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        bench(chain, rng=rng, copy_on_read=copy_on_read) as disk,
    ):
        patch.setattr(engine_module, "BUSY_RETRY_SECONDS", 0.0)

        def chain_of(at: int, left: int):  # type: ignore[no-untyped-def]
            """A client that owns the bytes [at, at + 4096) and does one thing after another."""

            def then(op: Op) -> None:
                if not left:
                    return
                a, b = sorted(rng.choices(range(at, at + 4097), k=2))
                kind = rng.choice([READ, WRITE, WRITE, FLUSH])
                following = chain_of(at, left - 1)
                if kind == READ:
                    everything.append(disk.read(a, b - a, then=following))
                elif kind == FLUSH:
                    everything.append(disk.submit(FLUSH, then=following))
                else:
                    model[a:b] = bytes([left]) * (b - a)
                    everything.append(disk.write(a, bytes([left]) * (b - a), then=following))

            return then

        for n in range(5):
            disk.read(n * 4096, 4096, then=chain_of(n * 4096, 8))
        disk.drain()
        assert len(everything) == 40
        assert {op.status for op in everything} == {0}
        assert disk.content() == model


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_a_done_that_raises_costs_nobody_else_their_answer(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    image = FaultyImage(64, late=late, busy={2})
    with bench([image], "faulty") as disk:

        def bug(op: Op) -> None:
            raise KeyError("a front end's bug")

        ops = [disk.write(n * 512 + n, b"x" * 512, then=bug if n == 1 else None) for n in range(5)]
        ops.append(disk.write(512, b"y" * 512, fua=True, then=bug))
        ops.append(disk.write(512, b"z" * 512))
        disk.drain()
        assert [op.status for op in ops] == [0] * 7
    assert "a front end's bug" in caplog.text


def test_a_sync_driver_and_a_client_that_waits_for_each_answer_need_no_turn() -> None:
    image = FaultyImage(64)
    with bench([image], "faulty") as disk:
        assert disk.write(3, b"abc").status == 0
        assert disk.read(2, 5).buf == b"\0abc\0"
        assert disk.engine.in_flight == 0


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_hundreds_of_writes_that_wait_for_each_other_need_no_deep_stack(late: bool) -> None:
    image = FaultyImage(8, 4096, late=late)
    with bench([image], "faulty") as disk:
        ops = [disk.write(n, bytes([n % 256])) for n in range(600)]
        disk.drain(turns=5000)
        assert {op.status for op in ops} == {0}
        assert disk.content()[:600] == bytes(n % 256 for n in range(600))


def test_a_driver_may_answer_inside_submit() -> None:
    image = FaultyImage(64, late=True)
    with bench([image], "faulty") as disk:
        layer = disk.engine.layers[0]

        def submit(dd):  # type: ignore[no-untyped-def]
            finished = 0
            while dd.private.queued:
                finished += dd.private.queued.pop(0)()
            return finished

        layer.submit = submit
        seen: list[bytes] = []

        def then(op: Op) -> None:
            disk.read(0, 9, then=lambda again: seen.append(bytes(again.buf or b"")))

        disk.write(3, b"abc", then=then)
        disk.engine.turn()
        assert seen == [b"\0\0\0abc\0\0\0"]
        assert disk.engine.in_flight == 0


def test_what_is_below_an_image_can_be_read_by_its_driver(rng: random.Random) -> None:
    chain = [LateImage(40, cluster=8), LateImage(20, seed=1), LateImage(30, seed=2)]
    for image in chain:
        image.fill(rng)
    below = content_of(chain[1:])[: 20 * 512].ljust(40 * 512, b"\0")
    with bench(chain, rng=rng) as disk:
        found = _read_below(disk, 0, 40)
        assert found == below
        for sector in range(0, 40, 3):
            assert _read_below(disk, sector, 1) == below[sector * 512 : sector * 512 + 512]
        assert _read_below(disk, 3, 0) == b""


def _read_below(disk: Bench, sector: int, count: int) -> bytes:
    buf = bytearray(b"\xee" * count * 512)
    answers: list[int] = []
    disk.engine.read_below(
        disk.state.disks, sector, memoryview(buf), lambda req: answers.append(req.status)
    )
    disk.drain()
    assert answers == [0]
    return bytes(buf)


def test_an_image_alone_has_zeroes_below() -> None:
    with bench([LateImage(8)]) as disk:
        assert _read_below(disk, 0, 8) == bytes(4096)
