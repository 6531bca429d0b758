"""Help, examples and man pages: all from one description, complete, and true."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from tapcore.cli.examples import EXAMPLES, Example
from tapcore.cli.failures import Session
from tapcore.cli.group import COMMANDS, tapdisk
from tapcore.cli.main import main

LINES = [
    pytest.param(name, example.line, id=example.line)
    for name, examples in EXAMPLES.items()
    for example in examples
]


def command_called(name: str) -> click.Command:
    command = tapdisk.get_command(click.Context(tapdisk), name)
    assert command is not None
    return command


def options_of(name: str) -> list[click.Option]:
    command = command_called(name) if name else tapdisk
    context = click.Context(command, **command.context_settings)
    options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    return [option for option in options if not option.hidden]


# ---- examples --------------------------------------------------------------------------------


def test_every_command_has_examples() -> None:
    assert {*EXAMPLES} == {"", *COMMANDS}
    assert all(2 <= len(examples) <= 3 for examples in EXAMPLES.values())
    assert all(examples[0].text for examples in EXAMPLES.values())


@pytest.mark.parametrize(("name", "line"), LINES)
def test_an_example_is_a_command_line(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "passphrase.txt").write_text("secret\n")
    program, *words = shlex.split(line.partition(" > ")[0])
    assert program == "tapdisk"
    with tapdisk.make_context("tapdisk", words, obj=Session()) as top:
        called, command, arguments = tapdisk.resolve_command(top, [*top._protected_args, *top.args])
        assert command is not None
        assert not name or called == name
        with command.make_context(called, arguments, parent=top) as ctx:
            assert not ctx.args


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_the_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out.partition("\nExamples:\n")[2]
    assert shown == "".join(map(_as_shown, EXAMPLES[name]))


def _as_shown(example: Example) -> str:
    text = f"  {example.text}:\n" if example.text else ""
    return f"{text}      {example.line}\n"


# ---- wording ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_does_is_said_in_sentences(name: str) -> None:
    command = command_called(name)
    assert command.short_help == COMMANDS[name]
    assert command.help is not None
    first = command.help.split("\n\n", 1)[0].strip()
    assert first[0].isupper()
    assert first[-1] in ".?"
    for option in options_of(name):
        assert option.help is not None, option.opts
        assert re.fullmatch(r"[A-Z].*\.(  \[default: .*\])?", option.help, re.DOTALL), option.help


def test_an_option_means_the_same_everywhere() -> None:
    """Or it says what it means there."""
    own = {"--force", "--size", "--snapshot", "--parent", "--json", "--user", "--metrics"}
    told: dict[str, set[str]] = {}
    for name in COMMANDS:
        for option in options_of(name):
            told.setdefault(option.opts[-1], set()).add(option.help or "")
    assert {option for option, texts in told.items() if len(texts) > 1} <= own


# ---- man pages -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the man pages are."""
    directory = tmp_path_factory.mktemp("man") / "man"
    assert main(["man", "--write", str(directory)]) == 0
    return directory


def test_every_command_has_a_man_page(pages: Path) -> None:
    names = {"tapdisk.1", *(f"tapdisk-{name}.1" for name in COMMANDS)}
    assert {path.name for path in pages.iterdir()} == names
    program = (pages / "tapdisk.1").read_text()
    for name, what in COMMANDS.items():
        assert f"\\fBtapdisk\\-{name}\\fR(1)\n{what}\n" in program


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_man_page_has_every_option_and_example(pages: Path, name: str) -> None:
    page = (pages / (f"tapdisk-{name}.1" if name else "tapdisk.1")).read_text()
    plain = re.sub(r"\\f[BIR]", "", page).replace("\\-", "-").replace("\\(aq", "'")
    plain = plain.replace("\\(ti", "~")
    for option in options_of(name):
        for sign in option.opts:
            assert re.search(rf"^\.TP\n(.*, )?{sign}[ ,\n]", plain, re.MULTILINE), sign
        assert option.help is not None
        assert " ".join(option.help.split()) in plain
    for example in EXAMPLES[name]:
        assert f".EX\n{example.line}\n.EE\n" in plain


def test_a_man_page_says_what_its_command_ends_with_and_reads(pages: Path) -> None:
    assert ".TP\n3\nOnly space" in (pages / "tapdisk-check.1").read_text()
    assert "config.toml" in (pages / "tapdisk.1").read_text()
    made = (pages / "tapdisk-create.1").read_text()
    assert ".SH FORMAT OPTIONS" in made
    assert "cluster_size" in made


def test_a_page_is_printed_where_nobody_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "convert"]) == 0
    assert capsys.readouterr().out.startswith(".TH TAPDISK-CONVERT 1")
    assert main(["man", "nosuch"]) == 2


def test_man_pages_are_right_roff(pages: Path) -> None:
    """By the strictest program that there is on this machine."""
    files = sorted(map(str, pages.iterdir()))
    for check in (["groff", "-man", "-ww", "-z"], ["mandoc", "-T", "lint", "-W", "warning"]):
        if shutil.which(check[0]):
            done = subprocess.run([*check, *files], capture_output=True, text=True, timeout=60)
            assert (done.stdout, done.stderr) == ("", "")
    for file in files:
        lines = Path(file).read_text().splitlines()
        assert lines[0].startswith(".TH TAPDISK")
        assert all(re.match(r"\.[A-Z]{1,2}\b|\.ad l|\.nh|[^.']", line) for line in lines)
