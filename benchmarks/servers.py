"""A running server: started, waited for, watched and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import procs

START_SECONDS = 20.0
STOP_SECONDS = 10.0
_SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class ServerError(Exception):
    """A server did not start, or has ended by itself."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A kind of server.

    Attributes:
        name: in the tables.
        command: the program.
        package: what to do where it is not installed.
        argv: its words; gets the command's path, the socket and the file.
        export: the disk's name in it.
        ours: it is judged, and tells its URI on stdout when it is ready.
        start: words that stand before its own.
    """

    name: str
    command: str
    package: str
    argv: Callable[[str, Path, Path], list[str]]
    export: str = ""
    ours: bool = False
    start: tuple[str, ...] = ()


def find_command(command: str) -> str | None:
    """Where an installed command is, also one of the administrator's."""
    return shutil.which(command, path=_SBIN)


def version(command: str, start: tuple[str, ...] = ()) -> str:
    """What a command says of itself, on one line."""
    try:
        done = subprocess.run(
            [*start, command, "--version"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def _end_with_parent() -> None:
    """In the child: should the harness be killed outright, the kernel ends the server too."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Server:
    """A running server of its own file; a context manager that stops exactly what it started."""

    def __init__(self, spec: Spec, command: str, file: Path, folder: Path) -> None:
        self.spec = spec
        self.file = file
        self.uri = ""
        self._log = folder / f"{spec.name}.log"
        sock = folder / f"{spec.name}.sock"
        sock.unlink(missing_ok=True)  # nbdkit leaves its own behind
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*spec.start, *spec.argv(command, sock, file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if spec.ours else log,
                stderr=log,
                cwd=folder,
                start_new_session=True,  # Ctrl-C is for the harness, which then stops its servers
                preexec_fn=_end_with_parent,  # safe: the harness has one thread
            )
        try:
            self.uri = self._read_uri() if spec.ours else self._wait_for(sock)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise where the server is no longer there."""
        if (status := self._process.poll()) is not None:
            raise ServerError(f"it ended with status {status}: {self._complaint()}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to it and its children where that does not help."""
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                for pid in reversed(procs.family(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()
        if process.stdout:
            process.stdout.close()

    def _complaint(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _read_uri(self) -> str:
        pipe = self._process.stdout
        assert pipe is not None
        line = b""
        deadline = time.monotonic() + START_SECONDS
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise ServerError(f"no URI within {START_SECONDS:g} s: {self._complaint()}")
            data = os.read(pipe.fileno(), 1)  # not a byte of what follows the line
            if not data:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
                raise ServerError(f"it ended at start: {self._complaint()}")
            line += data
        return line.decode().strip()

    def _wait_for(self, sock: Path) -> str:
        """Wait until the server greets, which is when the socket alone is not enough."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1)
                client.connect(str(sock))
                if client.recv(8) == b"NBDMAGIC":
                    return f"nbd+unix:///{quote(self.spec.export)}?socket={quote(str(sock))}"
            time.sleep(0.02)
        raise ServerError(f"not ready within {START_SECONDS:g} s: {self._complaint()}")
