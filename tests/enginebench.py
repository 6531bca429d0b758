"""A disk of test drivers, requests with their outcomes, and the turns that the engine needs.

The bench is the poll loop that a front end would be: it calls `readable` for what the kernel says
is readable, `turn` after it, in an order that depends on a seed, and nothing else. Where requests
are unfinished and neither a descriptor nor `timeout` promises anything, the engine has stalled.
"""

import os
import random
import select
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from drivers.faulty import Faulty
from drivers.late import Late, LateFull, LateImage

from tapcore import DiskId, OpenOptions, Registry
from tapcore.engine import READ, WRITE, Engine, Request, engine_of
from tapcore.interface.models import TdState
from tapcore.opening.chain import close_disk, open_disk

_HOME = tempfile.TemporaryDirectory(prefix="tapcore-bench-")
"""Parents must exist as files; what is in them does not matter."""


def home(*names: str) -> Path:
    """A directory in which these (empty) files exist."""
    path = Path(_HOME.name)
    for name in names:
        (path / name).touch()
    return path


def registry() -> Registry:
    """The drivers for tests, and no other."""
    made = Registry(discover=False)
    for plugin in (Late(), LateFull(), Faulty()):
        row = made.register(plugin)
        assert not row.error, row.error
    return made


REGISTRY = registry()


def open_fds() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


@attrs.define(eq=False)
class Op:
    """A request and what came of it.

    Attributes:
        buf: where a read goes, or what a write sends.
        answers: how often `done` was called: to be 1 in the end.
    """

    req: Request
    buf: bytearray | None
    answers: int = 0

    @property
    def done(self) -> bool:
        return self.answers > 0

    @property
    def status(self) -> int:
        assert self.answers == 1, f"answered {self.answers} times"
        return self.req.status

    @property
    def range(self) -> tuple[int, int]:
        return self.req.offset, self.req.offset + self.req.length

    def overlaps(self, other: "Op") -> bool:
        (a, b), (c, d) = self.range, other.range
        return a < d and c < b


class Bench:
    """An open disk.

    Args:
        state: the disk, closed at the end.
        rng: for the order in which things happen.
    """

    def __init__(self, state: TdState, rng: random.Random) -> None:
        self.state = state
        self.engine: Engine = engine_of(state)
        self.rng = rng
        self.ops: list[Op] = []
        self._late = bool(state.disks.options.filters)  # which may hold something back
        self._poll = select.poll()
        self._sources = {}
        for fd, dd, sid in self.engine.poll_fds():
            self._poll.register(fd, select.POLLIN)
            self._sources[fd] = (dd, sid)

    def submit(
        self,
        op: int,
        offset: int = 0,
        length: int = 0,
        data: bytes | None = None,
        *,
        fua: bool = False,
        fast: bool = False,
        then: Callable[[Op], object] | None = None,
    ) -> Op:
        """Hand in a request; no turn is taken. A read's buffer is full of 0xEE before."""
        buf = bytearray(data) if data is not None else None
        if op == READ:
            buf = bytearray(b"\xee") * length
        if buf is not None:
            length = len(buf)

        def done(req: Request) -> None:
            mine.answers += 1
            if then is not None:
                then(mine)

        view = memoryview(buf) if buf is not None else None
        mine = Op(Request(op, offset, length, view, done, fua=fua), buf)
        mine.req.fast = fast
        self.ops.append(mine)
        self.engine.submit(mine.req)
        return mine

    def read(self, offset: int, length: int, **options: Any) -> Op:
        return self.submit(READ, offset, length, **options)

    def write(self, offset: int, data: bytes, **options: Any) -> Op:
        return self.submit(WRITE, offset, data=data, **options)

    @property
    def unfinished(self) -> list[Op]:
        self.ops = [op for op in self.ops if not op.done]
        return self.ops

    def ready(self) -> list[tuple[Any, int]]:
        """Images whose descriptor is readable now, in random order."""
        found = [self._sources[fd] for fd, _ in self._poll.poll(0)]
        self.rng.shuffle(found)
        return found

    def step(self) -> None:
        """One batch of a poll loop: some of what is readable, then a turn."""
        ready = self.ready()
        for dd, sid in ready[: self.rng.randint(1, len(ready))] if ready else ():
            self.engine.readable(dd, sid)
        self.engine.turn()
        if ready or self.ready():
            return
        timeout = self.engine.timeout
        wait = 2000 if timeout is None else min(timeout * 1000 + 1, 2000)
        if self._late and self.engine.in_flight and self._poll.poll(wait):
            return
        if timeout:
            assert timeout < 1, "nothing but a distant time can help"
            time.sleep(timeout)
        elif timeout is None and self.engine.in_flight:
            raise AssertionError(f"stalled with {self.engine.in_flight} requests in flight")

    def drain(self, turns: int = 20_000) -> None:
        """Until nothing is in flight."""
        for _ in range(turns):
            if not self.engine.in_flight:
                break
            self.step()
        assert self.engine.in_flight == 0, "not drained in a bounded number of turns"
        assert not self.unfinished

    def wait_for(self, wanted: Callable[[], object], turns: int = 20_000) -> None:
        """Until something holds."""
        for _ in range(turns):
            if wanted():
                return
            self.step()
        raise AssertionError("did not come about in a bounded number of turns")

    def run(self, op: int, offset: int = 0, length: int = 0, data: bytes | None = None) -> Op:
        """One request, to its end."""
        mine = self.submit(op, offset, length, data)
        self.drain()
        return mine

    def content(self) -> bytes:
        """The whole disk, read in one request."""
        op = self.read(0, self.engine.size)
        self.drain()
        assert op.status == 0
        assert op.buf is not None
        return bytes(op.buf)


@contextmanager
def bench(
    images: Sequence[Any] | Mapping[str, Any],
    handle: str = "late",
    *,
    rng: random.Random | None = None,
    flags: int = 0,
    copy_on_read: bool = False,
    filters: tuple[Any, ...] = (),
) -> Iterator[Bench]:
    """Open a chain of images, the child first; look at the end that the drivers saw no wrong.

    Args:
        images: the chain, linked here where they are late images.
        handle: driver of all of them.
        rng: for the order of events; a fixed one without.
        flags: of the child.
        copy_on_read: as of `tapcore.open`.
        filters: as of `tapcore.open`.
    """
    names = [f"image{n}" for n in range(len(images))]
    chain = list(images.values()) if isinstance(images, Mapping) else list(images)
    for image, parent in zip(chain, names[1:], strict=False):
        if isinstance(image, LateImage):
            image.parent = DiskId(parent, handle)
    path = home(*names)
    private = {"images": dict(zip(names, chain, strict=True))}
    options = OpenOptions(private=private, filters=filters)
    state = open_disk(DiskId(str(path / "image0"), handle), REGISTRY, flags=flags, options=options)
    if copy_on_read:
        engine_of(state).enable_copy_on_read()
    before = [image.closes for image in chain]
    try:
        yield Bench(state, rng or random.Random(0))
    finally:
        close_disk(state)
    assert [image.closes - n for image, n in zip(chain, before, strict=True)] == [1] * len(chain)
    for image in chain:
        assert image.violations == []


def content_of(chain: Sequence[LateImage]) -> bytearray:
    """What a chain of late images, child first, reads as."""
    below = bytearray()
    for image in reversed(chain):
        below = image.content(bytes(below))
    return below
