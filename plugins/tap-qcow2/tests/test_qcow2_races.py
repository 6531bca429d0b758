"""Requests that overlap in time: what waits for a slow disk must not meet what came meanwhile."""

import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import nbd_client
import pytest
from served import served

import tapcore
from diskmodel import drive
from qcow2tools import MIB, assert_clean, content_by_qemu, create, source_content
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, ZERO, Request
from tapcore.files.imagefile import ImageFile

SECTOR = 512
CLUSTER = 65536


@contextmanager
def slow_disk(wait: Callable[[str, memoryview], None]) -> Iterator[None]:
    """Nothing is answered at once; `wait` is called in the thread that reads or writes."""
    read, write, metadata = (
        ImageFile.read_blocking,
        ImageFile.write_blocking,
        ImageFile.read_metadata,
    )

    def slow_read(self: ImageFile, offset: int, buf: memoryview) -> int:
        res = read(self, offset, buf)
        wait("read", buf)
        return res

    def slow_write(self: ImageFile, offset: int, buf: memoryview) -> int:
        wait("write", buf)
        return write(self, offset, buf)

    def slow_metadata(self: ImageFile, offset: int, length: int) -> bytes:
        wait("metadata", memoryview(b""))
        return metadata(self, offset, length)

    def never(self: ImageFile, *_: Any) -> None:
        return None

    with (
        patch.object(ImageFile, "read_blocking", slow_read),
        patch.object(ImageFile, "write_blocking", slow_write),
        patch.object(ImageFile, "read_metadata", slow_metadata),
        patch.object(ImageFile, "read_now", never),
        patch.object(ImageFile, "write_now", never),
        patch.object(ImageFile, "metadata_now", never),
    ):
        yield


@attrs.define
class Gate:
    """Holds one operation back, until it is opened or (so that nothing hangs) after a while."""

    kind: str
    opened: threading.Event = attrs.field(factory=threading.Event)
    reached: threading.Event = attrs.field(factory=threading.Event)

    def wait(self, kind: str, buf: memoryview) -> None:
        if kind == self.kind and len(buf) and bytes(buf[:1]) == b"S":
            self.reached.set()
            self.opened.wait(3.0)


def submit(disk: tapcore.Disk, op: int, at: int, length: int, buf: Any = None) -> Request:
    """Start a request; `request.tag` becomes True when it is finished."""

    def done(request: Request) -> None:
        request.tag = True

    view = None if buf is None else memoryview(buf)
    request = Request(op, at, length, view, done)
    engine = disk.state.blkif
    assert engine is not None
    engine.submit(request)  # type: ignore[attr-defined]
    engine.turn()  # type: ignore[attr-defined]
    return request


@pytest.mark.parametrize("how", ["discard", "zero", "again"])
def test_a_slow_write_does_not_land_in_a_cluster_that_is_anothers_by_then(
    how: str, tmp_path: Path
) -> None:
    """Its cluster is discarded, flushed and written for another place while it waits."""
    image = create(tmp_path / "disk.qcow2", 2 * MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * CLUSTER)
    gate = Gate("write")
    with slow_disk(gate.wait), tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(5 * CLUSTER, b"x" * 512)
        slow = submit(disk, WRITE, 0, CLUSTER, b"S" * CLUSTER)
        assert gate.reached.wait(3)
        if how == "discard":
            submit(disk, DISCARD, 0, CLUSTER)
        else:
            submit(disk, ZERO, 0, CLUSTER)
        if how == "again":
            submit(disk, WRITE, 0, CLUSTER, b"n" * CLUSTER)
        for _ in range(3):
            disk.sync()
        others = [submit(disk, WRITE, n * CLUSTER, CLUSTER, b"b" * CLUSTER) for n in (1, 2, 3)]
        for _ in range(2):
            disk.sync()
        gate.opened.set()
        drive(disk.state.blkif)  # type: ignore[arg-type]
        assert slow.tag
        assert all(other.tag for other in others)
        for n in (1, 2, 3):
            assert disk.pread(n * CLUSTER, length=CLUSTER) == b"b" * CLUSTER
    assert_clean(image)
    content = content_by_qemu(image)
    assert content[CLUSTER : 4 * CLUSTER] == b"b" * (3 * CLUSTER)
    assert len(set(content[:CLUSTER])) == 1


def test_a_slow_read_does_not_return_what_another_wrote(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 2 * MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * CLUSTER)
    started, go_on = threading.Event(), threading.Event()
    real = ImageFile.read_blocking

    def late(self: ImageFile, offset: int, buf: memoryview) -> int:
        if len(buf) == CLUSTER:
            started.set()
            go_on.wait(3)
        return real(self, offset, buf)

    with (
        slow_disk(lambda kind, buf: None),
        patch.object(ImageFile, "read_blocking", late),
        tapcore.open(f"qcow2:{image}", readonly=False) as disk,
    ):
        disk.pread(0, length=512)  # the table is in memory from here on
        got = bytearray(CLUSTER)
        slow = submit(disk, READ, 0, CLUSTER, got)
        assert started.wait(3)
        submit(disk, DISCARD, 0, CLUSTER)
        for _ in range(3):
            disk.sync()
        for n in (1, 2, 3):
            submit(disk, WRITE, n * CLUSTER, CLUSTER, b"b" * CLUSTER)
        disk.sync()
        go_on.set()
        drive(disk.state.blkif)  # type: ignore[arg-type]
        assert slow.tag
        assert bytes(got) in (b"a" * CLUSTER, bytes(CLUSTER))
    assert_clean(image)


def test_a_slow_client_does_not_get_what_another_wrote(tmp_path: Path) -> None:
    """Its replies wait as places in the image file, which may be given out again meanwhile."""
    image = create(tmp_path / "disk.qcow2", 64 * MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * (8 * MIB))
    with (
        served(f"qcow2:{image}", "--socket", tmp_path / "socket") as server,
        server.client() as slow,
        server.client() as other,
    ):
        cookies = [slow.send(nbd_client.READ, n * MIB, MIB) for n in range(8)]
        assert slow.sock.recv(1, socket.MSG_PEEK)  # they are under way
        other.call(nbd_client.TRIM, 0, 8 * MIB)
        for _ in range(2):
            other.flush()
        other.write(32 * MIB, b"b" * (8 * MIB))
        other.flush()
        for n, cookie in enumerate(cookies):
            assert set(slow.answer(cookie).content(n * MIB, MIB)) <= {0, ord("a")}
        assert set(slow.read(0, MIB)) == {0}


# ---- many at once -------------------------------------------------------------------------------


@attrs.define(eq=False)
class Change:
    """A write, zeroing or discard: what its sectors may hold, and when that was."""

    content: bytes
    began: int
    done: int = 1 << 62


@attrs.define(slots=False)
class Crowd:
    """Requests that overlap in place and time, and what each sector may hold at any moment."""

    disk: tapcore.Disk
    rng: random.Random
    span: int
    below: bytes
    clock: int = 0
    history: dict[int, list[Change]] = attrs.field(factory=dict)
    reads: list[tuple[int, int, int, bytearray]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        content = self.disk.pread(0, length=self.span)
        for n in range(self.span // SECTOR):
            self.history[n] = [Change(content[n * SECTOR : (n + 1) * SECTOR], -1, -1)]

    def now(self) -> int:
        self.clock += 1
        return self.clock

    def run(self, count: int, most: int) -> None:
        """So many requests, at most so many at once."""
        engine: Any = self.disk.state.blkif
        for number in range(count):
            engine.submit(self._request())
            if number % self.rng.choice((1, 3, 7)) == 0:
                engine.turn()
            while engine.in_flight >= most:
                engine.turn()
                self._poll(engine)
        engine.turn()
        drive(engine)

    @staticmethod
    def _poll(engine: Any) -> None:
        poll = select.poll()
        sources = {}
        for fd, dd, sid in engine.poll_fds():
            poll.register(fd, select.POLLIN)
            sources[fd] = (dd, sid)
        for fd, _ in poll.poll(100):
            engine.readable(*sources[fd])

    def _request(self) -> Request:
        op = self.rng.choice((WRITE, WRITE, WRITE, READ, READ, ZERO, DISCARD, FLUSH))
        if op == FLUSH:
            return Request(FLUSH, 0, 0, None, lambda request: self._finished(request, []))
        sectors = self.span // SECTOR
        first = self.rng.randrange(sectors)
        count = min(self.rng.choice((1, 3, 8, 50, 200)), sectors - first)
        length = count * SECTOR
        began = self.now()
        if op == READ:
            buf = bytearray(b"?" * length)
            return Request(
                READ,
                first * SECTOR,
                length,
                memoryview(buf),
                lambda request: self._read(request, began, buf),
            )
        content = self.rng.randbytes(length) if op == WRITE else bytes(length)
        changes = []
        for n in range(count):
            change = Change(content[n * SECTOR : (n + 1) * SECTOR], began)
            self.history[first + n].append(change)
            changes.append(change)
            if op == DISCARD:  # or as before, or as below: such a change never supersedes anything
                start = (first + n) * SECTOR
                change.began = -2
                self.history[first + n].append(Change(self.below[start : start + SECTOR], -2))
        view = memoryview(bytearray(content)) if op == WRITE else None
        request = Request(
            op, first * SECTOR, length, view, lambda request: self._finished(request, changes)
        )
        request.may_unmap = self.rng.random() < 0.5
        return request

    def _finished(self, request: Request, changes: list[Change]) -> None:
        assert request.status == 0, request.status
        moment = self.now()
        for change in changes:
            if change.began >= 0:
                change.done = moment

    def _read(self, request: Request, began: int, buf: bytearray) -> None:
        assert request.status == 0, request.status
        moment = self.now()
        for n in range(request.nb_sectors):
            got = bytes(buf[n * SECTOR : (n + 1) * SECTOR])
            self.judge(request.sector + n, got, began, moment)

    def judge(self, sector: int, got: bytes, began: int, done: int) -> None:
        """A read between two moments: what was there before, or came meanwhile; nothing older."""
        changes = self.history[sector]
        latest = max(change.began for change in changes if change.done < began)
        allowed = [c.content for c in changes if c.done >= latest and c.began < done]
        assert got in allowed, f"sector {sector} reads {got[:8].hex()}"

    def check(self, content: bytes) -> None:
        """All is finished: what the disk holds in the end."""
        for sector in self.history:
            got = content[sector * SECTOR : (sector + 1) * SECTOR]
            self.judge(sector, got, self.now(), self.now())


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "512": {"cluster_size": 512},
    "4096": {"cluster_size": 4096},
    "extended": {"extended_l2": "on", "cluster_size": 16384},
    "v2": {"compat": "0.10", "cluster_size": 4096},
    "lazy": {"lazy_refcounts": "on", "cluster_size": 4096},
    "data-file": {"data_file": "disk.data", "cluster_size": 8192},
}


@pytest.mark.parametrize(
    ("kind", "parent"),
    [*((kind, False) for kind in KINDS), *((kind, True) for kind in KINDS if kind != "data-file")],
)
def test_a_crowd_of_requests_on_a_slow_disk(
    kind: str, parent: bool, tmp_path: Path, rng: random.Random
) -> None:
    """Each reads what was there or came meanwhile, and nothing of another place or time."""
    span = 1 << 19
    below = bytes(span)
    options = dict(KINDS[kind])
    if parent:
        below = source_content(rng, span)
        (tmp_path / "parent.raw").write_bytes(below)
        image = create(tmp_path / "disk.qcow2", MIB, parent="parent.raw", form="raw", **options)
    else:
        image = create(tmp_path / "disk.qcow2", MIB, **options)
    delays = random.Random(rng.random())

    def wait(kind: str, buf: memoryview) -> None:
        time.sleep(delays.choice((0, 0, 0.0005, 0.002)))

    with (
        slow_disk(wait),
        tapcore.open(f"qcow2:{image}", metadata_cache=1024, readonly=False) as disk,
    ):
        crowd = Crowd(disk, rng, span, below)
        crowd.run(250, 16)
        content = disk.pread(0, length=span)
    crowd.check(content)
    assert_clean(image)
    assert content_by_qemu(image)[:span] == content


@pytest.mark.parametrize("kind", ["default", "4096", "extended"])
def test_a_crowd_of_requests_past_the_page_cache(
    kind: str, tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, **KINDS[kind])
    span = 1 << 19
    with tapcore.open(f"qcow2:{image}", cache="none", readonly=False) as disk:
        crowd = Crowd(disk, rng, span, bytes(span))
        crowd.run(400, 32)
        content = disk.pread(0, length=span)
    crowd.check(content)
    assert_clean(image)
    assert content_by_qemu(image)[:span] == content
