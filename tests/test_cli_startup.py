"""Start-up counts: what is not needed is not imported."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from tapcore.cli.main import main
status = main(sys.argv[1:])
print(status, *sorted(sys.modules), file=sys.stderr)
"""

HEAVY = {"rich", "ctypes", "libaio", "asyncio", "multiprocessing", "ssl"}
SLOW = {"importlib.metadata", "hashlib", "pathlib", "tempfile", "tap_vmdk.image", "tap_qcow.image"}
"""Each a tenth of a short command, and not needed for it."""


def modules_of(*arguments: object) -> set[str]:
    """The modules that a command imports."""
    run = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    status, *modules = done.stderr.splitlines()[-1].split()
    assert status == "0", done.stderr
    return set(modules)


@pytest.mark.parametrize("argument", ["--version", "-V", "--help"])
def test_version_and_help_need_nearly_nothing(argument: str) -> None:
    modules = modules_of(argument)
    assert not modules & (HEAVY | {"attr", "pluggy", "logging", "json", "importlib.metadata"})
    ours = {name for name in modules if name.startswith("tapcore.")}
    assert ours - {"tapcore.cli.examples"} == {
        "tapcore.cli",
        "tapcore.cli.failures",
        "tapcore.cli.group",
        "tapcore.cli.main",
        "tapcore.cli.options",
        "tapcore.cli.signals",
        "tapcore.cli.standardstreams",
    }


def test_formats_needs_neither_drivers_nor_their_records() -> None:
    modules = modules_of("formats")
    assert not modules & (HEAVY | SLOW | {"tapcore.clusters", "tapcore.files.direct"})
    assert not [name for name in modules if name.startswith("tap_")]


def test_info_needs_no_more_than_it_shows(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    modules = modules_of("info", tmp_path / "disk")
    assert not modules & (HEAVY | SLOW)
    assert "tapcore.nbd" not in modules
    assert {name for name in modules if name.startswith("tapcore.cli.commands.")} == {
        "tapcore.cli.commands.info"
    }


def test_a_progress_bar_is_imported_on_a_terminal_only(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    modules = modules_of("convert", tmp_path / "disk", tmp_path / "copy.img")
    assert not modules & (HEAVY | SLOW) - {"ctypes"}
