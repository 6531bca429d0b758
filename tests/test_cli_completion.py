"""Completion: what is offered for a line, and that real shells put it there."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers import peer
from tapcore.cli.completion import BREAKS, LINE, SCRIPTS, complete, script, split_line
from tapcore.cli.group import COMMANDS, tapdisk
from tapcore.cli.main import main

BINARIES = Path(sys.executable).parent


def offered(line: str, breaks: str = "") -> list[str]:
    """The candidates for a line's last word."""
    rows = complete(tapdisk, {LINE: line, BREAKS: breaks}).splitlines()
    return [row.split("\t")[1] for row in rows]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some files to choose from, and nothing else."""
    (tmp_path / "images" / "old").mkdir(parents=True)
    for name in ("disk.qcow2", "my disk.img", ".hidden", "b\nad", "b\x1bad"):
        (tmp_path / "images" / name).touch()
    (tmp_path / os.fsdecode(b"images/b\xffad")).touch()
    (tmp_path / "info").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# ---- what is offered -------------------------------------------------------------------------


def test_commands_with_what_they_do() -> None:
    text = complete(tapdisk, {LINE: "tapdisk "})
    for name, what in COMMANDS.items():
        assert f"plain\t{name}\t{what}\n" in text
    assert offered("tapdisk ins") == ["inspect"]
    assert offered("tapdisk --log-level debug resi") == ["resize", "resize-live"]


def test_options_and_their_values() -> None:
    assert {"--json", "--picture", "--svg", "--parents", "--key-file"} <= {
        *offered("tapdisk map -")
    }
    assert offered("tapdisk check --rep") == ["--repair"]
    assert offered("tapdisk check --repair ") == ["leaks", "all"]
    assert offered("tapdisk check --repair=a") == ["--repair=all"]
    assert offered("tapdisk completion ") == [*SCRIPTS]


def test_handles_and_files(folder: Path) -> None:
    assert offered("tapdisk info i") == ["images/", "info/"]
    assert {"images/", "info/", "aio:", "ram:", "sync:"} <= {*offered("tapdisk info ")}
    assert "aio:" in offered("tapdisk info a")
    images = ["images/disk.qcow2", "images/my disk.img", "images/old/"]
    assert offered("tapdisk info images/") == images
    assert offered("tapdisk info aio:images/") == [f"aio:{name}" for name in images]
    assert offered("tapdisk info nonsense:images/") == []
    assert offered("tapdisk info images/.") == ["images/.hidden"]
    assert offered("tapdisk info no/such/") == []
    assert offered("tapdisk info ~/images/d") == ["~/images/disk.qcow2"]
    assert offered(f"tapdisk compare x {folder}/images/d") == [f"{folder}/images/disk.qcow2"]
    assert offered("tapdisk create x -b images/d") == ["images/disk.qcow2"]
    assert offered("tapdisk serve a b --socket im") == ["images/"]
    assert offered("tapdisk serve a --tls-certificates images/") == ["images/old/"]
    assert offered("tapdisk serve a --tls ") == ["off", "on", "require"]


def test_values_in_a_word(folder: Path) -> None:
    assert offered("tapdisk info x --key-file images/d") == ["images/disk.qcow2"]
    assert offered("tapdisk info x --key-file x=images/d") == ["x=images/disk.qcow2"]
    assert offered("tapdisk info x --parents ") == ["any", "none", "images/", "info/"]
    assert offered("tapdisk info x --parents=images/") == ["--parents=images/old/"]


def test_keys_and_values_of_the_format(folder: Path) -> None:
    for line in ("create aio:x 1G", "create aio:x", "convert a x.raw"):
        assert offered(f"tapdisk {line} -o pre") == ["preallocation="]
        assert offered(f"tapdisk {line} -o preallocation=f") == [
            "preallocation=falloc",
            "preallocation=full",
        ]
    assert offered("tapdisk create aio:x -o a=b,pre") == ["a=b,preallocation="]
    assert offered("tapdisk measure x -O ai") == ["aio"]
    assert offered("tapdisk measure x -O aio -o pre") == ["preallocation="]
    assert offered("tapdisk create aio:x -o no=") == []
    assert offered("tapdisk create -o pre") == []


def test_what_bash_takes_for_words_of_their_own_is_cut_off(folder: Path) -> None:
    assert offered("tapdisk info aio:images/d", ":=") == ["images/disk.qcow2"]
    assert offered("tapdisk info aio:images/d", "=") == ["aio:images/disk.qcow2"]
    assert offered("tapdisk info x --parents=im", ":=") == ["images/"]
    assert offered("tapdisk info 'aio:images/d", ":=") == ["aio:images/disk.qcow2"]


def test_lines_are_split_as_the_shell_does() -> None:
    assert split_line("a b") == (["a"], "b", False)
    assert split_line("a b ") == (["a", "b"], "", False)
    assert split_line("a 'b c") == (["a"], "b c", True)
    assert split_line("a 'b c' ") == (["a", "b c"], "", False)
    assert split_line('a "b ') == (["a"], "b ", True)
    assert split_line("a b\\ ") == (["a"], "b ", False)
    assert split_line("a b\\") == (["a"], "b", False)
    assert split_line("") == ([], "", False)


def test_commands_are_completed_without_importing_any() -> None:
    code = (
        "import sys; from tapcore.cli.main import main; main([]);"
        "print(*(name for name in sys.modules if name.startswith('tapcore.cli.commands')), end='')"
    )
    environment = {**os.environ, "_TAPDISK_COMPLETE": "bash", LINE: "tapdisk in"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert [row.split("\t")[1] for row in done.stdout.splitlines()] == ["info", "inspect"]


# ---- the command and the shells --------------------------------------------------------------


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_command_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell)
    assert main(["completion", "csh"]) == 2


SHELLS = {
    "bash": ("bash --norc --noprofile -i", "source ./script"),
    "zsh": ("zsh -f -i", "autoload -Uz compinit; compinit -u; source ./script"),
    "fish": ("fish --no-config -i", "source ./script"),
}


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        (folder / "script").write_text(script(name))
        words, set_up = SHELLS[name]
        program, *arguments = words.split()
        self._pid, self._fd = pty.fork()
        if not self._pid:
            environment = {
                "PATH": f"{BINARIES}:/usr/bin:/bin",
                "HOME": str(folder),
                "TERM": "dumb",
                "LANG": "C.UTF-8",
                "INPUTRC": "/dev/null",
            }
            os.execve(peer(program), [program, *arguments], environment)
        self._said = ""
        self._type(f"{set_up}; echo rea''dy\n")
        self._read_until("ready")

    def close(self) -> None:
        os.close(self._fd)  # a hangup
        os.waitpid(self._pid, 0)

    def completed(self, line: str) -> list[str]:
        """The words of a line after Tab, as a program gets them."""
        self._said = ""
        self._type(f"{line}\t")
        self._type("\x01printf '[%s]' \x05; echo; echo e''nd\n")  # from its start to its end
        self._read_until("end\r")
        words = re.findall(r"^.*?(\[tapdisk\]\S.*)\]", self._said, re.MULTILINE)
        return str(words[-1][1:]).split("][") if words else [self._said]

    def _type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def _read_until(self, text: str) -> None:
        end = time.monotonic() + 60
        while text not in self._said:
            ready, _, _ = select.select([self._fd], [], [], max(end - time.monotonic(), 0))
            assert ready, self._said
            self._said += os.read(self._fd, 4096).decode(errors="replace")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, folder: Path) -> Iterator[Shell]:
    peer(request.param)
    shell = Shell(request.param, folder)
    yield shell
    shell.close()


def test_a_real_shell_completes(shell: Shell, folder: Path) -> None:
    for typed, words in (
        ("ins", ["inspect"]),
        ("inf", ["info"]),
        ("info ra", ["info", "ram:"]),
        ("info images/d", ["info", "images/disk.qcow2"]),
        ("info aio:images/d", ["info", "aio:images/disk.qcow2"]),
        ("info aio:images/m", ["info", "aio:images/my disk.img"]),
        ("info 'images/my d", ["info", "images/my disk.img"]),
        ("info ~/images/m", ["info", f"{folder}/images/my disk.img"]),
        ("info x --parents=im", ["info", "x", "--parents=images/"]),
        ("create aio:x -o preall", ["create", "aio:x", "-o", "preallocation="]),
    ):
        assert shell.completed(f"tapdisk {typed}") == ["tapdisk", *words]
