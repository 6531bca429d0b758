"""Every command that opens an image takes passphrases from files, and none from a command line."""

import json
from pathlib import Path

import pytest
from drivers.toy import head_of

from tapcore import create_image
from tapcore.cli.group import COMMANDS, tapdisk
from tapcore.cli.main import main

MIB = 1 << 20
WITHOUT_IMAGE = {"completion", "formats", "help", "inspect", "man", "new-plugin", "plugins"}
OF_THE_DAEMON = {"daemon", "detach", "dump-ring", "list", "log-level", "reload", "stats"} | {
    "commit-live",
    "pause",
    "resize-live",
    "resume-io",
    "snapshot-live",
    "swap",
}
"""Of disks that are open, or are opened again with the keys that they were attached with."""


@pytest.fixture
def encrypted(toys: Path) -> Path:
    """An encrypted child of an encrypted parent, with different passphrases."""
    create_image("base.toy", MIB, options={"passphrase": "below"})
    create_image("a.toy", MIB, parent="base.toy", options={"passphrase": "secret"})
    Path("key").write_bytes(b"secret\n")
    Path("base.key").write_bytes(b"below")
    return toys


@pytest.mark.parametrize("name", sorted({*COMMANDS} - WITHOUT_IMAGE - OF_THE_DAEMON))
def test_the_option_is_there(name: str) -> None:
    command = tapdisk.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert "--key-file" in [option for param in command.params for option in param.opts]


@pytest.mark.parametrize(
    "command",
    [
        ["map", "a.toy"],
        ["compare", "a.toy", "a.toy"],
        ["convert", "a.toy", "aio:copy"],
        ["bench", "a.toy", "--seconds", "0.1"],
        ["resize", "a.toy", "+1M"],
    ],
    ids=lambda command: command[0],
)
def test_content_needs_the_passphrases(
    encrypted: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    failed = 2 if command[0] == "compare" else 1
    assert main(command) == failed
    said = "tapdisk: a.toy: is encrypted; --key-file gives the passphrase\n"
    assert capsys.readouterr().err == said
    assert main([*command, "--key-file", "key"]) == failed
    wrong = f"tapdisk: a.toy: its parent {encrypted}/base.toy: the passphrase is wrong\n"
    assert capsys.readouterr().err == wrong
    assert main([*command, "--key-file", "key", "--key-file", "base.toy=base.key"]) == 0


def test_metadata_needs_no_passphrase(encrypted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", "--chain", "a.toy"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["check", "a.toy"]) == 0
    assert main(["create", "-b", "a.toy", "b.toy"]) == 0
    assert head_of("b.toy")["size"] == MIB


def test_a_key_file_that_is_not_there(encrypted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "a.toy", "--key-file", "nothing"]) == 1
    said = "tapdisk: key file 'nothing': No such file or directory\n"
    assert capsys.readouterr().err == said


def test_a_server_with_a_passphrase(encrypted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "-r", "a.toy", "--port", "0"]) == 1
    assert "--key-file gives the passphrase" in capsys.readouterr().err
