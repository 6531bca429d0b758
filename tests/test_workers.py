"""What would block the loop goes to threads: reads of cold files, writes that the kernel slows."""

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapcore
from diskmodel import drive, run_all
from tapcore.engine import FLUSH, READ, WRITE, Request, engine_of
from tapcore.files import imagefile
from tapcore.files.imagefile import ImageFile
from tapcore.interface.options import CacheMode
from tapcore.process import workers
from tapcore.process.workers import Completions, Lane, WorkerPool

WAIT = 10


@pytest.fixture
def completions() -> Iterator[Completions]:
    found = Completions()
    yield found
    found.close()


def reaped(completions: Completions, count: int) -> list[tuple[int, object]]:
    """The next `count` results."""
    os.set_blocking(completions.eventfd, True)
    found: list[tuple[int, object]] = []
    while len(found) < count:
        os.eventfd_read(completions.eventfd)
        found += completions.take()
    return found


def cold_file(path: Path, content: bytes) -> None:
    """A file whose content is on disk and not in the page cache."""
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    finally:
        os.close(fd)


def test_reads_that_the_page_cache_cannot_answer_go_to_threads(
    tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "cold.img"
    content = rng.randbytes(4 << 20)
    cold_file(path, content)
    with tapcore.open(f"aio:{path}", readonly=True) as disk:
        engine = engine_of(disk.state)
        file = disk.state.disks.private
        done: list[Request] = []
        order = list(range(64))
        rng.shuffle(order)
        for n in order:
            buf = memoryview(bytearray(64 << 10))
            engine.submit(Request(READ, n << 16, 64 << 10, buf, done.append))
        engine.turn()
        assert file.in_flight, "nothing was cold"
        drive(engine)
        assert file.in_flight == 0
        assert len(done) == 64
        for request in done:
            end = request.offset + request.length
            assert (request.status, request.buf) == (0, content[request.offset : end])
        engine.submit(Request(READ, 0, 4096, memoryview(bytearray(4096)), done.append))
        assert len(done) == 65  # warm now: answered at once


def test_the_loop_is_not_blocked_while_threads_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that takes its time holds up no read."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"r" * 4096)
    release = threading.Event()
    real = os.fdatasync

    def slow(fd: int) -> None:
        assert release.wait(WAIT)
        real(fd)

    with tapcore.open(f"aio:{path}", readonly=False) as disk:
        monkeypatch.setattr(os, "fdatasync", slow)
        engine = engine_of(disk.state)
        done: list[Request] = []
        engine.submit(Request(FLUSH, 0, 0, None, done.append))
        buf = memoryview(bytearray(4096))
        engine.submit(Request(READ, 0, 4096, buf, done.append))
        engine.turn()
        assert [r.op for r in done] == [READ]
        release.set()
        drive(engine)
        assert [(r.op, r.status) for r in done] == [(READ, 0), (FLUSH, 0)]


def test_a_writer_that_the_kernel_slows_writes_by_threads_until_they_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    path = tmp_path / "disk.img"
    content = bytearray(1 << 20)
    path.write_bytes(content)
    ticks = iter(range(1 << 30))
    with tapcore.open(f"aio:{path}", readonly=False) as disk:
        engine = engine_of(disk.state)
        file: ImageFile = disk.state.disks.private
        with monkeypatch.context() as patch:
            patch.setattr(imagefile, "monotonic", lambda: float(next(ticks)))
            patch.setattr(imagefile, "times_waited", lambda: 1)
            done: list[Request] = []
            for at in (0, 4096):  # slow, for want of a processor
                new = content[at : at + 4096] = rng.randbytes(4096)
                run_all(disk, [Request(WRITE, at, 4096, memoryview(new), done.append)])
                assert not file._throttled
            patch.setattr(imagefile, "times_waited", lambda: next(ticks))
            new = content[:4096] = rng.randbytes(4096)
            run_all(disk, [Request(WRITE, 0, 4096, memoryview(new), done.append)])
            assert file._throttled
            for n in range(1, 32):
                new = rng.randbytes(4096)
                at = n * 20_480
                content[at : at + 4096] = new
                engine.submit(Request(WRITE, at, 4096, memoryview(new), done.append))
            engine.turn()
            assert file.in_flight == 31
            drive(engine)
        assert not file._throttled
        assert [r.status for r in done] == [0] * 34
        assert disk.pread(0, length=disk.size) == content


def test_close_waits_for_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a server stops with requests in flight: they are answered, and stored."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    disk = tapcore.open(f"aio:{path}", readonly=False)
    state, engine = disk.state, engine_of(disk.state)
    state.disks.private._throttled = True
    done: list[Request] = []
    for n in range(64):
        buf = memoryview(bytes([n + 1]) * 4096)
        engine.submit(Request(WRITE, n << 12, 4096, buf, done.append))
    engine.turn()
    state.disks.drv.td_close(state.disks)
    assert (len(done), engine.in_flight) == (64, 0)
    assert path.read_bytes()[: 64 << 12] == b"".join(bytes([n + 1]) * 4096 for n in range(64))
    monkeypatch.setattr(type(disk), "close", lambda self: None)  # closed by hand


def test_a_read_beside_a_write_that_fills_up_the_tail_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file grows between the read that found its end and the look at its size."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 700)
    fd = os.open(path, os.O_RDWR)
    file = ImageFile(fd, str(path), read_only=False)
    real = os.preadv

    def preadv(*args: object) -> int:
        count = real(*args)  # type: ignore[arg-type]
        if count == 0:
            assert file.write_blocking(512, memoryview(b"y" * 512)) == 0
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    buf = memoryview(bytearray(512))
    assert file.read_blocking(512, buf) == 0
    assert buf[:188] in (b"x" * 188, b"y" * 188)
    file.close()


def test_work_behind_a_slow_task_gets_a_thread_of_its_own(completions: Completions) -> None:
    pool = WorkerPool()
    pool.put(int, (), completions, "first")  # from now on there is a thread
    assert reaped(completions, 1) == [(0, "first")]
    for _ in range(200):
        block = threading.Event()
        pool.put(lambda event: int(not event.wait(WAIT)), (block,), completions, "slow")
        pool.put(int, (), completions, "quick")
        try:
            assert reaped(completions, 1) == [(0, "quick")]
        finally:
            block.set()
        assert reaped(completions, 1) == [(0, "slow")]


@pytest.mark.parametrize("within", [None, Lane(4)])
def test_a_lane_is_bounded_and_runs_everything(
    within: Lane | None, completions: Completions
) -> None:
    lane = Lane(3, within)
    now: set[int] = set()
    most = []

    def work(n: int) -> int:
        now.add(n)
        most.append(len(now))
        now.discard(n)
        return -n

    for n in range(500):
        lane.put(work, (n,), completions, n)
    assert sorted(reaped(completions, 500)) == sorted((-n, n) for n in range(500))
    assert max(most) <= 3


def test_threads_that_nobody_needs_any_more_end(completions: Completions) -> None:
    """But for a few, which are kept for the next work."""
    pool = WorkerPool()
    together = threading.Barrier(40)
    before = set(threading.enumerate())
    for n in range(40):
        pool.put(lambda: int(together.wait(WAIT) < 0), (), completions, n)
    assert len(reaped(completions, 40)) == 40
    kept = [thread for thread in threading.enumerate() if thread not in before]
    while len(kept) > workers._IDLE_THREADS:  # their last steps are not ours to see
        kept = [thread for thread in kept if thread.is_alive()]
    pool.put(int, (), completions, "next")
    assert reaped(completions, 1) == [(0, "next")]
    assert set(threading.enumerate()) - before == set(kept)


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_disk_that_never_answers_keeps_no_other_waiting(
    cache: CacheMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(64 << 10))
    release = threading.Event()
    real = os.fdatasync
    with (
        tapcore.open(f"aio:{tmp_path / 'a'}", cache=cache, readonly=False) as dead,
        tapcore.open(f"aio:{tmp_path / 'b'}", cache=cache, readonly=False) as other,
    ):
        fd = dead.state.disks.private.fd

        def late(which: int) -> None:
            assert which != fd or release.wait(WAIT)
            real(which)

        monkeypatch.setattr(os, "fdatasync", late)
        done: list[Request] = []
        engine = engine_of(dead.state)
        for _ in range(100):
            engine.submit(Request(FLUSH, 0, 0, None, done.append))
        engine.turn()
        other.pwrite(0, b"o" * 4096)
        other.sync()
        other.discard(0, length=4096)
        assert other.pread(0, length=512) == bytes(512)
        assert not done
        release.set()
        drive(engine)
        assert [request.status for request in done] == [0] * 100


def test_the_images_of_a_chain_share_its_threads(tmp_path: Path) -> None:
    tapcore.create_image(f"qcow2:{tmp_path / 'p'}", 1 << 20)
    tapcore.create_image(f"qcow2:{tmp_path / 'c'}", None, parent=f"qcow2:{tmp_path / 'p'}")
    with (
        tapcore.open(f"qcow2:{tmp_path / 'c'}", readonly=True) as one,
        tapcore.open(f"qcow2:{tmp_path / 'c'}", readonly=True) as two,
    ):
        lanes = [
            {id(dd.options.workers) for dd in (disk.state.disks, disk.state.disks.next) if dd}
            for disk in (one, two)
        ]
    assert [len(lane) for lane in lanes] == [1, 1]
    assert lanes[0] != lanes[1]


def test_an_exception_in_a_thread_becomes_an_errno_and_the_thread_lives(
    completions: Completions,
) -> None:
    pool = Lane(1)

    def fails(exc: Exception) -> int:
        raise exc

    pool.put(fails, (OSError(errno.ENOLINK, ""),), completions, 1)
    pool.put(fails, (ValueError("a bug"),), completions, 2)
    pool.put(fails, (MemoryError(),), completions, 3)
    pool.put(int, (), completions, 4)
    assert reaped(completions, 4) == [
        (-errno.ENOLINK, 1),
        (-errno.EIO, 2),
        (-errno.ENOMEM, 3),
        (0, 4),
    ]


def test_the_eventfd_is_not_closed_before_the_last_worker_has_written_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its result is taken, so nothing is in flight; the descriptor's number must stay its own."""
    found = Completions()
    entered, go, written = threading.Event(), threading.Event(), threading.Event()
    errors: list[OSError] = []
    real = os.eventfd_write

    def write(fd: int, value: int) -> None:
        entered.set()
        assert go.wait(WAIT)
        try:
            real(fd, value)
        except OSError as exc:
            errors.append(exc)
        written.set()

    monkeypatch.setattr(os, "eventfd_write", write)
    WorkerPool().put(int, (), found, "last")
    assert entered.wait(WAIT)
    assert found.take() == [(0, "last")]
    closer = threading.Thread(target=found.close)
    closer.start()
    closer.join(0.05)
    go.set()
    closer.join(WAIT)
    assert written.wait(WAIT)
    assert not closer.is_alive()
    assert errors == []


def test_no_thread_can_be_started(
    completions: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread the pool goes on; with none the work is refused, not half taken."""

    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = WorkerPool()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        with pytest.raises(OSError, match="thread") as caught:
            pool.put(int, (), completions, "refused")
        assert caught.value.errno == errno.EAGAIN
    pool.put(int, (), completions, "one")
    assert reaped(completions, 1) == [(0, "one")]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        for n in range(20):
            pool.put(int, (), completions, n)
        assert sorted(reaped(completions, 20)) == [(0, n) for n in range(20)]


def test_a_forked_child_gets_threads_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    program = f"""
import os, tapcore

def use(content):
    with tapcore.open("aio:{path}", readonly=False) as disk:
        disk.pwrite(0, content * 512)
        disk.sync()  # by a thread
        assert disk.pread(0, length=512) == content * 512

use(b"p")
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
    use(b"q")
else:
    use(b"c")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_program_that_forgets_to_close_still_ends(cache: str, tmp_path: Path) -> None:
    """At the end of the interpreter the threads no longer run; the disk is closed all the same."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    program = f"""
import tapcore
disk = tapcore.open("aio:{path}", cache="{cache}", readonly=False)
disk.pwrite(0, b"n" * 512)
disk.sync()
disk.pwrite(512, b"m" * 512)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes() == b"n" * 512 + b"m" * 512 + bytes(3072)


def test_a_program_that_ends_in_the_middle_of_a_call_still_ends(tmp_path: Path) -> None:
    """As after Ctrl-C in a flush: what a thread has begun is waited for."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    program = f"""
import os, time, tapcore
from tapcore.engine import FLUSH, Request
real = os.fdatasync
def slow(fd):
    time.sleep(0.2)
    real(fd)
os.fdatasync = slow
disk = tapcore.open("aio:{path}", readonly=False)
disk.pwrite(0, b"n" * 512)
disk.state.blkif.submit(Request(FLUSH, 0, 0, None, lambda req: None))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes() == b"n" * 512 + bytes(3584)
