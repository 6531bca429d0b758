"""What is started warm does the same, in the same surroundings, as what is started in truth."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from warmstart import WarmStarts

TAPDISK = Path(sys.executable).parent / "tapdisk"
COLD = [sys.executable, TAPDISK]
WARM = [TAPDISK]

pytestmark = pytest.mark.skipif(
    "TAPCORE_COLD" in os.environ, reason="everything is started in truth"
)


def server(command: list[Any], image: Path, socket: Path, **more: Any) -> subprocess.Popen[str]:
    words = [*command, "serve", f"raw:{image}", "--socket", socket]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    process.terminate()
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def is_warm(process: subprocess.Popen[str]) -> bool:
    return b"warmprocess" in Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(1 << 16))
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["formats"],
        ["info", "a.raw"],
        ["info", "a.raw", "--json"],
        ["info", "missing"],
        ["info", "a.raw", "--debug", "--nonsense"],
        ["convert", "a.raw", "qcow2:-"],
        ["convert", "-", "raw:b.raw", "--force"],
    ],
    ids=" ".join,
)
def test_says_the_same(words: list[str], image: Path) -> None:
    found = [
        subprocess.run(
            [*command, *words], input=bytes(512), capture_output=True, cwd=image.parent, check=False
        )
        for command in (COLD, WARM)
    ]
    assert len({(done.returncode, done.stdout, done.stderr) for done in found}) == 1, found


@pytest.mark.parametrize("stream", ["/dev/full", "closed pipe"])
def test_ends_the_same_when_its_output_fails(stream: str, tmp_path: Path) -> None:
    found = set()
    for command in (COLD, WARM):
        if stream == "/dev/full":
            out = os.open("/dev/full", os.O_WRONLY)
        else:
            reading, out = os.pipe()
            os.close(reading)
        words = [*command, "formats"]
        done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, check=False)
        os.close(out)
        found.add((done.returncode, done.stderr))
    assert len(found) == 1, found


def surroundings(process: subprocess.Popen[str]) -> dict[str, object]:
    """What a process has from who started it."""
    proc = Path(f"/proc/{process.pid}")
    fields = ("Umask", "PPid", "SigBlk", "SigIgn", "SigCgt", "Groups", "NoNewPrivs", "Threads")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    numbers = {
        int(fd.name): os.readlink(fd).split(":")[0].replace(str(process.pid), "PID")
        for fd in (proc / "fd").iterdir()
    }
    groups = [os.getpgid(process.pid), os.getsid(process.pid)]
    return {field: status[field] for field in fields} | {
        "fds": sorted(numbers.items()),
        "groups": [number == process.pid or number for number in groups],
        "cwd": os.readlink(proc / "cwd"),
        "limits": (proc / "limits").read_text(),
    }


@pytest.mark.parametrize("new_session", [False, True])
def test_has_the_same_surroundings(new_session: bool, image: Path, tmp_path: Path) -> None:
    found = []
    passed = os.open(image, os.O_RDONLY)
    umask = os.umask(0o27)
    try:
        for command in (COLD, WARM):
            process = server(
                command,
                image,
                tmp_path / "s",
                cwd="/usr",
                start_new_session=new_session,
                pass_fds=[passed],
                env={**os.environ, "TZ": "Asia/Tokyo"},
            )
            assert is_warm(process) is (command is WARM)
            found.append(surroundings(process))
            assert ended(process) == (0, "", "")
    finally:
        os.umask(umask)
        os.close(passed)
    assert found[0] == found[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL, signal.SIGSEGV])
def test_dies_of_the_same(signum: int, image: Path, tmp_path: Path) -> None:
    found = set()
    for command in (COLD, WARM):
        process = server(command, image, tmp_path / "s")
        process.send_signal(signum)
        found.add((*process.communicate(timeout=60), process.returncode))
    assert len(found) == 1, found


def test_what_the_test_changed_in_its_own_process_is_not_there(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapcore.cli.group.tapdisk", None)
    done = subprocess.run([*WARM, "info", "a.raw"], cwd=image.parent, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def hups_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hups_ignored")
def test_a_signal_ignored_is_a_true_start(image: Path, tmp_path: Path) -> None:
    process = server(WARM, image, tmp_path / "s")
    assert not is_warm(process)
    assert ended(process) == (0, "", "")


@pytest.mark.parametrize(
    "more",
    [
        {"env": {**os.environ, "PYTHONHASHSEED": "1"}},
        {"env": {**os.environ, "LC_ALL": "C"}},
        {"preexec_fn": lambda: None},
        {"umask": 0o77},
        {"user": os.getuid()},
    ],
    ids=lambda more: "".join(more),
)
def test_what_a_fork_cannot_show_is_a_true_start(
    more: dict[str, Any], image: Path, tmp_path: Path
) -> None:
    process = server(WARM, image, tmp_path / "s", **more)
    assert not is_warm(process)
    assert ended(process) == (0, "", "")


def test_a_folder_that_is_missing_is_an_error_as_ever(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run([*WARM, "--version"], cwd=tmp_path / "missing")


def test_afterwards_starts_are_as_before() -> None:
    before = subprocess._fork_exec  # type: ignore[attr-defined]
    WarmStarts().end()
    assert subprocess._fork_exec == before  # type: ignore[attr-defined]
