"""The units for systemd: systemd understands them, and they are as tight as they were."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from peers import peer
from tapcore.cli.main import main

PACKAGING = Path(__file__).resolve().parent.parent / "packaging"
UNITS = sorted((PACKAGING / "systemd").iterdir())
TAPDISK = Path(sys.executable).parent / "tapdisk"
INSTALLED = "/usr/local/bin/tapdisk"

EXPOSURE = {  # of 100, 0 is best (systemd-analyze security)
    "tapdisk@.service": 10,
    "tapdisk-daemon.service": 35,
    "tapdisk-disks.service": 40,
}


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """With the tapdisk that is tested; templates for a disk `vm1`."""
    made = []
    for unit in UNITS:
        made.append(tmp_path / unit.name.replace("@", "@vm1"))
        made[-1].write_text(unit.read_text().replace(INSTALLED, str(TAPDISK)))
    return made


def test_systemd_understands_the_units(units: list[Path]) -> None:
    done = subprocess.run(
        [peer("systemd-analyze"), "verify", "--man=no", *units], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_services_are_confined_by_systemd_too(units: list[Path]) -> None:
    services = [unit for unit in units if unit.suffix == ".service"]
    assert {unit.name.replace("@vm1", "@") for unit in services} == set(EXPOSURE)
    for unit in services:
        threshold = f"--threshold={EXPOSURE[unit.name.replace('@vm1', '@')]}"
        done = subprocess.run(
            [peer("systemd-analyze"), "security", "--offline=true", "--no-pager", threshold, unit],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_user_can_be_made() -> None:
    found = PACKAGING / "sysusers.d" / "tapdisk.conf"
    done = subprocess.run(
        [peer("systemd-sysusers"), "--dry-run", found], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def commands() -> list[list[str]]:
    found = re.findall(rf"^Exec\w+=-?{INSTALLED} (.*)$", "".join(map(Path.read_text, UNITS)), re.M)
    return [shlex.split(words) for words in found]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_options_in_the_units_are_known(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with_help = [word for word in words if not word.startswith("$")]
    assert main([*with_help, "--help"]) == 0, capsys.readouterr().err
    assert "Usage:" in capsys.readouterr().out
