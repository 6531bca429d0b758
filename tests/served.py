"""`tapdisk serve` as a process, watched: memory, descriptors, CPU time and messages."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
from nbd_client import Client, connect

TAPDISK = Path(sys.executable).parent / "tapdisk"
_TICK = os.sysconf("SC_CLK_TCK")
_WINDOWS = 20

_WITH_CHANGES = """
import importlib, sys
changes, seconds, *sys.argv = sys.argv[1:]
for change in changes.split():
    where, value = change.split("=")
    module, _, name = where.rpartition(".")
    setattr(importlib.import_module(module), name, type(getattr(sys.modules[module], name))(value))
if seconds:
    from drivers.slow import Slow, Stuck
    from tapcore.interface.registry import default_registry
    for driver in (Slow(float(seconds)), Stuck()):
        default_registry().register(driver)
from tapcore.cli.main import main
sys.exit(main())
"""


@attrs.define(eq=False)
class Served:
    """A running server.

    Attributes:
        uris: one for each image.
        stopped: its end was looked at already.
        quiet_fds: descriptors that it had open when nobody had come yet.
        messages: what it wrote to standard error, once it has stopped.
    """

    process: subprocess.Popen[str]
    uris: list[str]
    stopped: bool = False
    quiet_fds: int = 0
    messages: list[str] = attrs.field(factory=list)

    @property
    def uri(self) -> str:
        return self.uris[0]

    def client(self, *, structured: bool = True, timeout: float = 60.0) -> Client:
        return Client(self.uri, structured=structured, timeout=timeout)

    @property
    def rss(self) -> int:
        """Bytes of memory that it uses."""
        return self._status("VmRSS") << 10

    @property
    def peak(self) -> int:
        """Most bytes of memory that it ever used."""
        return self._status("VmHWM") << 10

    def _status(self, field: str) -> int:
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(field))

    def signals(self, field: str) -> int:
        """A set of signals: SigIgn, SigBlk, ..."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1], 16) for line in status if line.startswith(field))

    @property
    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def open_files(self) -> list[str]:
        """Where its descriptors lead."""
        where = Path(f"/proc/{self.process.pid}/fd")
        found = []
        for entry in where.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found.append(os.readlink(entry))
        return found

    @property
    def cpu(self) -> float:
        """Seconds of CPU time used."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def idle_for(self, seconds: float) -> bool:
        """Whether it comes to sleep for so long, but for a fifth of the time.

        What it still has to do first may take a busy machine any time; who spins never sleeps.
        """
        for _ in range(_WINDOWS):
            before = self.cpu
            time.sleep(seconds)
            if self.cpu - before < seconds / 5:
                return True
        return False

    def until(self, wanted: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait for something to hold; the server has to be alive meanwhile."""
        end = time.monotonic() + seconds
        while not wanted():
            assert self.process.poll() is None, "the server has died"
            assert time.monotonic() < end, "did not come about"
            time.sleep(0.005)

    def ends(self, signum: int) -> str:
        """A signal that ends it, as the exit status has to say; returns what it wrote."""
        self.stopped = True
        self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=90)
        assert (self.process.returncode, out) == (-signum, "")
        return err

    def sees_an_end(self) -> None:
        """Return when the server has handled all that was sent before (it answers a new client)."""
        with connect(self.uri) as sock:
            assert sock.recv(18)

    def stop(self) -> list[str]:
        """SIGTERM; it has to end with 0 and without a word on standard output."""
        if not self.stopped:
            self.stopped = True
            self.process.terminate()
            out, err = self.process.communicate(timeout=90)
            self.messages = err.splitlines()
            assert "Traceback" not in err, err
            assert (self.process.returncode, out) == (0, ""), err
        return self.messages


@contextlib.contextmanager
def served(
    *arguments: object,
    uris: int = 1,
    changes: Mapping[str, object] | None = None,
    slow: float | None = None,
    quiet: bool = True,
    cwd: Path | None = None,
    program: Sequence[object] = (TAPDISK,),
) -> Iterator[Served]:
    """A server, ready; stopped at the end.

    Args:
        arguments: of `tapdisk serve`.
        uris: how many it has to print.
        changes: other values of constants: module.NAME.
        slow: the driver `slow:` is there, and takes so many seconds for everything; so is `stuck:`.
        quiet: it may say nothing on standard error.
        cwd: where it runs.
        program: what is run instead of `tapdisk`, with these first arguments.
    """
    command = [*program]
    environment = dict(os.environ)
    if changes or slow is not None:
        listed = " ".join(f"{name}={value}" for name, value in (changes or {}).items())
        command = [sys.executable, "-c", _WITH_CHANGES, listed]
        command += ["" if slow is None else slow, "tapdisk"]
        environment["PYTHONPATH"] = str(Path(__file__).parent)
    with subprocess.Popen(
        [str(word) for word in (*command, "serve", *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
    ) as process:
        assert process.stdout is not None
        server = Served(process, [])
        try:
            server.uris += [process.stdout.readline().strip() for _ in range(uris)]
            assert all(server.uris), process.stderr and process.stderr.read()
            server.quiet_fds = server.fds
            yield server
            messages = server.stop()
        finally:
            if process.poll() is None:
                process.kill()
    assert not (quiet and messages), messages
