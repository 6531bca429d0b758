"""What is said is one line, and true: it names the image, and an option that the command has."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tapcore
from tapcore.cli.main import main

MIB = 1 << 20
Said = tuple[int, str, str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tapdisk(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*arguments: str) -> Said:
        status = main(arguments)
        out, err = capfd.readouterr()
        return status, out, err

    return run


# ---- what will not open afterwards ---------------------------------------------------------------


@pytest.fixture
def outside(here: Path) -> Path:
    os.mkdir("sub")
    tapcore.create_image("base.qcow2", MIB)
    return here


def test_who_makes_a_child_that_will_not_open_is_told(
    outside: Path, tapdisk: Callable[..., Said]
) -> None:
    status, _, err = tapdisk("create", "-q", "sub/c.qcow2", "-b", "../base.qcow2")
    assert status == 0
    assert err == (
        "tapdisk: sub/c.qcow2: will not be opened as it is: it names the file '../base.qcow2' "
        f"outside its directory; --parents {outside} would allow it\n"
    )
    assert tapdisk("map", "sub/c.qcow2")[0] == 1
    assert tapdisk("map", "sub/c.qcow2", "--parents", str(outside))[0] == 0


def test_who_allowed_it_knows(outside: Path, tapdisk: Callable[..., Said]) -> None:
    said = tapdisk("create", "-q", "sub/c.qcow2", "-b", "../base.qcow2", "--parents", ".")
    assert said == (0, "", "")


def test_a_data_file_outside_is_told_of_too(outside: Path, tapdisk: Callable[..., Said]) -> None:
    status, _, err = tapdisk("create", "-q", "sub/d.qcow2", "1M", "-o", f"data_file={outside}/raw")
    assert (status, err.count("\n")) == (0, 1)
    assert f"--parents {outside} would allow it" in err


@pytest.mark.parametrize("how", [[], ["--unsafe"]])
def test_who_rebases_to_the_outside_is_told(
    how: list[str], outside: Path, tapdisk: Callable[..., Said]
) -> None:
    tapcore.create_image("sub/c.qcow2", MIB)
    status, _, err = tapdisk("rebase", "-q", "sub/c.qcow2", "-b", "qcow2:../base.qcow2", *how)
    assert (status, err.count("\n")) == (0, 1)
    assert err.endswith(f"--parents {outside} would allow it\n")


def test_a_parent_that_nothing_could_open_is_refused(tapdisk: Callable[..., Said]) -> None:
    said = tapdisk("create", "-q", "c.qcow2", "1M", "-b", "ram:1M")
    assert said == (1, "", "tapdisk: c.qcow2: a 'ram' disk cannot be a parent\n")
    assert not os.path.exists("c.qcow2")


def test_commit_tells_how_a_moved_parent_is_recorded(tapdisk: Callable[..., Said]) -> None:
    tapcore.create_image("base.qcow2", MIB)
    tapcore.create_image("c.qcow2", None, parent="base.qcow2")
    os.rename("base.qcow2", "moved.qcow2")
    status, _, err = tapdisk("commit", "c.qcow2")
    assert (status, err.count("\n")) == (1, 1)
    assert err.endswith("`tapdisk rebase --unsafe -b PARENT` records its new place\n")


# ---- options that are named exist ----------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["resize", "a.qcow2", "2M"],
        ["amend", "a.qcow2", "-o", "lazy_refcounts=on"],
        ["snapshot", "create", "a.qcow2", "one"],
        ["check", "--repair", "all", "a.qcow2"],
        ["rebase", "a.qcow2", "-b", ""],
        ["commit", "a.qcow2"],
    ],
)
def test_no_option_is_named_that_the_command_does_not_have(command: list[str]) -> None:
    tapcore.create_image("a.qcow2", MIB)
    os.chmod("a.qcow2", 0o444)
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if not os.geteuid() else []
    run = [*drop, sys.executable, "-c", "from tapcore.cli.main import run; run()", *command]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "tapdisk: a.qcow2: Permission denied for writing\n"


# ---- a check that could not be done --------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_check_that_could_not_be_done_says_why_on_standard_error(
    form: list[str], tapdisk: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    tapcore.create_image("a.qcow2", MIB)
    result = tapcore.CheckResult(check_errors=1, messages=["a table cannot be read: I/O error"])
    monkeypatch.setattr("tapcore.cli.commands.check.check_image", lambda *_, **__: result)
    status, _, err = tapdisk("check", "a.qcow2", *form)
    assert status == 1
    assert err == "tapdisk: a.qcow2: could not be checked: a table cannot be read: I/O error\n"


# ---- standard streams that are closed, full, or gone ---------------------------------------------

COMMANDS = {
    "formats": ["formats"],
    "formats --json": ["formats", "--json"],
    "info": ["info", "a.qcow2"],
    "info --json": ["info", "--json", "a.qcow2"],
    "info --chain": ["info", "--chain", "a.qcow2"],
    "inspect": ["inspect", "a.qcow2"],
    "map": ["map", "a.qcow2"],
    "map --json": ["map", "--json", "a.qcow2"],
    "map --picture": ["map", "--picture", "a.qcow2"],
    "check": ["check", "a.qcow2"],
    "compare": ["compare", "a.qcow2", "b.img"],
    "measure": ["measure", "a.qcow2", "-O", "qcow2"],
    "create": ["create", "new.qcow2", "1M"],
    "convert": ["convert", "a.qcow2", "new.img"],
    "convert to -": ["convert", "a.qcow2", "-"],
    "convert to vmdk:-": ["convert", "a.qcow2", "vmdk:-", "-o", "subformat=streamOptimized"],
    "resize": ["resize", "a.qcow2", "2M"],
    "snapshot": ["snapshot", "list", "a.qcow2"],
    "rebase": ["rebase", "a.qcow2", "-b", ""],
    "amend": ["amend", "a.qcow2", "-o", "lazy_refcounts=on"],
    "bench": ["bench", "a.qcow2", "--seconds", "0.05"],
    "serve": ["serve", "a.qcow2", "--socket", "s"],
    "completion": ["completion", "bash"],
    "--help": ["--help"],
    "info --help": ["info", "--help"],
    "--version": ["--version"],
}


def in_a_shell(command: list[str], redirection: str) -> Said:
    """A process of its own, with the streams that a shell gives it."""
    start = [sys.executable, "-c", "from tapcore.cli.main import run; run()", *command]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *start],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def in_a_fork(command: list[str], redirection: str) -> Said:
    """The same without the start of an interpreter: for standard output alone."""
    pid = os.fork()
    if not pid:
        status = 99
        try:
            for name, number in (("stdout", 1), ("stderr", 2)):
                os.dup2(os.open(name, os.O_CREAT | os.O_RDWR, 0o600), number)
                setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
            if redirection == ">&-":
                os.close(1)
                sys.stdout = None  # as Python itself does then
            else:
                os.dup2(os.open(redirection.removeprefix(">"), os.O_WRONLY), 1)
            status = main(command)
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, Path("stdout").read_text(), Path("stderr").read_text()


@pytest.fixture
def images(here: Path) -> None:
    tapcore.create_image("a.qcow2", MIB)
    tapcore.create_image("b.img", MIB)
    with (
        tapcore.open("qcow2:a.qcow2", readonly=False) as disk,
        tapcore.open("aio:b.img", readonly=False) as other,
    ):
        for each in (disk, other):
            each.pwrite(0, b"x" * 65536)


# no result, or not what was asked for: two, since with `compare` one is an answer
FAILED = dict.fromkeys(COMMANDS, 1) | {"compare": 2}


@pytest.mark.parametrize("name", COMMANDS)
def test_output_that_cannot_be_written_is_an_error_in_one_line(images: None, name: str) -> None:
    said = in_a_fork(COMMANDS[name], ">/dev/full")
    assert said == (FAILED[name], "", "tapdisk: standard output: No space left on device\n")
    assert not os.path.exists("s")


@pytest.mark.parametrize("name", COMMANDS)
def test_output_for_a_closed_stream_is_an_error_in_one_line(images: None, name: str) -> None:
    said = in_a_fork(COMMANDS[name], ">&-")
    assert said == (FAILED[name], "", "tapdisk: standard output: Bad file descriptor\n")
    assert not os.path.exists("s")


@pytest.mark.parametrize("name", ["create", "convert", "resize"])
def test_who_wants_no_output_needs_no_stream(images: None, name: str) -> None:
    for redirection in (">/dev/full", ">&-"):
        command = [*COMMANDS[name], "-q", *(["--force"] if name != "resize" else [])]
        assert in_a_fork(command, redirection) == (0, "", "")


@pytest.mark.parametrize(
    ("redirection", "words"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")],
)
def test_a_shell_says_the_same(images: None, redirection: str, words: str) -> None:
    said = in_a_shell(COMMANDS["info"], redirection)
    assert said == (1, "", f"tapdisk: standard output: {words}\n")


@pytest.mark.parametrize("name", ["map --json", "convert to -"])
def test_a_pipe_that_nobody_reads_is_no_news(images: None, name: str) -> None:
    assert in_a_shell(COMMANDS[name], "| exec 0<&- ")[2] == ""


@pytest.mark.parametrize("stream", ["0<&-", "2>&-"])
@pytest.mark.parametrize("name", ["check", "convert to -"])
def test_a_stream_that_is_closed_and_not_needed_changes_nothing(
    images: None, name: str, stream: str
) -> None:
    status, out, err = in_a_shell(COMMANDS[name], stream)
    assert (status, err) == (0, "")
    assert out


def test_an_image_from_a_closed_standard_input_is_an_error(images: None) -> None:
    said = in_a_shell(["convert", "-", "new.img"], "<&-")
    assert said == (1, "", "tapdisk: standard input: Bad file descriptor\n")
    assert not os.path.exists("new.img")
