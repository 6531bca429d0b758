"""Signals end a tool with one line and without remains; a second one ends it at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapcore.cli.main import main
from tapcore.files.newfiles import NewFiles
from tapcore.interface.registry import Registry

MIB = 1 << 20
Call = Callable[..., tuple[int, str, str]]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command; returns its status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def in_it(monkeypatch: pytest.MonkeyPatch) -> Callable[[signal.Signals], None]:
    """Lets a signal come in the middle of the next command, once."""

    def arrange(signum: signal.Signals) -> None:
        real = Registry.operations
        left = [signum]

        def operations(self: Registry, *arguments: Any) -> Any:
            if left:
                os.kill(os.getpid(), left.pop())
            return real(self, *arguments)

        monkeypatch.setattr(Registry, "operations", operations)

    return arrange


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    "command",
    ["info", "map", "check", "compare", "measure", "inspect", "create", "snapshot", "bench"],
)
def test_what_only_looks_or_makes_anew_ends_where_it_is(
    call: Call,
    in_it: Callable[[signal.Signals], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    signum: signal.Signals,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("create", "-q", "disk.qcow2", "1M")[0] == 0
    arguments = {
        "compare": ["disk.qcow2", "disk.qcow2"],
        "measure": ["disk.qcow2", "-O", "qcow2"],
        "create": ["-q", "new.qcow2", "-b", "disk.qcow2"],
        "snapshot": ["list", "disk.qcow2"],
    }.get(command, ["disk.qcow2"])
    if command == "inspect":  # which opens no disk
        monkeypatch.setattr("tapcore.tools.inspect.open_host_fd", _sends(signum))
    else:
        in_it(signum)
    before = [signal.getsignal(number) for number in SIGNALS]
    line = f"tapdisk: stopped by {signum.name}\n"
    assert call(command, *arguments) == (128 + signum, "", line)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert os.listdir() == ["disk.qcow2"]


def _sends(signum: signal.Signals) -> Callable[..., int]:
    def send(*_: object) -> int:
        os.kill(os.getpid(), signum)
        raise AssertionError("the signal was not heard")

    return send


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["resize", "disk.qcow2", "2M"],
        ["snapshot", "create", "disk.qcow2", "x"],
        ["amend", "disk.qcow2", "-o", "lazy_refcounts=on"],
        ["check", "--repair", "all", "disk.qcow2"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_change_in_place_is_finished_first(
    call: Call,
    in_it: Callable[[signal.Signals], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    signum: signal.Signals,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("create", "-q", "disk.qcow2", "1M")[0] == 0
    before = Path("disk.qcow2").read_bytes()
    in_it(signum)
    status, out, err = call(*arguments)
    assert (status, out) == (128 + signum, "")
    assert err == f"tapdisk: stopped by {signum.name}, with the work done\n"
    assert call("check", "disk.qcow2")[0] == 0
    assert (Path("disk.qcow2").read_bytes() != before) == (arguments[0] != "check")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_copy_that_is_done_before_a_signal_takes_effect_says_so(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("disk.raw").write_bytes(os.urandom(MIB))
    assert call("create", "-q", "new.qcow2", "1M")[0] == 0
    real = os.fsync

    def fsync(fd: int) -> None:  # of the whole copy, before it takes its place
        monkeypatch.setattr(os, "fsync", real)
        os.kill(os.getpid(), signum)

    really_publish = NewFiles.publish

    def publish(self: NewFiles, *, durable: bool = False) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        really_publish(self, durable=durable)

    monkeypatch.setattr(NewFiles, "publish", publish)
    line = f"tapdisk: stopped by {signum.name}, with the work done\n"
    assert call("convert", "--force", "disk.raw", "new.qcow2") == (128 + signum, "", line)
    assert call("compare", "disk.raw", "new.qcow2")[0] == 0


@pytest.mark.parametrize("how", ["asking_to_stop", "finishing_first", "stopped_by_signals"])
def test_a_second_signal_ends_at_once(how: str) -> None:
    program = (
        "import os, signal, sys\n"
        f"from tapcore.cli.signals import {how} as how\n"
        "with how():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "    finally:\n"
        "        print('still here', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        print('too long', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"still here\n")


def test_a_signal_in_a_finaliser_ends_it_all_the_same() -> None:
    program = (
        "import os, signal\n"
        "from tapcore.cli import main\n"
        "class Finalised:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "def run(*_):\n"
        "    Finalised()\n"
        "    signal.pause()\n"
        "main._run = run\n"
        "main.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    said = b"tapdisk: stopped by SIGTERM\n"
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, said)


def test_what_is_ignored_stays_so(
    call: Call, in_it: Callable[[signal.Signals], None], tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        in_it(signal.SIGHUP)
        assert call("compare", f"aio:{tmp_path}/disk", f"aio:{tmp_path}/disk")[0] == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
