"""The servers that are compared: how each is started on a raw file, watched and stopped."""

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
from workloads import CACHED, DIRECT

START_SECONDS = 20.0
STOP_SECONDS = 10.0
_SBIN = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class ServerError(Exception):
    """A server did not start, or has ended by itself."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A kind of server. `argv` gets the command's path, the socket and the file."""

    name: str
    command: str
    package: str
    argv: Callable[[str, Path, Path], list[str]]
    group: str = CACHED
    export: str = ""
    ours: bool = False  # then it is judged, and tells its URI on stdout when it is ready


def _tapdisk(driver: str, *options: str) -> Callable[[str, Path, Path], list[str]]:
    def argv(command: str, sock: Path, file: Path) -> list[str]:
        return [command, "serve", "--socket", str(sock), *options, f"{driver}:{file}"]

    return argv


def _qemu_nbd(*options: str) -> Callable[[str, Path, Path], list[str]]:
    def argv(command: str, sock: Path, file: Path) -> list[str]:
        # -t: stay after the last client; -e: clients at a time (--shared)
        base = [command, "-f", "raw", "-t", "-e", "8", "-k", str(sock), "--discard=unmap"]
        return [*base, *options, str(file)]

    return argv


def _storage_daemon(command: str, sock: Path, file: Path) -> list[str]:
    name = str(file).replace(",", ",,")
    return [
        command,
        "--blockdev", f"driver=file,node-name=file,discard=unmap,filename={name}",
        "--blockdev", "driver=raw,node-name=disk,discard=unmap,file=file",
        "--nbd-server", f"addr.type=unix,addr.path={sock}",
        "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
    ]  # fmt: skip


def _nbdkit(command: str, sock: Path, file: Path) -> list[str]:
    return [command, "-f", "-U", str(sock), "file", str(file)]


SPECS = [
    Spec("tapdisk-sync", "tapdisk", "make install", _tapdisk("sync"), ours=True),
    Spec("tapdisk-aio", "tapdisk", "make install", _tapdisk("aio"), ours=True),
    Spec("qemu-nbd", "qemu-nbd", "apt install qemu-utils", _qemu_nbd("--cache=writeback")),
    Spec(
        "qemu-storage-daemon",
        "qemu-storage-daemon",
        "apt install qemu-system-common",
        _storage_daemon,
        export="disk",
    ),
    Spec("nbdkit", "nbdkit", "apt install nbdkit", _nbdkit),
    Spec(
        "tapdisk-aio-direct",
        "tapdisk",
        "make install",
        _tapdisk("aio", "--cache", "none"),
        group=DIRECT,
        ours=True,
    ),
    Spec(
        "qemu-nbd-direct",
        "qemu-nbd",
        "apt install qemu-utils",
        _qemu_nbd("--cache=none", "--aio=native"),
        group=DIRECT,
    ),
]


def find_command(command: str) -> str | None:
    return shutil.which(command, path=_SBIN)


def version(command: str) -> str:
    try:
        done = subprocess.run(
            [command, "--version"], capture_output=True, text=True, check=False, timeout=20
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
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                spec.argv(command, sock, file),
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
