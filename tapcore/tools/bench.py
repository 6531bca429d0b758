"""Driving an image in-process, through the engine and its driver, to see how fast it is."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from time import perf_counter_ns
from typing import Any, Final, Literal, get_args

import attrs

from tapcore.buffers import anonymous
from tapcore.disk import Disk
from tapcore.engine import READ, WRITE, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.errors import IOFailedError, UsageError
from tapcore.interface.damage import known_failure
from tapcore.tools.latency import Latencies
from tapcore.tools.progress import Progress

Pattern = Literal["read", "write", "randread", "randwrite"]
PATTERNS: Final[tuple[Pattern, ...]] = get_args(Pattern)

MAX_DEPTH: Final = 1024
MAX_MEMORY: Final = 1 << 30

_PERCENTS: Final = (50.0, 90.0, 99.0, 99.9)


@attrs.frozen
class Workload:
    """What to do.

    Attributes:
        pattern: sequential or random reads or writes.
        block_size: bytes a request.
        depth: requests in flight.
        seconds: how long at most.
        total: how many bytes at most; None for as many as the time allows.
        seed: of the random offsets.
    """

    pattern: Pattern = "randread"
    block_size: int = 4096
    depth: int = 32
    seconds: float = 5.0
    total: int | None = None
    seed: int = 0

    @property
    def writes(self) -> bool:
        """Whether it changes the image."""
        return self.pattern in ("write", "randwrite")


@attrs.frozen
class BenchResult:
    """What was measured.

    Attributes:
        workload: what was done.
        requests: finished.
        seconds: from the first request to the last answer.
        cpu_seconds: of this process in that time.
        mean: latency in µs.
        percentiles: (percent, µs).
        longest: latency in µs.
    """

    workload: Workload
    requests: int
    seconds: float
    cpu_seconds: float
    mean: float
    percentiles: tuple[tuple[float, float], ...]
    longest: float

    @property
    def iops(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second."""
        return self.iops * self.workload.block_size

    def as_dict(self) -> dict[str, Any]:
        """The object of `bench --json`; latencies and CPU time in µs."""
        latency = {f"p{percent:g}": value for percent, value in self.percentiles}
        return {
            "rw": self.workload.pattern,
            "bs": self.workload.block_size,
            "depth": self.workload.depth,
            "requests": self.requests,
            "bytes": self.requests * self.workload.block_size,
            "seconds": self.seconds,
            "iops": self.iops,
            "bytes_per_second": self.bytes_per_second,
            "cpu_us_per_request": self.cpu_seconds * 1e6 / max(self.requests, 1),
            "latency_us": {"mean": self.mean, **latency, "max": self.longest},
        }


def bench_disk(disk: Disk, workload: Workload, *, progress: Progress | None = None) -> BenchResult:
    """Drive a disk and measure.

    Writing destroys what the disk holds. Written content is random and not the same everywhere,
    so that no layer below can make it small.

    Args:
        disk: open, for writing where the workload writes.
        workload: what to do.
        progress: told the milliseconds that have passed, and those in all, now and then; what it
            raises stops the work.

    Raises:
        UsageError: the workload does not fit the disk.
        IOFailedError: a request failed.
    """
    _check(disk, workload)
    run = _Run(disk, workload, progress)
    try:
        return run.run()
    finally:
        run.drain()


def _check(disk: Disk, workload: Workload) -> None:
    image = disk.state.image.name
    if workload.block_size < 1 or workload.depth < 1:
        raise UsageError("block size and depth must be at least 1", image=image)
    if workload.depth > MAX_DEPTH:
        raise UsageError(f"a depth of more than {MAX_DEPTH} is not supported", image=image)
    if workload.block_size * workload.depth > MAX_MEMORY:
        raise UsageError("block size times depth is more than 1 GiB of memory", image=image)
    if workload.block_size > disk.size:
        raise UsageError(f"the disk ({disk.size} bytes) is smaller than a block", image=image)
    if workload.total is not None and workload.total < workload.block_size:
        raise UsageError("the size to be moved is smaller than a block", image=image)


class _Run:
    """One run: as many requests in flight as asked for, each answered one followed by another."""

    def __init__(self, disk: Disk, workload: Workload, progress: Progress | None) -> None:
        self._state = disk.state
        self._losses = disk.state.losses.count
        self._engine = engine_of(disk.state)
        self._loop = EngineLoop(self._engine)
        self._workload = workload
        self._progress = progress
        self._latencies = Latencies()
        self._free = _buffers(workload)
        self._offsets = _offsets(disk.size, workload)
        self._failed: Request | None = None

    def run(self) -> BenchResult:
        work = self._workload
        left = -1 if work.total is None else work.total // work.block_size
        started, cpu = perf_counter_ns(), os.times()
        deadline = started + int(work.seconds * 1e9)
        now = told = started
        while left and now < deadline and self._failed is None:
            left = self._fill(left)
            self._loop.run_until(self._some_finished)
            now = perf_counter_ns()
            if self._progress is not None and now - told > 50_000_000:
                told = now
                self._progress((now - started) // 1_000_000, int(work.seconds * 1000))
        self.drain()
        seconds = (perf_counter_ns() - started) / 1e9
        used = os.times()
        if self._failed is not None:
            raise self._failure(self._failed)
        return self._result(seconds, used.user + used.system - cpu.user - cpu.system)

    def _failure(self, request: Request) -> IOFailedError:
        what = "write" if self._workload.writes else "read"
        start, end, status = request.offset, request.offset + request.length, request.status
        known = known_failure(self._state, what, start, end, status, since=self._losses)
        text = f"{what} failed between {start} and {end}: {os.strerror(-status)}"
        return known or IOFailedError(text, image=self._state.image.name, errno=-status)

    def drain(self) -> None:
        """Wait for what is in flight: its memory is in use until then."""
        self._loop.finish()

    def _some_finished(self) -> bool:
        return bool(self._free)

    def _fill(self, left: int) -> int:
        """Submit with every free buffer; returns how many requests are still to come."""
        op = WRITE if self._workload.writes else READ
        size, submit, free = self._workload.block_size, self._engine.submit, self._free
        batch = len(free) if left < 0 else min(len(free), left)
        try:
            for buffer in [free.pop() for _ in range(batch)]:
                at = next(self._offsets)
                submit(Request(op, at, size, buffer, self._finished, perf_counter_ns()))
        except BaseException:
            self._loop.break_off()
            raise
        return left if left < 0 else left - batch

    def _finished(self, request: Request) -> None:
        self._latencies.add(perf_counter_ns() - request.tag)
        if request.status and self._failed is None:
            self._failed = request
        assert request.buf is not None
        self._free.append(request.buf)

    def _result(self, seconds: float, cpu_seconds: float) -> BenchResult:
        taken = self._latencies
        return BenchResult(
            workload=self._workload,
            requests=taken.count,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            mean=taken.mean / 1000,
            percentiles=tuple(
                (percent, ns / 1000)
                for percent, ns in zip(_PERCENTS, taken.percentiles(*_PERCENTS), strict=True)
            ),
            longest=taken.longest / 1000,
        )


def _buffers(workload: Workload) -> list[memoryview]:
    """One for each request in flight, page-aligned; full of random bytes where they are written."""
    size = workload.block_size
    stride = -(-size // 4096) * 4096
    memory = anonymous(stride * workload.depth)
    if workload.writes:
        for at in range(0, len(memory), 1 << 20):
            part = memory[at : at + (1 << 20)]
            part[:] = os.urandom(len(part))
    return [memory[at : at + size] for at in range(0, len(memory), stride)]


def _offsets(disk_size: int, workload: Workload) -> Iterator[int]:
    size = workload.block_size
    blocks = disk_size // size
    if workload.pattern in ("read", "write"):
        while True:
            yield from range(0, blocks * size, size)
    number = random.Random(workload.seed).random
    while True:
        yield int(number() * blocks) * size
