"""Which drivers may be used: what a user leaves out, bad releases, versions of the hooks."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pluggy
import pytest
from drivers.broken import Tiny, info

from tapcore import Registry, UnknownHandleError, UsageError
from tapcore.cli.main import main
from tapcore.interface import knownbad, misfits
from tapcore.interface.badrelease import BadRelease
from tapcore.interface.hooks import HOOKS, PROJECT, hookimpl
from tapcore.interface.hooks.table import hook
from tapcore.interface.registry import default_registry
from tapcore.interface.selection import ONLY_THESE, Selection


def handles(capsys: pytest.CaptureFixture[str]) -> dict[str, str | None]:
    return {row["handle"]: row["error"] for row in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("name", ["qcow2", "tap-qcow2", "Tap_Qcow2"])
def test_a_driver_is_left_out_by_handle_or_package(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert main(["formats", "--json", "--no-plugin", name]) == 0
    found = handles(capsys)
    assert found["qcow2"] == "left out by --no-plugin qcow2"
    assert found["aio"] is None
    assert main(["--no-plugin", name, "create", str(tmp_path / "a.qcow2"), "1M"]) == 1
    said = "a.qcow2: the driver 'qcow2' cannot be used: left out by --no-plugin qcow2\n"
    assert capsys.readouterr().err.endswith(said)
    assert "qcow2" in default_registry()


def test_several_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--no-plugin", "vhd", "formats", "--json", "--no-plugin", "tap-vdi"]) == 0
    assert {name for name, error in handles(capsys).items() if error} == {"vhd", "vdi"}


def test_who_asks_for_one_that_is_left_out_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "ram:1M", "--no-plugin", "ram"]) == 1
    said = "the driver 'ram' cannot be used: left out by --no-plugin ram"
    assert said in capsys.readouterr().err


def test_a_name_that_nothing_has_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["formats", "--no-plugin", "qcow3"]) == 1
    assert "--no-plugin: no driver 'qcow3' is installed (there are: aio," in capsys.readouterr().err
    monkeypatch.setenv(ONLY_THESE, "aio,vmkd")
    with pytest.raises(UsageError, match="TAPCORE_PLUGINS: no driver 'vmkd' is installed"):
        Registry()


def test_only_these_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ONLY_THESE, " aio, tap-vmdk ,")
    registry = Registry()
    assert [row.handle for row in registry.drivers()] == ["aio", "vmdk"]
    with pytest.raises(UnknownHandleError, match="left out: TAPCORE_PLUGINS does not name it"):
        registry.get("qcow2")
    assert "ram" not in Registry(selection=Selection(None, ("ram",)))
    monkeypatch.setenv(ONLY_THESE, "")
    assert "qcow2" in Registry()


def test_what_is_left_out_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\nfrom tapcore import Registry\nregistry = Registry()\n"
        "print([i.handle for i in registry.drivers()], [m for m in sys.modules if m[:4] == 'tap_'])"
    )
    monkeypatch.setenv(ONLY_THESE, "ram")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['ram'] []\n"


# ---- releases that are known to be bad ---------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "below", "bad"),
    [
        ("0.1.0", "0.2", True),
        ("0.2", "0.2.0", False),
        ("0.2.1", "0.2", False),
        ("0.10", "0.9", False),
        ("1.0rc1", "1.0.1", True),
        ("0.1.0+local", "0.1.1", True),
        ("", "1", True),
    ],
)
def test_a_release_known_to_be_bad(
    monkeypatch: pytest.MonkeyPatch, version: str, below: str, bad: bool
) -> None:
    row = BadRelease("tap-mine", below, "loses what was flushed: pip install -U tap-mine")
    monkeypatch.setattr(knownbad, "KNOWN_BAD", (row,))
    text = f"Tap.Mine {version} is known to be bad: {row.reason}"
    assert knownbad.reason("Tap.Mine", version) == (text if bad else "")
    assert knownbad.reason("tap-other", version) == ""


def test_it_is_not_loaded_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knownbad, "KNOWN_BAD", (BadRelease("tap-ram", "99", "forgets"),))
    registry = Registry()
    with pytest.raises(UnknownHandleError, match=r"tap-ram \d\S* is known to be bad: forgets"):
        registry.get("ram")
    assert "aio" in registry


# ---- versions of the hooks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "said"),
    [
        (2, ""),
        (3, ""),
        (4, "was written for version 4 of the hooks, this is version 3, which takes 2 and later"),
        (1, "was written for version 1 of the hooks, this is version 3, which takes 2 and later"),
    ],
)
def test_the_core_takes_a_range_of_versions(
    monkeypatch: pytest.MonkeyPatch, api: int, said: str
) -> None:
    monkeypatch.setattr(misfits, "HOOKS_VERSION", 3)
    monkeypatch.setattr(misfits, "OLDEST_HOOKS_VERSION", 2)
    driver = Tiny("tiny")
    driver.disk_info = info("tiny", api=api)
    assert Registry(discover=False).register(driver).error == said


@pytest.fixture
def retired() -> Iterator[pluggy.PluginManager]:
    """A table with a hook, and an argument of another, that will go."""
    before = dict(HOOKS)

    class Table:
        @staticmethod
        @hook("nothing", retiring="in 0.4; td_open takes its place")
        def td_old(dd: Any) -> None: ...

        @staticmethod
        @hook("nothing", retiring_arguments={"id": "in 0.4"})
        def td_other(dd: Any, id: int) -> None: ...

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Table)
    yield manager
    HOOKS.clear()
    HOOKS.update(before)


def test_who_has_a_hook_that_will_go_is_warned(retired: pluggy.PluginManager) -> None:
    class Driver:
        @hookimpl
        def td_old(self, dd: Any) -> None: ...

        @hookimpl
        def td_other(self, id: int) -> None: ...

    with pytest.warns(DeprecationWarning, match="will go in 0.4") as said:
        retired.register(Driver())
    assert sorted(str(warning.message) for warning in said) == [
        "td_old will go in 0.4; td_open takes its place",
        "td_other(id) will go in 0.4",
    ]


def test_nobody_else_is_warned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Registry(discover=False).register(Tiny("tiny")).error
    assert [name for name, row in HOOKS.items() if row.retiring] == []
