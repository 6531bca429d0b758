"""The README is true of what its own line installs: nothing of the checkout's environment helps."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from docpages import README, ROOT, peers_of, run, shape, steps
from peers import peer
from tapcore.cli.group import COMMANDS

TEXT = (ROOT / "README.md").read_text()
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make tool` puts the program."""
    assert "\n    make tool  " in TEXT
    prefix = tmp_path_factory.mktemp("home")
    subprocess.run(
        ["make", "-s", "tool", f"PREFIX={prefix}"],
        cwd=ROOT,
        env=CLEAN,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    return prefix / "bin"


def test_its_commands_print_what_it_shows(installed: Path, tmp_path: Path) -> None:
    for name in peers_of(README):
        peer(name)
    found = steps(README)
    assert len(found) > 6
    for step, printed in zip(found, run(found, tmp_path, installed), strict=True):
        if step.printed is not None:
            why = "run: python tests/docpages.py ../README.md"
            assert shape(printed) == shape(step.printed), f"{step.command}\n{why}"


def test_all_brings_every_plugin_and_library(installed: Path, tmp_path: Path) -> None:
    env = {**CLEAN, "PATH": f"{installed}:{CLEAN['PATH']}"}
    found = subprocess.run(
        ["tapdisk", "formats"], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    plugins = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    assert {name for name in plugins if f" {name} " not in found.stdout} == set()
    assert "failed to load" not in found.stdout
    python = (installed / "tapdisk").resolve().parent / "python"
    libraries = "import cryptography, fs_explorer, isal, backports.zstd, libaio"
    subprocess.run([python, "-c", libraries], env=CLEAN, check=True, timeout=60)


def test_every_command_that_it_names_is_there() -> None:
    named = set(re.findall(r"tapdisk ([a-z-]+)", TEXT))
    assert named <= {*COMMANDS}
    assert len(named) > 8
