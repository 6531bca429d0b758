"""Many requests at a time against a model, hostile front ends, memory that changes meanwhile."""

import io
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from drivers.late import LateImage
from enginebench import bench, content_of
from hypothesis import given, settings
from hypothesis import strategies as st
from nbdwire import every_lease_comes_back, opened
from ringbench import THOROUGH, Plan, Rig, content

from tapcore.engine import Request, dispatch, engine_of
from tapcore.ring import backend
from tapcore.ring.dump import lines_of, state_of
from tapcore.ring.frontend import Pending
from tapcore.ring.shared import MASK, RingBrokenError
from tapcore.ring.wire import X86_32, X86_64, Op, Status
from tapcore.tools.create import create_image
from tapcore.tools.openimage import open_image

SECTORS = 160


@pytest.fixture(autouse=True)
def _busy_is_retried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BUSY_RETRY_SECONDS", 0.0)


# ---- against a model ---------------------------------------------------------------------------


class Model:
    """The disk as it should be. The front end does not touch what one of its writes is about."""

    def __init__(self, rig: Rig, expected: bytearray) -> None:
        self.rig = rig
        self.bytes = expected
        self.known = bytearray(b"\1") * len(expected)
        self.under_way: dict[int, tuple[Pending, int, int, bytes, bytes]] = {}
        self.answers = 0
        self.sent = 0

    def put(self, plan: Plan) -> None:
        size = len(self.bytes) // 512
        first = min(plan.at * size // 1000, size - 1)
        most = 80 if plan.operation == Op.WRITE_BARRIER else plan.sectors  # it is never indirect
        count = min(plan.sectors, most, size - first)
        start, end = first * 512, (first + count) * 512
        while self._in_the_way(plan.operation, start, end) or not self.rig.front.room_for(
            end - start
        ):
            self.step()
        front = self.rig.front
        if plan.operation == Op.READ:
            made = front.read(start, end - start)
        elif plan.operation == Op.FLUSH_DISKCACHE:
            made, end = front.flush(), start
        elif plan.operation == Op.DISCARD:
            self.known[start:end] = bytes(end - start)
            made = front.discard(start, end - start)
        else:
            new = content(self.sent, end - start)
            self.bytes[start:end] = new
            self.known[start:end] = b"\1" * len(new)
            made = front.write(start, new, plan.operation)
        expected = bytes(self.bytes[start:end])
        self.under_way[made.id] = (made, start, end, expected, bytes(self.known[start:end]))
        self.sent += 1

    def _in_the_way(self, operation: int, start: int, end: int) -> bool:
        return any(
            start < other_end
            and other_start < end
            and (operation != Op.READ or made.operation != Op.READ)
            for made, other_start, other_end, _, _ in self.under_way.values()
        )

    def step(self) -> None:
        self.rig.step()
        for made in self.rig.front.answered():
            _, _, _, expected, known = self.under_way.pop(made.id)
            self.answers += 1
            assert made.status == Status.OKAY
            if made.operation == Op.READ:
                found = self.rig.front.content(made)
                assert all(a == b for a, b, k in zip(found, expected, known, strict=True) if k), (
                    f"request {made.id}"
                )
            self.rig.front.done(made)

    def drain(self) -> None:
        for _ in range(20_000):
            if not self.under_way:
                break
            self.step()
        assert self.answers == self.sent
        assert not self.rig.front.pending
        assert not self.rig.ring.responses()


PLANS = st.builds(
    Plan,
    operation=st.sampled_from(
        [
            *[Op.READ, Op.WRITE] * 3,
            Op.DISCARD,
            Op.FLUSH_DISKCACHE,
            Op.WRITE_BARRIER,
        ]
    ),
    at=st.integers(0, 1000),
    sectors=st.one_of(st.integers(1, 9), st.integers(1, 130)),
    steps=st.integers(0, 2),
)


@settings(max_examples=40 * THOROUGH, deadline=None)
@given(
    st.lists(PLANS, max_size=30),
    st.sampled_from(["late", "latefull"]),
    st.sampled_from([X86_64, X86_32]),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 5, MASK - 9]),
    st.sampled_from([(512, None, 0.0), (512, 3, 0.3), (4096, None, 0.0), (1024, 9, 0.1)]),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_content_is_that_of_the_model_and_each_request_has_one_answer(
    plans: list[Plan],
    handle: str,
    protocol: Any,
    order: int,
    start: int,
    how: tuple[int, int | None, float],
    has_parent: bool,
    seed: int,
) -> None:
    rng = random.Random(seed)
    unit, depth, busy = how
    images = [
        LateImage(
            SECTORS,
            cluster=8,
            sector_size=unit,
            seed=rng.getrandbits(32),
            now=0.3,
            depth=depth,
            busy=busy,
        )
        for _ in range(1 + has_parent)
    ]
    for image in images:
        image.fill(rng)
    with every_lease_comes_back() as leases, bench(images, handle, rng=rng) as disk:
        rig = Rig(disk, protocol=protocol, order=order, start=start, pages=80)
        model = Model(rig, content_of(images))
        for plan in plans:
            model.put(plan)
            for _ in range(plan.steps):
                model.step()
        model.drain()
        assert rig.back.held == 0
        assert not leases.out
        found = disk.content()
        assert all(a == b for a, b, k in zip(found, model.bytes, model.known, strict=True) if k)


@settings(max_examples=25 * THOROUGH, deadline=None)
@given(st.lists(PLANS, max_size=40), st.sampled_from([X86_64, X86_32]), st.integers(0, MASK))
def test_the_lane_does_the_same(plans: list[Plan], protocol: Any, start: int) -> None:
    initial = content(9, SECTORS * 512)
    with memory_file(initial) as path, opened(f"sync:{path}") as state:
        rig = Rig(engine_of(state), protocol=protocol, start=start, pages=80)
        model = Model(rig, bytearray(initial))
        wait = Turns(engine_of(state))
        for plan in plans:
            model.put(plan)
            for _ in range(plan.steps):
                wait.once()
                model.step()
        while model.under_way:
            wait.once()
            model.step()
        model.drain()
        assert os.path.getsize(path) == len(initial)
        found = Path(path).read_bytes()
        assert all(a == b for a, b, k in zip(found, model.bytes, model.known, strict=True) if k)


class memory_file:  # noqa: N801
    """A file in memory, by a path."""

    def __init__(self, data: bytes) -> None:
        self._fd = os.memfd_create("disk")
        os.write(self._fd, data)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Turns:
    """The descriptors of a disk's images, without waiting."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def once(self) -> None:
        for _, dd, sid in self._engine.poll_fds():
            self._engine.readable(dd, sid)


# ---- what goes by the lane ---------------------------------------------------------------------


def test_small_requests_never_reach_the_engine_and_large_ones_use_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(content(1, 1 << 20))
    with opened(f"sync:{path}") as state:
        engine = engine_of(state)
        taken: list[Request] = []
        buffers: list[Any] = []
        submit = engine.submit

        def watched(req: Request) -> None:
            taken.append(req)
            buffers.append(None if req.buf is None else req.buf.obj)
            submit(req)

        monkeypatch.setattr(engine, "submit", watched)
        rig = Rig(engine, pages=300)
        for number in range(20):
            assert rig.raw(Op.READ, number * 8, [(number, 0, 7)]) == [(0, Op.READ, 0)]
        assert bytes(rig.pages[: 20 << 12]) == content(1, 20 << 12)
        assert rig.raw(Op.WRITE, 8, [(3, 1, 2)]) == [(0, Op.WRITE, 0)]
        assert not taken
        assert not rig.back.flights
        made = rig.front.read(0, 1 << 20)
        assert rig.finish(made) == 0
        assert len(taken) == 1  # 256 pages that follow each other are one
        assert taken[0].length == 1 << 20
        assert buffers[0] is rig.memory.obj
    assert path.read_bytes()[4096:5120] == content(1, 1 << 20)[3 * 4096 + 512 : 3 * 4096 + 1536]


def test_holes_are_zeroes_without_asking_anybody(tmp_path: Path) -> None:
    name = f"qcow2:{tmp_path / 'a.qcow2'}"
    create_image(name, 1 << 20)
    with opened(name, 1) as state:
        rig = Rig(engine_of(state))
        rig.pages[:4096] = b"x" * 4096
        assert rig.kick() is False
        rig.ring.put(X86_64.one.pack(Op.READ, 1, 7, 80, 0, 0, 7))
        rig.kick()
        assert rig.ring.responses() == [(7, Op.READ, Status.OKAY)]
        assert not any(rig.pages[:4096])
        assert not engine_of(state).in_flight


# ---- hostile -----------------------------------------------------------------------------------


@settings(max_examples=60 * THOROUGH, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 40), st.integers(0, 1 << 30))
def test_any_bytes_in_the_ring_are_answered_or_break_it(
    start: bytes, ahead: int, seed: int
) -> None:
    """Entries of random bytes, and of bytes that are nearly right: nothing else comes of them."""
    rng = random.Random(seed)
    image = LateImage(SECTORS, now=0.5, seed=seed)
    with bench([image], "latefull", rng=rng) as disk:
        rig = Rig(disk, pages=8)
        rig.memory[64:4096] = (start + rng.randbytes(4096))[: 4096 - 64]
        for slot in range(32):
            if rng.random() < 0.8:
                rig.memory[64 + slot * 112] = rng.choice([0, 1, 2, 3, 5, 6, rng.randrange(256)])
                rig.memory[65 + slot * 112] = rng.choice([0, 1, 2, 11, 12, rng.randrange(256)])
            if rng.random() < 0.5:  # near the disk, and in granted pages
                rig.memory[80 + slot * 112 : 88 + slot * 112] = bytes(
                    [rng.randrange(256), *[0] * 7]
                )
                for at in range(88 + slot * 112, 176 + slot * 112, 8):
                    first = rng.randrange(10)
                    grant = bytes([rng.randrange(9), 0, 0, 0, first, rng.randrange(first, 10)])
                    rig.memory[at : at + 6] = grant
        rig.ring.shared.indices[0] = ahead
        if ahead > 32:
            with pytest.raises(RingBrokenError):
                rig.kick()
            rig.back.leave()
            return
        rig.settle()
        assert rig.ring.shared.indices[2] == ahead
        assert rig.back.ring.in_flight == 0
        assert rig.back.held == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_thread_that_scribbles_over_all_memory_meanwhile_harms_nobody(seed: int) -> None:
    """Ring and data pages change under the back end's hands; another front end sees nothing."""
    rng = random.Random(seed)
    image = LateImage(SECTORS, cluster=8, now=0.5, seed=seed, depth=40)
    image.fill(rng)
    other = LateImage(SECTORS, cluster=8, now=0.5, seed=seed)
    other.fill(rng)
    with bench([other], "latefull") as peaceful, bench([image], "latefull", rng=rng) as disk:
        good = Model(Rig(peaceful, pages=80), content_of([other]))
        rig = Rig(disk, pages=8)
        stop = threading.Event()
        scribbler = threading.Thread(target=scribble, args=(rig.memory, stop, seed))
        scribbler.start()
        broken = 0
        try:
            for _ in range(300 * THOROUGH):
                good.put(Plan(rng.choice([Op.READ, Op.WRITE]), rng.randrange(1000), 9, 0))
                good.step()
                try:
                    rig.back.ring.published = rig.back.ring.published  # nothing is read back
                    rig.ring.shared.indices[0] = (
                        rig.back.ring.rsp_prod_pvt + rng.randrange(33)
                    ) & MASK
                    rig.back.work(bool)
                    disk.step()
                except RingBrokenError:
                    broken += 1
                    rig.back.leave()
                    disk.drain()
                    assert not rig.back.flights
                    old, rig = rig, Rig(disk, pages=8)
                    rig.memory[:] = old.memory
        finally:
            stop.set()
            scribbler.join()
        rig.back.leave()
        disk.drain()
        good.drain()
        assert rig.back.held == 0


def scribble(memory: memoryview, stop: threading.Event, seed: int) -> None:
    """Write random bytes everywhere, until told to stop."""
    rng = random.Random(seed)
    while not stop.is_set():
        at = rng.randrange(4, len(memory) - 200)
        memory[at : at + 120] = rng.randbytes(120)
        slot = 64 + rng.randrange(32) * 112
        memory[slot : slot + 2] = bytes([rng.choice([0, 1, 2, 3, 5, 6]), rng.randrange(13)])
        memory[slot + 16 : slot + 24] = bytes([rng.randrange(SECTORS), *[0] * 7])


@pytest.mark.parametrize("handle", ["late", "latefull"])
def test_content_that_a_driver_may_look_at_does_not_change_meanwhile(handle: str) -> None:
    """The front end writes into its page after the request was taken: it is too late."""
    image = LateImage(SECTORS, now=0.0)
    with bench([image], handle) as disk:
        rig = Rig(disk)
        before = content(4, 4096)
        rig.pages[:4096] = before
        rig.ring.put(X86_64.one.pack(Op.WRITE, 1, 1, 0, 0, 0, 7))
        rig.kick()
        rig.pages[:4096] = b"!" * 4096
        rig.settle()
        assert rig.ring.responses() == [(1, Op.WRITE, Status.OKAY)]
        assert image.data[:4096] == before


def test_what_the_guard_has_looked_at_is_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest cannot make another format of a raw disk by being quick."""
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    with open_image(str(path), writing=True) as disk:
        engine = engine_of(disk.state)
        guard = engine.guard
        assert guard is not None
        rig = Rig(engine)
        reason, asked = guard.reason, []

        def quick(head: bytes, tail: bytes, size: int) -> str:
            asked.append(head[:4])
            rig.pages[:4] = b"QFI\xfb"
            return reason(head, tail, size)

        monkeypatch.setattr(type(guard), "reason", lambda _, *args: quick(*args))
        rig.pages[:4096] = b"\x11" * 4096
        rig.ring.put(X86_64.one.pack(Op.WRITE, 1, 1, 0, 0, 0, 7))
        turns = Turns(engine)
        for _ in range(1000):
            if not rig.kick() and not rig.back.busy:
                break
            turns.once()
        assert rig.ring.responses() == [(1, Op.WRITE, Status.OKAY)]
        assert asked == [b"\x11" * 4]
        assert bytes(rig.pages[:4]) == b"QFI\xfb"
    assert path.read_bytes()[:4096] == b"\x11" * 4096


def test_private_buffers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MAX_HELD", 16384)
    image = LateImage(SECTORS, now=0.0)
    image.fill(random.Random(1), 1.0)
    with bench([image]) as disk:
        rig = Rig(disk)
        for number in range(32):
            rig.ring.put(X86_64.one.pack(Op.READ, 1, number, number, number, 0, 7))
        rig.kick()
        assert rig.back.held <= 16384 + 4096
        assert len(rig.back.waiting) == backend.AT_ONCE - len(rig.back.flights) > 0
        assert rig.back.ring.in_flight == backend.AT_ONCE  # the others wait in the ring
        rig.settle()
        assert sorted(id for id, _, _ in rig.ring.responses()) == list(range(32))
        for number in range(32):
            assert rig.pages[number << 12 : (number + 1) << 12] == bytes(
                image.data[number * 512 : number * 512 + 4096]
            )


# ---- the end, and pauses -----------------------------------------------------------------------


def test_who_goes_gets_no_answer_and_what_is_under_way_ends() -> None:
    image = LateImage(SECTORS, now=0.0)
    image.fill(random.Random(1), 1.0)
    with every_lease_comes_back(), bench([image], "latefull") as disk:
        rig = Rig(disk)
        for number in range(8):
            rig.front.read(number * 4096, 4096)
        rig.front.barrier()
        rig.front.discard(0, 4096)
        rig.kick()
        assert rig.back.flights
        pages = bytes(rig.memory)
        rig.back.leave()
        disk.drain()
        assert not rig.back.busy
        assert rig.back.held == 0
        assert bytes(rig.memory) == pages
        assert rig.kick() is False


def test_a_pause_takes_nothing_and_answers_what_was_taken() -> None:
    image = LateImage(SECTORS, now=0.0)
    with bench([image]) as disk:
        rig = Rig(disk)
        first = rig.front.read(0, 4096)
        rig.kick()
        disk.engine.hold()
        second = rig.front.read(0, 4096)
        assert rig.finish(first) == Status.OKAY
        for _ in range(20):
            rig.step()
        assert not rig.front.answered()
        assert not disk.engine.in_flight
        disk.engine.release()
        assert rig.finish(second) == Status.OKAY


def test_the_dump_tells_of_indices_events_and_slots() -> None:
    image = LateImage(SECTORS, now=0.0)
    with bench([image], "latefull") as disk:
        rig = Rig(disk, start=MASK)
        rig.raw(9)
        rig.front.read(8 * 512, 3 * 4096)
        rig.front.barrier()
        rig.front.write(0, bytes(512))
        rig.kick()
        state = state_of(rig.back)
        assert (state.req_prod, state.req_cons, state.rsp_prod, state.rsp_prod_pvt) == (3, 3, 0, 0)
        assert state.req_event == 1  # as before: it does not sleep while something waits in it
        out = io.StringIO()
        print("\n".join(lines_of(0, state)), file=out)
        assert out.getvalue() == (
            "ring 0: x86_64-abi, 32 slots, 64 data pages\n"
            "  shared:  req_prod 3, req_event 1, rsp_prod 0, rsp_event 0\n"
            "  private: req_cons 3, rsp_prod_pvt 0\n"
            "  3 busy, 16384 bytes of private buffers\n"
            "  1 refused, the last one since operation 9 is not known\n"
            "  slot 0: read, id 0, sector 8+24, pending 24, status 0\n"
            "  slot 1: write barrier, id 1, sector 0, waits\n"
            "  slot 2: write, id 2, sector 0, waits\n"
        )
        rig.settle()
