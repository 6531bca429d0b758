"""A virtual disk is a bytearray: the model that every driver is compared with.

`operations` draws what is done to a disk, `Model.apply` does it to both and compares.
"""

import random
import select
from collections.abc import Iterable

from hypothesis import strategies as st

import tapcore
from tapcore.engine import Engine, Request, engine_of

LARGEST = 200 << 10

_places = st.one_of(
    st.integers(0, LARGEST),
    st.integers(0, LARGEST >> 9).map(lambda n: n << 9),
    st.integers(0, LARGEST >> 12).map(lambda n: n << 12),
)
_tail = st.one_of(st.sampled_from([-513, -1025, -4097]), st.integers(-1500, -1))
"""From the end of the disk: -1 is the end itself."""
_lengths = st.one_of(st.integers(0, 1500), _places)
Operation = tuple[str, int, int, int]
operations: st.SearchStrategy[list[Operation]] = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "read", "zero", "keep", "discard", "resize", "sync"]),
        st.one_of(_places, _tail),
        _lengths,
        st.integers(0, 255),
    ),
    max_size=16,
)
contents = st.builds(
    lambda size, seed: random.Random(seed).randbytes(size),
    st.one_of(st.sampled_from([1, 511, 512, 1000, 4096, 4097, 5000, 65536]), _places),
    st.integers(0, 255),
)
"""What a file holds to begin with, in sizes that are often odd."""


def padded(content: bytes) -> bytes:
    """Up to whole sectors, as a disk shows it."""
    return content + bytes(-len(content) % 512)


class Model:
    """What the disk should hold.

    Args:
        disk: open for writing.
        content: of the whole disk.
    """

    def __init__(self, disk: tapcore.Disk, content: bytes) -> None:
        self.disk = disk
        self.data = bytearray(content)
        assert disk.size == len(content)

    def apply(self, operation: Operation) -> None:
        """Do one operation to the disk and the model."""
        kind, place, length, seed = operation
        if kind == "resize":
            size = max((place + 511) & ~511, 512)
            self.disk.resize(size)
            self.data = self.data[:size] + bytes(max(size - len(self.data), 0))
            assert self.disk.size == size
            return
        offset = place % (len(self.data) + 1)
        length = min(length, len(self.data) - offset)
        end = offset + length
        if kind == "write":
            content = random.Random(seed).randbytes(length)
            assert self.disk.pwrite(offset, content, fua=seed % 8 == 0) == length
            self.data[offset:end] = content
        elif kind == "read":
            assert self.disk.pread(offset, length=length) == self.data[offset:end]
        elif kind == "sync":
            self.disk.sync()
        elif kind == "discard":
            self.disk.discard(offset, length=length)
            self._discarded(offset, end)
        else:
            self.disk.zero(offset, length=length, unmap=kind == "zero")
            self.data[offset:end] = bytes(length)

    def _discarded(self, offset: int, end: int) -> None:
        """Each sector that lay inside is as it was, or zeroes."""
        for at in range((offset + 511) & ~511, end & ~511, 512):
            now = self.disk.pread(at, length=512)
            assert now in (bytes(512), self.data[at : at + 512])
            self.data[at : at + 512] = now

    def check(self) -> None:
        """The whole content, and that no extent calls content a hole."""
        assert self.disk.pread(0, length=len(self.data)) == self.data
        at = 0
        for run in self.disk.extents():
            assert (run.start, run.length > 0) == (at, True)
            if run.kind == "zero":
                assert not any(self.data[at : run.end])
            at = run.end
        assert at == len(self.data)


def run_all(disk: tapcore.Disk, requests: Iterable[Request]) -> None:
    """Submit all requests in one batch, and drive the disk until they are finished."""
    engine = engine_of(disk.state)
    assert engine is not None
    for request in requests:
        engine.submit(request)
    engine.turn()
    drive(engine)


def drive(engine: Engine) -> None:
    """Until nothing is in flight."""
    poll = select.poll()
    sources = {}
    for fd, dd, sid in engine.poll_fds():
        poll.register(fd, select.POLLIN)
        sources[fd] = (dd, sid)
    while engine.in_flight:
        timeout = engine.timeout
        events = poll.poll(10_000 if timeout is None else timeout * 1000)
        assert events or timeout is not None, f"{engine.in_flight} requests are lost"
        for fd, _ in events:
            engine.readable(*sources[fd])
        engine.turn()
