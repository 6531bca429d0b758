"""`tapdisk daemon` as a process, for tests: started, asked, and ended with its disks."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from tapcore.daemon.client import DaemonClient

TAPDISK = Path(sys.executable).parent / "tapdisk"


@attrs.define(eq=False)
class RunningDaemon:
    """A daemon, which can be killed and started again over the same directory."""

    run_dir: Path
    cwd: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> DaemonClient:
        """Start it; returns a client when it is ready."""
        words = [TAPDISK, "daemon", "--run-dir", self.run_dir, *self.options, *options]
        with open(self.cwd / "daemon.log", "a") as log:
            self.process = subprocess.Popen(
                list(map(str, words)), cwd=self.cwd, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            line = stdout.readline()
        assert line.strip() == str(self.run_dir / "control.sock"), self.log
        return self.client()

    def client(self) -> DaemonClient:
        """One more."""
        return DaemonClient(self.run_dir, timeout=60)

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return (self.cwd / "daemon.log").read_text()

    def kill(self) -> None:
        """Let it die without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Stop it as systemd does."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def daemon_in(cwd: Path, *options: str) -> Iterator[RunningDaemon]:
    """A daemon that is not started yet; nothing of it runs afterwards."""
    with tempfile.TemporaryDirectory(prefix="tapcore-") as short:  # a socket's path is short
        daemon = RunningDaemon(Path(short) / "run", cwd, options)
        try:
            yield daemon
        finally:
            _clean_up(daemon)


def _clean_up(daemon: RunningDaemon) -> None:
    if daemon.process is None:
        return
    if daemon.process.poll() is None:
        daemon.end()
    for socket in (daemon.run_dir / "disks").glob("*.sock"):  # disks that have outlived it
        with contextlib.suppress(OSError), DaemonClient(path=socket, timeout=10) as client:
            os.kill(client.call("list")["pid"], signal.SIGKILL)


def until(wanted: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something to hold; returns it."""
    end = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.005)
    return found
