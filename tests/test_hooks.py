"""The table of hooks: complete, told to drivers as it is, and held by a type checker."""

import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pluggy
import pytest

from tapcore import (
    DiskDriver,
    DiskInfo,
    Hooks,
    NotSupportedError,
    Registry,
    hookimpl,
    implements,
)
from tapcore.interface.hooks import HOOKS
from tapcore.interface.models import TapDisk
from tapcore.interface.plainhooks import plain_hooks

ROOT = Path(__file__).resolve().parent.parent
DRIVERS = sorted(ROOT.glob("plugins/*/tap_*/driver.py"))

BLKTAP = (
    ("td_open", "dd name flags"),
    ("td_queue_read", "dd sector nb_sectors buf cb id prv"),
    ("td_queue_write", "dd sector nb_sectors buf cb id prv"),
    ("td_submit", "dd"),
    ("td_close", "dd"),
    ("td_do_callbacks", "dd sid"),
    ("td_get_parent_id", "dd id"),
    ("td_validate_parent", "dd p flags"),
)


@pytest.mark.parametrize(("name", "arguments"), BLKTAP)
def test_blktap_s_operations_keep_their_names_and_arguments(name: str, arguments: str) -> None:
    code = getattr(Hooks, name).__code__
    assert " ".join(code.co_varnames[: code.co_argcount]) == arguments


def test_the_table_has_every_hook_and_nothing_else() -> None:
    named = {name for name in dir(Hooks) if name.startswith("td_")}
    assert named == set(HOOKS)
    assert [row.name for row in HOOKS.values() if not row.default] == ["td_open", "td_queue_read"]
    assert all(getattr(Hooks, name).__doc__ for name in HOOKS)


def test_operations_have_a_function_for_each_hook() -> None:
    registry = Registry(discover=False)
    registry.register(Derived())
    drv = registry.operations("derived")
    assert isinstance(drv, TapDisk)
    for name in HOOKS:
        function = getattr(drv, name)
        own = name in drv.implemented
        assert own or function is getattr(Hooks, name), name


REFUSING = [name for name, row in HOOKS.items() if row.default.startswith("not supported")]
"""Without them there is an error; what it says, the tools say before they call."""


@pytest.mark.parametrize("name", REFUSING)
def test_a_missing_hook_is_told_alike_by_the_hook_and_by_the_tools(name: str) -> None:
    drv = TapDisk("tiny", (), {each: getattr(Hooks, each) for each in HOOKS})
    function = getattr(drv, name)
    with pytest.raises(NotSupportedError) as by_default:
        function(*[None] * len(inspect.signature(function).parameters))
    with pytest.raises(NotSupportedError) as told:
        drv.require(name, "image", option="-x")
    assert "this format " in by_default.value.message
    expected = by_default.value.message.replace("this format", "the format 'tiny'")
    assert (told.value.message, told.value.image) == (f"{expected} (-x)", "image")


def test_a_hook_that_a_driver_has_is_not_missed() -> None:
    TapDisk("tiny", ["td_check"], dict.fromkeys(HOOKS, print)).require("td_check", "image")


class Derived(Hooks[int]):
    """A driver that is a class; what it says of closing carries no mark."""

    disk_info = DiskInfo(handle="derived", name="a class", api=1)

    @staticmethod
    @implements(Hooks.td_open)
    def td_open(dd: DiskDriver[int], name: str, flags: int) -> None:
        dd.private = 7

    @staticmethod
    @hookimpl
    def td_queue_read(
        dd: DiskDriver[int],
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: Any,
        id: int,
        prv: Any,
    ) -> int:
        buf[:] = bytes([dd.private]) * len(buf)
        return int(cb(dd, 0, sector, nb_sectors, id, prv))

    @staticmethod
    def td_close(dd: DiskDriver[int]) -> None:
        raise AssertionError("not marked")


def test_a_derived_driver_implements_what_it_has_marked() -> None:
    registry = Registry(discover=False)
    row = registry.register(Derived())
    assert row.error == ""
    assert row.capabilities == ("read",)
    assert row.drv is not None
    assert row.drv.implemented == {"td_open", "td_queue_read"}
    assert row.drv.td_close is Hooks.td_close


ODD = {
    "fewer arguments": "def td_submit(): ...",
    "a default": "def td_submit(dd, more=None): ...",
    "any arguments": "def td_submit(*all): ...",
    "keywords": "def td_submit(dd, **more): ...",
    "a method": "class Other:\n    def td_submit(self, dd): ...\ntd_submit = Other().td_submit",
}


@pytest.mark.parametrize("body", ODD.values(), ids=[*ODD])
def test_what_is_not_plain_goes_through_pluggy(body: str) -> None:
    """And is called with what it takes."""
    driver = types.ModuleType("odd")
    start = "def td_open(dd, name, flags): ...\ndef td_queue_read(dd): ...\n"
    exec(start + body, driver.__dict__)
    for name in ("td_open", "td_queue_read", "td_submit"):
        member = getattr(driver, name)
        hookimpl(getattr(member, "__func__", member))
    driver.__dict__["disk_info"] = DiskInfo(handle="odd", name="odd", api=1)
    assert plain_hooks(driver) is None
    registry = Registry(discover=False)
    assert not registry.register(driver).error
    drv = registry.operations("odd")
    assert drv.implemented == {"td_open", "td_queue_read", "td_submit"}
    assert drv.td_submit(None) is None  # type: ignore[arg-type]


def test_the_marks_are_those_of_pluggy() -> None:
    def one() -> None: ...
    def other() -> None: ...

    hookimpl(wrapper=True, specname="td_open", tryfirst=True)(one)
    pluggy.HookimplMarker("tapcore")(wrapper=True, specname="td_open", tryfirst=True)(other)
    assert vars(one) == vars(other)
    pluggy.HookspecMarker("tapcore")(other, firstresult=True)
    assert vars(Hooks.td_open)["tapcore_spec"] == vars(other)["tapcore_spec"]


def test_a_function_of_another_name_is_refused() -> None:
    with pytest.raises(TypeError, match="td_submit cannot implement td_close"):

        @implements(Hooks.td_close)
        def td_submit(dd: DiskDriver) -> None:
            """A slip."""


@pytest.mark.parametrize("path", DRIVERS, ids=lambda path: path.parent.name)
def test_each_driver_here_has_its_hooks_checked(path: Path) -> None:
    text = path.read_text()
    assert "@implements(Hooks.td_open)" in text
    assert not re.search(r"@hookimpl\n", text)


GOOD = """\
from typing import Any
from tapcore import DiskDriver, Hooks, TdCallback, hookimpl, implements

@implements(Hooks.td_open)
def td_open(dd: DiskDriver[int], name: str, flags: int) -> None:
    dd.private += 1

@hookimpl
def td_submit(dd: DiskDriver) -> int:
    return len(dd.private)

def ask(dd: DiskDriver) -> int:
    dd.drv.td_open(dd, "name", 0)
    return dd.drv.td_submit(dd)
"""
SLIPS = (
    ("name: str", "name: int", "arg-type"),
    ("-> None:\n    dd", "-> int:\n    return dd.private\n    dd", "arg-type"),
    ('"name", 0)', '0, "name")', "arg-type"),
    ("drv.td_submit", "drv.td_sumbit", "attr-defined"),
    ("+= 1", '+= "one"', "operator"),
)
"""What is right above, what is wrong in its place, and the checker's name for that."""


def test_a_type_checker_finds_slips_in_hooks_and_in_calls(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    for number, (right, wrong, _) in enumerate(SLIPS):
        assert GOOD.count(right) == 1
        (tmp_path / f"slip{number}.py").write_text(GOOD.replace(right, wrong))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "good.py" not in done.stdout
    for number, (_, _, code) in enumerate(SLIPS):
        assert re.search(rf"slip{number}\.py:.*\[{code}\]", done.stdout), done.stdout
