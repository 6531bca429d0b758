"""A disk and processes that are forked away: the child is told at once, and harms nothing."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tapcore

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

SIZE = 1 << 20
PATIENCE_MS = 60_000


def in_a_child(work: Callable[[], str]) -> str:
    """What `work` returns in a process that is forked here; kills one that hangs."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(theirs, work().encode())
        except BaseException as exc:
            os.write(theirs, f"{type(exc).__name__}: {exc}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    ready = select.poll()
    ready.register(ours, select.POLLIN)
    if not ready.poll(PATIENCE_MS):
        os.kill(pid, signal.SIGKILL)
    with open(ours, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(pid, 0)
    return said or "it hung"


def outcome(call: Callable[[], object]) -> str:
    try:
        return f"returned {call()!r}"
    except Exception as exc:
        return type(exc).__name__


@pytest.fixture(params=["aio", "sync", "ram", "qcow2"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "ram":
        return "ram:1M"
    name = f"{request.param}:{tmp_path / 'disk'}"
    tapcore.create_image(name, SIZE)
    return name


def test_every_call_in_the_child_says_so_at_once(name: str) -> None:
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, b"mine")
        calls: dict[str, Callable[[], object]] = {
            "pread": lambda: disk.pread(0, length=4),
            "pread_into": lambda: disk.pread_into(0, bytearray(4)),
            "read": lambda: disk.read(4),
            "readinto": lambda: disk.readinto(bytearray(4)),
            "pwrite": lambda: disk.pwrite(0, b"his!"),
            "write": lambda: disk.write(b"his!"),
            "write_compressed": lambda: disk.write_compressed(0, bytes(512)),
            "zero": lambda: disk.zero(0, length=512),
            "discard": lambda: disk.discard(0, length=512),
            "sync": lambda: disk.sync(),
            "flush": lambda: disk.flush(),
            "seek": lambda: disk.seek(0),
            "tell": lambda: disk.tell(),
            "resize": lambda: disk.resize(2 * SIZE),
            "info": lambda: disk.info(),
            "extents": lambda: list(disk.extents()),
            "snapshots": lambda: disk.snapshots(),
            "bitmaps": lambda: disk.bitmaps(),
            "with": lambda: disk.__enter__(),
        }
        said = in_a_child(lambda: ",".join(f"{k}:{outcome(v)}" for k, v in calls.items()))
        assert said == ",".join(f"{call}:ForkedError" for call in calls)
        assert disk.pread(0, length=4) == b"mine"


def test_it_says_so_also_while_a_thread_of_the_parent_is_in_a_call(name: str) -> None:
    with tapcore.open(name, readonly=False) as disk:
        with disk._calls.lock:  # as in another thread's call
            told: list[str] = []
            thread = threading.Thread(
                target=lambda: told.append(
                    in_a_child(lambda: outcome(lambda: disk.pread(0, length=4)))
                )
            )
            thread.start()
            thread.join()
        assert told == ["ForkedError"]


@pytest.mark.parametrize("handle", ["aio", "qcow2"])
def test_closing_in_the_child_writes_nothing_and_the_parent_goes_on(
    handle: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    tapcore.create_image(f"{handle}:{path}", SIZE)
    with tapcore.open(f"{handle}:{path}", readonly=False) as disk:
        disk.pwrite(4096, b"waits in the parent's tables")
        before = path.read_bytes()

        def close() -> str:
            disk.close()
            disk.close()
            return f"{disk.closed} {outcome(lambda: disk.pread(0, length=1))}"

        assert in_a_child(close) == "True ForkedError"
        assert path.read_bytes() == before
        with pytest.raises(tapcore.ImageLockedError):  # the parent's lock stands
            tapcore.open(f"{handle}:{path}", readonly=False)
        disk.pwrite(8192, b"goes on")
    with tapcore.open(f"{handle}:{path}", readonly=True) as disk:
        assert disk.pread(4096, length=28) == b"waits in the parent's tables"
        assert disk.pread(8192, length=7) == b"goes on"


@pytest.mark.parametrize("handle", ["aio", "sync", "qcow2", "vhd", "vmdk", "qcow"])
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_no_lock_is_left_when_both_have_closed_it(
    handle: str, cache: tapcore.CacheMode, tmp_path: Path
) -> None:
    name = f"{handle}:{tmp_path / 'disk'}"
    tapcore.create_image(name, SIZE)
    disk = tapcore.open(name, cache=cache if handle != "sync" else "writeback", readonly=False)
    closed, go = (os.pipe() for _ in range(2))
    pid = os.fork()
    if not pid:
        try:
            disk.close()
            disk.close()
            os.write(closed[1], b"closed")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    assert os.read(closed[0], 6) == b"closed"
    with pytest.raises(tapcore.ImageLockedError):  # the parent's lock stands
        tapcore.open(name, readonly=False)
    disk.pwrite(0, b"goes on")
    disk.close()
    with tapcore.open(name, readonly=False) as again:  # though the child still lives
        assert again.pread(0, length=7) == b"goes on"
    os.write(go[1], b".")
    os.waitpid(pid, 0)
    for fd in (*closed, *go):
        os.close(fd)


def test_processes_of_the_standard_library_end_and_leave_the_disk_alone(tmp_path: Path) -> None:
    """What they do at their end (collecting, atexit, finalizers) flushes and waits for nothing."""
    path = tmp_path / "disk"
    tapcore.create_image(f"qcow2:{path}", SIZE)
    script = f"""
        import concurrent.futures, gc, multiprocessing, subprocess, sys, tapcore
        def touch(offset):
            gc.collect()
            disk.pread(offset, length=1)
        def forget(offset):
            global disk
            del disk
            gc.collect()
            return offset
        disk = tapcore.open("qcow2:{path}", readonly=False)
        disk.pwrite(0, b"once")
        before = open("{path}", "rb").read()
        fork = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=fork) as pool:
            for work in pool.submit(touch, 0), pool.submit(touch, 1):
                error = work.exception()
                assert type(error) is tapcore.ForkedError, error
                assert error.filename == disk.name and error.errno == 9, error
            assert pool.submit(forget, 5).result() == 5
        child = fork.Process(target=forget, args=(0,))
        child.start()
        child.join()
        assert child.exitcode == 0, child.exitcode
        subprocess.run(["true"], check=True, preexec_fn=gc.collect)
        assert open("{path}", "rb").read() == before
        assert disk.pread(0, length=4) == b"once"
        disk.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
    with tapcore.open(f"qcow2:{path}", readonly=False) as found:
        assert found.pread(0, length=4) == b"once"


def test_the_child_opens_it_again_for_itself(tmp_path: Path) -> None:
    name = f"qcow2:{tmp_path / 'disk'}"
    tapcore.create_image(name, SIZE)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, b"content")
    with tapcore.open(name, readonly=True) as disk:
        disk.pread(0, length=7)

        def again() -> str:
            with tapcore.open(name, readonly=True) as own:
                return own.pread(0, length=7).decode()

        assert in_a_child(again) == "content"


def test_a_child_that_ends_without_closing_it_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    tapcore.create_image(f"qcow2:{path}", SIZE)
    script = f"""
        import io, os, tapcore
        raw = tapcore.open("qcow2:{path}", readonly=False)
        disk = io.BufferedWriter(raw)
        disk.write(b"once")
        pid = os.fork()
        if not pid:
            raise SystemExit(0)  # with all that the interpreter does at its end
        os.waitpid(pid, 0)
        assert open("{path}", "rb").read().find(b"once") < 0
        disk.seek(512)
        disk.write(b"twice")
        disk.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
    with tapcore.open(f"qcow2:{path}", readonly=True) as found:
        assert (found.pread(0, length=4), found.pread(512, length=5)) == (b"once", b"twice")
