"""What `make dist` builds is complete: each distribution alone, in a clean environment."""

import json
import re
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

from builtwheels import PLUGINS, ROOT, Environment, repository_wheels
from tapcore.cli.group import COMMANDS


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return repository_wheels(tmp_path_factory)


class WithTapdisk(Environment):
    def tapdisk(self, *arguments: str) -> str:
        said = self.run("tapdisk", *arguments, cwd=self.folder)
        assert "Traceback" not in said
        return said

    def formats(self) -> list[dict[str, Any]]:
        found = json.loads(self.tapdisk("formats", "--json"))
        assert isinstance(found, list)
        return found


@pytest.fixture
def environment(tmp_path: Path) -> WithTapdisk:
    return WithTapdisk(tmp_path / "clean")


def test_all_distributions_are_built(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {"tapcore", *PLUGINS}
    assert set(wheels) >= {"tap-aio", "tap-ram", "tap-sync"}


def test_the_wheel_has_the_man_pages(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["tapcore"]) as wheel:
        pages = {Path(name).name for name in wheel.namelist() if "/data/share/man/man1/" in name}
        (convert,) = (name for name in wheel.namelist() if name.endswith("tapdisk-convert.1"))
        text = wheel.read(convert).decode()
    assert pages == {"tapdisk.1", *(f"tapdisk-{name}.1" for name in COMMANDS)}
    assert ".SH EXIT STATUS" in text


@pytest.mark.parametrize("name", ["tapcore", *PLUGINS])
def test_a_registry_can_show_what_a_distribution_says(name: str, wheels: dict[str, Path]) -> None:
    """`make dist` has twine look at it as well; links within the repository lead nowhere there."""
    with zipfile.ZipFile(wheels[name]) as wheel:
        (path,) = (each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
        facts = message_from_string(wheel.read(path).decode())
    assert facts["Summary"]
    assert facts["License-Expression"] == "LGPL-2.1-or-later"
    assert facts["Description-Content-Type"] == "text/markdown"
    assert "Topic :: System :: Filesystems" in facts.get_all("Classifier", [])
    if name != "tapcore":
        text = str(facts.get_payload())
        assert re.search(rf"pip install '?{name}\b", text)
        assert not re.search(r"\]\((?!https:)", text)


def modules(name: str) -> set[str]:
    """The modules of a distribution, those of its sub-packages too, as a wheel names them."""
    source = ROOT if name == "tapcore" else ROOT / "plugins" / name
    package = name.replace("-", "_")
    return {str(path.relative_to(source)) for path in (source / package).rglob("*.py")}


@pytest.mark.parametrize("name", ["tapcore", *PLUGINS])
def test_a_wheel_holds_its_package_and_nothing_else(wheels: dict[str, Path], name: str) -> None:
    package = name.replace("-", "_")
    with zipfile.ZipFile(wheels[name]) as wheel:
        names = wheel.namelist()
    info = f"{package}-0.1.0.dist-info"
    pages = {f"{package}-0.1.0.data"} if name == "tapcore" else set()
    assert {path.split("/")[0] for path in names} == {package, info, *pages}
    assert f"{package}/py.typed" in names
    assert {path for path in names if path.endswith(".py")} == modules(name)
    assert f"{info}/licenses/LICENSE" in names
    project = (ROOT if name == "tapcore" else ROOT / "plugins" / name) / "pyproject.toml"
    drivers = '"tapcore.drivers"]' in project.read_text()
    assert (f"{package}/tapcore-drivers.json" in names) == drivers


def test_core_alone(wheels: dict[str, Path], environment: WithTapdisk) -> None:
    environment.install(wheels["tapcore"])
    assert environment.formats() == []
    text = environment.tapdisk("formats")
    assert "no driver" in text.lower()
    assert "pip install" in text  # and what to do about it


def test_core_with_one_plugin_then_two(wheels: dict[str, Path], environment: WithTapdisk) -> None:
    environment.install(wheels["tapcore"], wheels["tap-sync"])
    [sync] = environment.formats()
    assert sync["handle"] == "sync"
    assert sync["distribution"] == "tap-sync"
    assert sync["version"] == "0.1.0"
    assert sync["error"] is None
    assert {"read", "write"} <= set(sync["capabilities"])
    assert "sync" in environment.tapdisk("formats")

    environment.install(wheels["tap-ram"])
    assert {row["handle"]: row["error"] for row in environment.formats()} == {
        "ram": None,
        "sync": None,
    }
