"""Start-up counts: what is not needed is not imported."""

import subprocess
import sys
from pathlib import Path

import pytest

import tapcore
from tapcore.cli.main import main

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


COUNTED = """
import sys
from tapcore.cli.later import load_later
from tapcore.cli.plain import SELDOM_USED
load_later(SELDOM_USED)
from tapcore.cli.main import main
assert main(sys.argv[1:]) == 0
attrs = "attr" in sys.modules
import gc
made = [each for each in gc.get_objects() if isinstance(each, type)]
loaded = [name for name, each in sys.modules.items() if type(each).__name__ != "_NotLoaded"]
ours = {name for name in loaded if name.startswith("tap")}
classes = [each for each in made if "__attrs_attrs__" in vars(each) and each.__module__ in ours]
print(len(ours), len(classes), attrs, *sorted({*loaded} - ours), file=sys.stderr)
"""
"""As the console script runs a command: how much of it is made, and what is loaded."""

PUT_OFF = {"ast", "copy", "inspect", "linecache", "logging", "platform", "pluggy", "string"}
"""What attrs and the modules here would load, each a hundredth of a short command or more."""


@pytest.mark.parametrize(
    ("words", "most_modules", "most_classes"),
    [
        ("formats", 31, 0),
        ("info disk", 83, 8),
        ("info disk.qcow2", 84, 10),
        ("info disk.vmdk", 91, 9),
        ("convert disk copy.raw", 137, 14),
        ("convert disk.qcow2 copy.raw", 185, 23),
    ],
)
def test_a_plain_command_makes_no_more_than_it_did(
    words: str, most_modules: int, most_classes: int, tmp_path: Path
) -> None:
    """A module costs it 0.1 ms, and a class by attrs, which compiles its methods, up to 2 ms."""
    (tmp_path / "disk").write_bytes(bytes(512))
    tapcore.create_image(tmp_path / "disk.qcow2", "1M")
    tapcore.create_image(tmp_path / "disk.vmdk", "1M")
    run = [sys.executable, "-c", COUNTED, *words.split()]
    done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    modules, classes, attrs, *others = done.stderr.split()
    assert int(modules) <= most_modules
    assert int(classes) <= most_classes
    assert attrs == str(bool(most_classes))
    assert not PUT_OFF & {*others}


@pytest.mark.parametrize("words", ["info --json disk", "convert -q disk copy.qcow2"])
def test_other_commands_leave_out_what_click_and_attrs_load_in_vain(
    words: str, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    run = [sys.executable, "-c", COUNTED, *words.split()]
    done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    modules = {*done.stderr.split()}
    assert not {"ast", "inspect", "tokenize", "attr.validators", "logging"} & modules
    assert not {"difflib", "gettext", "locale"} & modules


def test_a_help_of_several_lines_is_cleaned_as_ever() -> None:
    run = [sys.executable, "-c", "from tapcore.cli.entry import run; run()", "info", "--help"]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    assert "\n  Takes no lock" in done.stdout


def test_what_is_told_seldom_is_told_all_the_same(tmp_path: Path) -> None:
    """`logging` is put off by plain commands, and set up as soon as somebody has something to say:
    a module of the core, or a driver that imports it itself."""
    (tmp_path / "disk.img").write_bytes(b"QFI\xfb\0\0\0\2".ljust(512, b"\0"))
    run = [sys.executable, "-c", "from tapcore.cli.entry import run; run()", "info", "disk.img"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    named, damaged = done.stderr.splitlines()
    assert named.startswith("tapdisk: disk.img: is named like a raw disk, but holds qcow2")
    assert damaged.startswith("tapdisk: disk.img: has an impossible cluster size")


def test_a_module_is_loaded_when_something_of_it_is_wanted() -> None:
    """Also when a second one imports it; nothing of it differs then."""
    script = """
import sys
from tapcore.cli.later import load_later
load_later({"string": {"known": 1}, "json.tool": {}})
from string import known
assert known == 1
import string
import string as again
from json import tool
assert len(vars(string)) < 10 and string.known == 1, vars(string)
assert again.ascii_lowercase == "abcdefghijklmnopqrstuvwxyz"
assert type(string) is type(sys)
assert tool.main.__module__ == "json.tool"
try:
    string.nothing
except AttributeError as exc:
    assert "nothing" in str(exc)
else:
    raise AssertionError
"""
    subprocess.run(
        [sys.executable, "-S", "-c", script], check=True, cwd=Path(__file__).parent.parent
    )


def test_the_version_needs_nothing() -> None:
    script = "import sys; sys.argv[1:] = ['-V']; from tapcore.cli.entry import run\n"
    script += "try: run()\nfinally: print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"tapdisk {tapcore.__version__}\n")
    assert {name for name in done.stderr.split() if name.startswith("tapcore")} == {
        "tapcore",
        "tapcore.cli",
        "tapcore.cli.entry",
    }


def test_help_needs_nearly_nothing() -> None:
    modules = modules_of("--help")
    assert not modules & (HEAVY | {"attr", "pluggy", "logging", "json", "importlib.metadata"})
    ours = {name for name in modules if name.startswith("tapcore.")}
    assert ours - {"tapcore.cli.examples"} == {
        "tapcore.cli",
        "tapcore.cli.commandline",
        "tapcore.cli.failures",
        "tapcore.cli.group",
        "tapcore.cli.later",
        "tapcore.cli.main",
        "tapcore.cli.options",
        "tapcore.cli.plain",
        "tapcore.cli.signals",
        "tapcore.cli.standardstreams",
    }


def test_formats_needs_neither_drivers_nor_their_records() -> None:
    modules = modules_of("formats")
    assert not modules & (HEAVY | SLOW | {"click", "tapcore.clusters", "tapcore.files.direct"})
    assert not modules & {"tapcore.interface.models", "tapcore.interface.options"}
    assert not [name for name in modules if name.startswith("tap_")]


def test_info_needs_no_more_than_it_shows(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    modules = modules_of("info", tmp_path / "disk")
    assert not modules & (HEAVY | SLOW | {"click"})
    assert not modules & {"tapcore.nbd", "tapcore.interface.results", "tapcore.disk"}
    assert not {name for name in modules if name.startswith("tapcore.engine")}
    assert not {name for name in modules if name.startswith("tapcore.cli.commands")}


@pytest.mark.parametrize("words", ["info disk", "info ram:1M", "info nowhere", "formats"])
def test_a_plain_command_says_what_the_parsed_one_says(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    monkeypatch.chdir(tmp_path)
    plain = main(words.split()), capsys.readouterr()
    assert (main([*words.split(), "--log-level", "warning"]), capsys.readouterr()) == plain


def test_what_is_set_once_counts_for_plain_commands_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "vm").mkdir()
    tapcore.create_image(tmp_path / "pool" / "base.qcow2", "1M")
    child = tmp_path / "vm" / "child.qcow2"
    tapcore.create_image(child, parent=tmp_path / "pool" / "base.qcow2")
    assert main(["info", str(child)]) == 0
    assert "would not be opened" in capsys.readouterr().out
    monkeypatch.setenv("TAPCORE_PARENTS", str(tmp_path / "pool"))
    assert main(["info", str(child)]) == 0
    assert "would not be opened" not in capsys.readouterr().out
    monkeypatch.setenv("TAPCORE_PARENTS", "pool")
    assert main(["info", str(child)]) == 1
    assert "TAPCORE_PARENTS" in capsys.readouterr().err


def test_a_progress_bar_is_imported_on_a_terminal_only(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    modules = modules_of("convert", tmp_path / "disk", tmp_path / "copy.img")
    assert not modules & (HEAVY | SLOW) - {"ctypes"}


def test_a_short_option_that_is_none_has_no_near_ones_and_a_long_one_does(tmp_path: Path) -> None:
    """What click asks of `difflib` is loaded only where it could answer something."""
    run = [sys.executable, "-c", "from tapcore.cli.entry import run; run()", "convert"]
    for word, said in (("-X", "No such option '-X' (see"), ("--quite", "'--quiet'")):
        done = subprocess.run(
            [*run, word, "a", "b"], check=False, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 2
        assert said in done.stderr
