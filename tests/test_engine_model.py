"""Random requests to random chains, many at once, against an array of bytes.

The drivers answer late, in random order and in pieces (drivers/late.py).
"""

import itertools
import os
import random
from collections.abc import Callable

import attrs
import pytest
from drivers.late import LateImage
from enginebench import Bench, Op, bench, content_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapcore import Filter, FilterCall
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, ZERO, chain_extents
from tapcore.engine import dispatch as engine_module

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@pytest.fixture(autouse=True)
def _busy_is_retried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BUSY_RETRY_SECONDS", 0.0)


@attrs.frozen
class Layout:
    """One image of a chain."""

    size: int
    cluster: int
    sector_size: int
    now: float
    depth: int | None
    busy: float
    zero: str

    def image(self, rng: random.Random) -> LateImage:
        image = LateImage(
            self.size,
            cluster=self.cluster,
            sector_size=self.sector_size,
            seed=rng.getrandbits(32),
            now=self.now,
            depth=self.depth,
            busy=self.busy,
            zero=self.zero,
        )
        image.fill(rng)
        return image


LAYOUTS = st.builds(
    Layout,
    size=st.integers(1, 70),
    cluster=st.sampled_from([1, 2, 3, 8, 16]),
    sector_size=st.sampled_from([512, 512, 1024, 4096]),
    now=st.sampled_from([0.0, 0.3, 1.0]),
    depth=st.sampled_from([None, None, 4, 9]),
    busy=st.sampled_from([0.0, 0.0, 0.3]),
    zero=st.sampled_from(["yes", "no", "mixed", "raise"]),
)
CHAINS = st.lists(LAYOUTS, min_size=1, max_size=4)


@attrs.frozen
class Plan:
    """A request to come: where, in 1/1000 of the disk, so that it fits every disk."""

    op: int
    at: int
    length: int
    whole_sectors: bool
    fua: bool
    steps: int

    def place(self, size: int) -> tuple[int, int]:
        """Offset and length in bytes, inside the disk."""
        offset = min(self.at * size // 1000, size)
        length = self.length
        if self.whole_sectors:
            offset, length = offset // 512 * 512, length // 512 * 512
        return offset, max(min(length, size - offset), 0)


PLANS = st.builds(
    Plan,
    op=st.sampled_from([READ, READ, READ, WRITE, WRITE, WRITE, WRITE, ZERO, DISCARD, FLUSH]),
    at=st.integers(0, 1000),
    length=st.one_of(st.integers(0, 2000), st.integers(0, 40_000)),
    whole_sectors=st.booleans(),
    fua=st.booleans(),
    steps=st.integers(0, 3),
)


class Model:
    """The disk as it should be; bytes that were discarded may be anything until they are written.

    Clients do not touch what one of them is writing: a request that would waits here.
    """

    def __init__(self, bench: Bench, content: bytearray, leaf: LateImage, flushes: bool) -> None:
        self.bench = bench
        self.bytes = content
        self.known = bytearray(b"\x01") * len(content)
        self.leaf = leaf
        self.flushes = flushes
        self._serial = 0

    def submit(self, plan: Plan) -> None:
        offset, length = plan.place(len(self.bytes))
        if plan.op == FLUSH:
            self.bench.submit(FLUSH, then=self._flushed(self.leaf.writes))
            return
        self._wait_for_others(plan.op, offset, offset + length)
        end = offset + length
        if plan.op == READ:
            expected, known = bytes(self.bytes[offset:end]), bytes(self.known[offset:end])
            self.bench.read(offset, length, then=lambda op: self._was_read(op, expected, known))
            return
        data = None
        if plan.op == WRITE:
            self._serial += 1
            data = random.Random(self._serial).randbytes(length)
        elif plan.op == ZERO:
            data = bytes(length)
        if data is None:
            self.known[offset:end] = bytes(length)
        else:
            self.bytes[offset:end] = data
            self.known[offset:end] = b"\x01" * length
        self.bench.submit(
            plan.op,
            offset,
            length,
            data if plan.op == WRITE else None,
            fua=plan.fua,
            then=self._written(self.leaf.writes),
        )

    def _wait_for_others(self, op: int, start: int, end: int) -> None:
        def in_the_way() -> bool:
            return any(
                start < other.range[1]
                and other.range[0] < end
                and (op != READ or other.req.op != READ)
                for other in self.bench.unfinished
            )

        self.bench.wait_for(lambda: not in_the_way())

    @staticmethod
    def _was_read(op: Op, expected: bytes, known: bytes) -> None:
        assert op.buf is not None
        op.req.tag = op.req.status == 0 and (
            bytes(op.buf) == expected
            or all(a == b for a, b, k in zip(op.buf, expected, known, strict=True) if k)
        )

    def _written(self, writes_before: int) -> Callable[[Op], None]:
        def done(op: Op) -> None:
            op.req.tag = op.req.status == 0
            if not (self.flushes and op.req.fua and op.req.op == WRITE and op.req.length):
                return
            first, last = op.req.offset // 512, (op.req.offset + op.req.length - 1) // 512
            for sector in range(first, last + 1):
                since = [n for n in self.leaf.stored.get(sector, ()) if n > writes_before]
                op.req.tag = op.req.tag and bool(since) and since[0] <= self.leaf.flushed

        return done

    def _flushed(self, writes_before: int) -> Callable[[Op], None]:
        def done(op: Op) -> None:
            late = self.flushes and self.leaf.flushed < writes_before
            op.req.tag = op.req.status == 0 and not late

        return done

    def check(self) -> None:
        found = self.bench.content()
        wrong = [
            at
            for at, (a, b, k) in enumerate(zip(found, self.bytes, self.known, strict=True))
            if k and a != b
        ]
        assert not wrong, f"first wrong byte at {wrong[0]} of {len(found)}"


@settings(max_examples=300)
@given(CHAINS, st.lists(PLANS, max_size=25), st.sampled_from(["late", "latefull"]), st.integers())
@example(
    [Layout(16, 8, 512, 0.0, None, 0.0, "yes")],
    [Plan(WRITE, 0, 10, False, False, 0), Plan(WRITE, 3, 10, False, False, 0)],
    "late",
    0,
)
def test_reads_see_what_was_written_in_any_chain(
    layouts: list[Layout], plans: list[Plan], handle: str, seed: int
) -> None:
    rng = random.Random(seed)
    chain = [layout.image(rng) for layout in layouts]
    parents = [image.snapshot() for image in chain[1:]]
    with bench(chain, handle, rng=rng) as disk:
        model = Model(disk, content_of(chain), chain[0], handle == "latefull")
        everything: list[Op] = []
        for plan in plans:
            model.submit(plan)
            everything += [op for op in disk.ops if op not in everything]
            for _ in range(plan.steps):
                disk.step()
        disk.drain()
        assert [op for op in everything if op.answers != 1 or not op.req.tag] == []
        model.check()
        disk.drain()
    assert [image.snapshot() for image in chain[1:]] == parents


class Moody(Filter):
    """Lets some calls wait, and some answers, and notes all."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calls: list[FilterCall] = []

    def _mood(self) -> float:
        return self.rng.choice((0.0, 0.0, 0.0, 1e-9, self.rng.random() / 1000))

    def request(self, call: FilterCall) -> None:
        self.calls.append(call)
        call.note = []
        call.go_on(after=self._mood())

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        call.note += [None] if call.op == "flush" else range(sector, sector + nb_sectors)
        call.answer(res, sector, nb_sectors, after=self._mood())

    def check(self) -> None:
        """Every call was seen once, and the answers of each of its sectors."""
        for call in self.calls:
            wanted = (
                [None] if call.op == "flush" else range(call.sector, call.sector + call.nb_sectors)
            )
            assert sorted(call.note, key=str) == sorted(wanted, key=str)


@settings(max_examples=40 * THOROUGH)
@given(
    CHAINS,
    st.lists(PLANS, max_size=20),
    st.sampled_from(["late", "latefull"]),
    st.integers(),
    st.integers(1, 3),
)
def test_filters_lose_no_call_and_no_answer(
    layouts: list[Layout], plans: list[Plan], handle: str, seed: int, depth: int
) -> None:
    rng = random.Random(seed)
    chain = [layout.image(rng) for layout in layouts]
    filters = tuple(Moody(rng) for _ in range(depth))
    with bench(chain, handle, rng=rng, filters=filters) as disk:
        model = Model(disk, content_of(chain), chain[0], handle == "latefull")
        everything: list[Op] = []
        for plan in plans:
            model.submit(plan)
            everything += [op for op in disk.ops if op not in everything]
            for _ in range(plan.steps):
                disk.step()
        disk.drain()
        assert [op for op in everything if op.answers != 1 or not op.req.tag] == []
        model.check()
        disk.drain()
    for each in filters:
        each.check()
        assert len(each.calls) == len(filters[0].calls)


@settings(max_examples=100)
@given(
    CHAINS,
    st.lists(st.tuples(PLANS, st.integers(1, 255)), min_size=2, max_size=12),
    st.integers(),
)
def test_of_writes_under_way_at_once_each_byte_has_one_that_covers_it(
    layouts: list[Layout], writes: list[tuple[Plan, int]], seed: int
) -> None:
    rng = random.Random(seed)
    chain = [layout.image(rng) for layout in layouts]
    with bench(chain, rng=rng) as disk:
        before = content_of(chain)
        allowed: list[set[int]] = [{byte} for byte in before]
        touched = bytearray(len(before))
        for plan, fill in writes:
            offset, length = plan.place(len(before))
            for at in range(offset, offset + length):
                if not touched[at]:
                    allowed[at] = set()
                    touched[at] = 1
                allowed[at].add(fill)
            disk.write(offset, bytes([fill]) * length)
            for _ in range(plan.steps):
                if rng.random() < 0.2:
                    disk.step()
        disk.drain()
        found = disk.content()
    wrong = [at for at, byte in enumerate(found) if byte not in allowed[at]]
    assert not wrong


@settings(max_examples=40)
@given(CHAINS, st.integers(), st.data())
def test_extents_of_a_chain_say_where_each_byte_comes_from(
    layouts: list[Layout], seed: int, data: st.DataObject
) -> None:
    rng = random.Random(seed)
    chain = [layout.image(rng) for layout in layouts]
    size = chain[0].size * 512
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    expected = content_of(chain)
    with bench(chain, rng=rng) as disk:
        runs = list(chain_extents(disk.state.disks, offset, length))
    at = offset
    for run in runs:
        assert run.start == at
        assert run.length > 0
        if run.kind == "zero":
            assert not any(expected[run.start : run.end])
        else:
            held = content_of(chain[run.depth :])
            assert held[run.start : run.end] == expected[run.start : run.end]
        at = run.end
    assert at == offset + length
    assert not any(a.joins(b) for a, b in itertools.pairwise(runs))
