"""Linux AIO: batches, a queue that is full, a kernel that takes a part, and what is missing."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tapcore
from diskmodel import drive, run_all
from tap_aio.engine import LibaioEngine
from tapcore.engine import FLUSH, READ, WRITE, Request, engine_of
from tapcore.files import direct
from tapcore.files.direct import DirectFile


@pytest.fixture
def disk(tmp_path: Path, rng: random.Random) -> Iterator[tapcore.Disk]:
    """Of 4 MiB, with random content."""
    path = tmp_path / "disk.img"
    path.write_bytes(rng.randbytes(4 << 20))
    with tapcore.open(f"aio:{path}", cache="none", readonly=False) as found:
        yield found


def content_of(disk: tapcore.Disk) -> bytes:
    return Path(disk.name.removeprefix("aio:")).read_bytes()


def file_of(disk: tapcore.Disk) -> DirectFile:
    file: DirectFile = disk.state.disks.private
    return file


class Kernel:
    """Stands between the engine and libaio.

    Attributes:
        calls: how many operations each io_submit was given.
    """

    def __init__(self, lib: Any, submit: Callable[[int], int]) -> None:
        self._lib = lib
        self._submit = submit
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def io_submit(self, context: Any, count: int, iocbs: Any) -> int:
        self.calls.append(count)
        allowed = self._submit(count)
        if allowed < 0:
            raise OSError(-allowed, "io_submit")
        done: int = self._lib.io_submit(context, min(count, allowed), iocbs)
        return done


def between(disk: tapcore.Disk, submit: Callable[[int], int]) -> Kernel:
    engine: Any = file_of(disk)._io
    kernel = Kernel(engine._lib, submit)
    engine._lib = kernel
    return kernel


def reads(
    disk: tapcore.Disk, count: int, done: list[Request], size: int | None = None
) -> list[Request]:
    size = size or disk.size // count & ~511
    return [
        Request(READ, n * size, size, memoryview(bytearray(size)), done.append)
        for n in range(count)
    ]


def check_reads(disk: tapcore.Disk, done: list[Request]) -> None:
    content = content_of(disk)
    for request in done:
        assert request.status == 0
        end = request.offset + request.length
        assert bytes(request.buf or b"") == content[request.offset : end]


def test_a_batch_is_one_call(disk: tapcore.Disk) -> None:
    kernel = between(disk, lambda count: count)
    done: list[Request] = []
    run_all(disk, reads(disk, 24, done, size=512))
    assert (kernel.calls, len(done)) == ([24], 24)
    check_reads(disk, done)


def test_a_large_batch_is_begun_before_it_is_complete(disk: tapcore.Disk) -> None:
    kernel = between(disk, lambda count: count)
    done: list[Request] = []
    run_all(disk, reads(disk, 20, done, size=4096))
    assert (kernel.calls, len(done)) == ([8, 8, 4], 20)
    check_reads(disk, done)


def test_what_is_refused_before_the_batch_is_complete_is_answered(disk: tapcore.Disk) -> None:
    between(disk, lambda count: -errno.EBADF)
    done: list[Request] = []
    run_all(disk, reads(disk, 20, done, size=4096))
    assert [req.status for req in done] == [-errno.EBADF] * 20


@pytest.mark.parametrize("depth", [1, 4, 256])
def test_more_requests_than_the_queue_holds_come_again(
    depth: int, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep.img"
    content = bytearray(rng.randbytes(2 << 20))
    path.write_bytes(content)
    monkeypatch.setattr(direct, "QUEUE_DEPTH", depth)
    with tapcore.open(f"aio:{path}", cache="none", readonly=False) as disk:
        refused = 0
        real = DirectFile.queue_read

        def counting(self: DirectFile, *args: Any) -> int:
            nonlocal refused
            res = real(self, *args)
            refused += res == -errno.EBUSY
            assert res in (0, -errno.EBUSY)
            return res

        monkeypatch.setattr(DirectFile, "queue_read", counting)
        done: list[Request] = []
        run_all(disk, reads(disk, 600, done))
        assert refused
        assert len(done) == 600
        check_reads(disk, done)

        requests = []
        for n in range(600):
            new = memoryview(bytearray(rng.randbytes(1024)))
            content[n * 2048 : n * 2048 + 1024] = new
            requests.append(Request(WRITE, n * 2048, 1024, new, done.append))
        run_all(disk, requests)
        assert [r.status for r in done] == [0] * 1200
        assert file_of(disk).in_flight == 0
    assert path.read_bytes() == content


def test_a_kernel_that_takes_one_at_a_time_gets_the_rest_again(disk: tapcore.Disk) -> None:
    kernel = between(disk, lambda count: 1)
    done: list[Request] = []
    run_all(disk, reads(disk, 20, done, size=512))
    assert kernel.calls == list(range(20, 0, -1))
    assert len(done) == 20
    check_reads(disk, done)


def test_what_the_kernel_could_not_take_yet_is_submitted_when_something_finishes(
    disk: tapcore.Disk,
) -> None:
    engine: Any = file_of(disk)._io

    def room(count: int) -> int:
        under_way = engine._depth - engine.free - len(engine._queued)
        return 3 - under_way if under_way < 3 else -errno.EAGAIN

    between(disk, room)
    done: list[Request] = []
    run_all(disk, reads(disk, 20, done))
    assert len(done) == 20
    check_reads(disk, done)


def test_close_submits_what_the_kernel_had_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 << 10))
    disk = tapcore.open(f"aio:{path}", cache="none", readonly=False)
    engine: Any = file_of(disk)._io
    between(
        disk,
        lambda count: -errno.EAGAIN if engine._depth - engine.free > len(engine._queued) else 1,
    )
    done: list[Request] = []
    for n in range(8):
        buf = memoryview(bytearray(b"w" * 4096))
        engine_of(disk.state).submit(Request(WRITE, n << 12, 4096, buf, done.append))
    engine_of(disk.state).turn()
    file = file_of(disk)
    file.drain()
    assert (len(done), file.in_flight) == (8, 0)
    disk.close()
    assert path.read_bytes() == b"w" * (32 << 10) + bytes(32 << 10)


def test_an_operation_that_the_kernel_refuses_fails_alone(disk: tapcore.Disk) -> None:
    calls = 0

    def second_is_bad(count: int) -> int:
        nonlocal calls
        calls += 1
        return {1: 1, 2: -errno.EINVAL}.get(calls, count)

    between(disk, second_is_bad)
    done: list[Request] = []
    run_all(disk, reads(disk, 8, done))
    bad = [r for r in done if r.status]
    assert [(r.offset, r.status) for r in bad] == [(512 << 10, -errno.EINVAL)]
    assert len(done) == 8
    assert file_of(disk)._io.free == direct.QUEUE_DEPTH


def test_what_found_no_room_is_answered_though_the_kernel_refuses_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is under way then, whose end could make anybody look again."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(direct, "QUEUE_DEPTH", 4)
    with tapcore.open(f"aio:{path}", cache="none", readonly=False) as disk:
        file_of(disk).keeps_overflow = True
        between(disk, lambda count: -errno.EBADF)
        done: list[Request] = []
        for request in reads(disk, 30, done, size=512):
            engine_of(disk.state).submit(request)
        engine_of(disk.state).turn()
        assert [req.status for req in done] == [-errno.EBADF] * 30


def test_a_signal_while_reaping_loses_nothing(disk: tapcore.Disk) -> None:
    """io_getevents gives EINTR when it found nothing and a signal came; threads answer too."""
    file = file_of(disk)
    engine: Any = file._io

    class Interrupted:
        def __init__(self, lib: Any) -> None:
            self.lib, self.times = lib, 1

        def __getattr__(self, name: str) -> Any:
            return getattr(self.lib, name)

        def io_getevents(self, *args: Any) -> Any:
            if self.times:
                self.times -= 1
                raise OSError(errno.EINTR, "io_getevents")
            return self.lib.io_getevents(*args)

    engine._lib = Interrupted(engine._lib)
    done: list[Request] = []
    run_all(disk, [Request(FLUSH, 0, 0, None, done.append)])
    assert (len(done), done[0].status, engine._lib.times) == (1, 0, 0)


def test_flushes_discards_and_zeroes_run_beside_reads(disk: tapcore.Disk) -> None:
    done: list[Request] = []
    requests = reads(disk, 32, done)
    for n in range(8):
        requests.insert(n * 4, Request(FLUSH, 0, 0, None, done.append))
    run_all(disk, requests)
    assert len(done) == 40
    check_reads(disk, [r for r in done if r.op == READ])


def test_buffers_stay_pinned_until_the_kernel_is_done(disk: tapcore.Disk) -> None:
    """A buffer that the caller forgets must live as long as its request."""
    engine = engine_of(disk.state)
    done: list[Request] = []
    for request in reads(disk, 16, done):
        engine.submit(request)
        del request
    engine.turn()
    drive(engine)
    check_reads(disk, done)
    io: Any = file_of(disk)._io
    assert io._tokens == io._pinned == [None] * direct.QUEUE_DEPTH


def test_the_tail_is_opened_through_the_page_cache_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"t" * 1000)  # smaller than the unit: all writes go through the page cache
    before = len(os.listdir("/proc/self/fd"))
    with tapcore.open(f"aio:{path}", cache="none", readonly=False) as disk:
        base = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            done: list[Request] = []
            content = memoryview(bytearray(b"u" * 1024))
            run_all(disk, [Request(WRITE, 0, 1024, content, done.append) for _ in range(8)])
            assert [r.status for r in done] == [0] * 8
        assert len(os.listdir("/proc/self/fd")) <= base + 1
    assert len(os.listdir("/proc/self/fd")) == before
    assert path.read_bytes() == b"u" * 1024


# ---- what is missing ----


NO_LIBRARY = """
import ctypes
real = ctypes.CDLL
class CDLL(real):
    def __init__(self, name, *args, **kwargs):
        if name and "libaio" in name:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = CDLL
"""
NO_PACKAGE = "import sys; sys.modules['libaio'] = None"
OPEN = """
import os, sys, tapcore
before = len(os.listdir("/proc/self/fd"))
try:
    tapcore.open("aio:" + sys.argv[1], readonly=False, cache="none")
except tapcore.TapError as exc:
    print(type(exc).__name__, exc)
assert len(os.listdir("/proc/self/fd")) == before
with tapcore.open("aio:" + sys.argv[1], readonly=False) as disk:
    assert disk.size == 4096
"""


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (NO_LIBRARY, ("libaio.so.1", "apt-get install libaio1")),
        (NO_PACKAGE, ("pip install libaio",)),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(
    missing: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", missing + OPEN, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"NotSupportedError {path}: ")
    assert done.stdout.count("\n") == 1
    for word in words:
        assert word in done.stdout


def test_without_any_engine_tap_aio_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    monkeypatch.setattr(direct, "entry_points", lambda group: [])
    direct._engine_maker.cache_clear()  # a process looks once
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(tapcore.NotSupportedError, match="pip install tap-aio"):
        tapcore.open(f"aio:{path}", cache="none", readonly=False)
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    with tapcore.open(f"aio:{path}", cache="none") as disk:  # installed meanwhile
        assert disk.pread(0, length=512) == bytes(512)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EAGAIN, "raise the sysctl fs.aio-max-nr"),
        (errno.ENOSYS, "this kernel has no Linux AIO"),
        (errno.EFAULT, "cannot be set up: Bad address"),
    ],
)
def test_a_kernel_that_gives_no_context_is_named(
    code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from libaio import libaio

    def refuses(*_: object) -> None:
        raise OSError(code, "io_queue_init")

    monkeypatch.setattr(libaio, "io_queue_init", refuses)
    with pytest.raises(tapcore.NotSupportedError, match=words) as caught:
        LibaioEngine(4, 0)
    assert caught.value.errno == code
