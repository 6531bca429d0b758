"""How a check fails, and what it watches: descriptors, time, where two contents differ."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, process_time
from typing import Any, NoReturn

import pytest

_NOTHING = 0.002
"""CPU seconds in which nothing but looking at the clock was done."""


def broken(message: str) -> NoReturn:
    """The driver breaks its contract: fail the check with a text for its author."""
    pytest.fail(message, pytrace=False)


def error_name(res: int) -> str:
    """`EIO` for -5; the number where it has no name."""
    return errno.errorcode.get(abs(res), str(res))


def run_of(sector: int, nb_sectors: int) -> str:
    """A run of sectors in words."""
    if nb_sectors == 1:
        return f"sector {sector}"
    return f"sectors {sector} to {sector + nb_sectors - 1}"


def compare(
    got: bytes | bytearray | memoryview, want: bytes | bytearray, at: int, what: str
) -> None:
    """Fail where two contents differ.

    Args:
        got: what was read.
        want: what should have been.
        at: offset (bytes) of both on the disk.
        what: begins the message: "after reopening".
    """
    if bytes(got) == bytes(want):
        return
    if len(got) != len(want):
        broken(f"{what}: {len(want)} bytes were read, and {len(got)} came")
    first = next(n for n, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1])
    count = sum(a != b for a, b in zip(got, want, strict=True))
    place = at + first
    broken(
        f"{what}: byte {place} (sector {place // 512}) reads {bytes(got[first : first + 8]).hex()} "
        f"where {bytes(want[first : first + 8]).hex()} was expected; {count} bytes differ in all"
    )


def open_descriptors() -> dict[int, str]:
    """Every open descriptor of this process, and what it leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed the folder
            continue
    return found


def memory_mib(line: str = "VmRSS:") -> int:
    """Of this process: what it has now, from when on the peak counts anew; or ("VmHWM:") that."""
    if line == "VmRSS:":
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
            clear.write("5")
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(text.split()[1]) >> 10 for text in status if text.startswith(line))


@contextmanager
def nothing_left_open(what: str) -> Iterator[None]:
    """Fail if descriptors are open afterwards that were not open before."""
    before = open_descriptors()
    yield
    left = _new_since(before)
    if left:
        gc.collect()  # one that only the garbage collector closes is a leak too, but say so
        late = _new_since(before)
        how = "stay open" if late else "are closed only by the garbage collector"
        broken(f"{what}: {len(left)} descriptors {how}: {', '.join(sorted(left.values()))}")


def _new_since(before: dict[int, str]) -> dict[int, str]:
    return {fd: to for fd, to in open_descriptors().items() if before.get(fd) != to}


@contextmanager
def within(seconds: float, what: str, quiet: float | None = None) -> Iterator[None]:
    """Fail if the body takes more CPU time, even if it never returns (in the main thread).

    A machine that is busy with other things makes it no slower by that clock. What waits, and does
    nothing, is given up after ten times as long by the clock on the wall, or after `quiet` seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        broken(f"{what}: took longer than {seconds:g} s{watch.said}")

    watch = _Watch(quiet)
    handlers = {n: signal.signal(n, ring) for n in (signal.SIGALRM, signal.SIGPROF)}
    started = monotonic()
    # and every second from then on: what is waited for while unwinding may not come either
    outer, again = signal.setitimer(signal.ITIMER_REAL, 10 * seconds, 1.0)
    if outer and outer < 10 * seconds:  # another alarm was set (pytest-timeout's)
        signal.setitimer(signal.ITIMER_REAL, outer, 1.0)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        with watch:
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if outer:  # let it ring when it should
            left = max(outer - (monotonic() - started), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, again)


class _Watch:
    """A thread that rings when nothing was done for a while; by no other signal is work disturbed.

    Args:
        quiet: seconds; None: it never rings.
    """

    def __init__(self, quiet: float | None) -> None:
        self.said = ""
        self._quiet = quiet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        if self._quiet is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._quiet is not None:
            self._thread.join()

    def _look(self) -> None:
        assert self._quiet is not None
        interval = min(1.0, self._quiet / 4)
        cpu, busy = process_time(), monotonic()
        while not self._over.wait(interval):
            now, spent = monotonic(), process_time() - cpu
            cpu += spent
            if spent > _NOTHING:
                busy = now
            elif now - busy > self._quiet:
                self.said = f", or nothing was done for {self._quiet:g} s"
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
