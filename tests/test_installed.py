"""Entry points are found as importlib.metadata finds them, wherever distributions lie."""

import importlib.metadata
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapcore import Registry
from tapcore.interface import installed

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution's records into a folder, and that at the end of the path."""

    def put(record: str, entry_points: str, folder: str = "one") -> Path:
        where = tmp_path / folder / record
        where.mkdir(parents=True)
        name, _, version = record.removesuffix(".dist-info").partition("-")
        (where / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        (where / "entry_points.txt").write_text(entry_points)
        if str(where.parent) not in sys.path:
            monkeypatch.setattr(sys, "path", [*sys.path, str(where.parent)])
        return where

    return put


def found(group: str) -> list[tuple[str, str]]:
    return sorted((ep.name, ep.value) for ep in installed.entry_points(group))


def by_metadata(group: str) -> list[tuple[str, str]]:
    return sorted((ep.name, ep.value) for ep in importlib.metadata.entry_points(group=group))


@pytest.mark.parametrize("group", ["tapcore.drivers", "console_scripts", "pytest11", "nobody.has"])
def test_what_is_installed_here_is_found_as_by_importlib_metadata(group: str) -> None:
    assert found(group) == by_metadata(group)


def test_comments_spaces_extras_and_other_groups(install: Install) -> None:
    text = "# said by hand\n[some.group]\n a = b.c : d.e [extra]\n\n#x = y\nf=g\n"
    install("thing-1.dist-info", text + "[some.group.more]\nh=i\n")
    assert found("some.group") == [("a", "b.c : d.e [extra]"), ("f", "g")]
    assert found("some.group") == by_metadata("some.group")


def test_of_two_distributions_with_one_name_the_first_on_the_path_counts(install: Install) -> None:
    install("some_thing-1.dist-info", "[some.group]\na = first\n")
    install("Some.Thing-2.dist-info", "[some.group]\na = second\n", folder="two")
    assert found("some.group") == by_metadata("some.group") == [("a", "first")]


def test_a_folder_of_a_source_checkout_counts(install: Install) -> None:
    install("some_thing.egg-info", "[some.group]\na = first\n")
    install("some_thing-2.dist-info", "[some.group]\na = second\n", folder="two")
    assert found("some.group") == by_metadata("some.group") == [("a", "first")]


def test_an_archive_on_the_path_is_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("thing-1.dist-info/METADATA", "Name: thing\nVersion: 1\n")
        file.writestr("thing-1.dist-info/entry_points.txt", "[some.group]\na = b\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(archive)])
    assert found("some.group") == [("a", "b")]


def test_a_finder_of_its_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            texts = {"METADATA": "Name: thing\n", "entry_points.txt": "[some.group]\na = b\n"}
            return texts.get(filename)

        def locate_file(self, path: Any) -> Any:
            raise FileNotFoundError(path)

    class Finder:
        @staticmethod
        def find_spec(*_: object) -> None:
            return None

        @staticmethod
        def find_distributions(*_: object) -> list[Thing]:
            return [Thing()]

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert found("some.group") == [("a", "b")]


def test_loading_gives_the_module_or_its_attribute(install: Install) -> None:
    install("thing-1.dist-info", "[some.group]\na = os.path\nb = os.path : join\nc = json:x.y\n")
    points = {ep.name: ep for ep in installed.entry_points("some.group")}
    assert points["a"].load() is __import__("os").path
    assert points["b"].load() is __import__("os").path.join
    with pytest.raises(AttributeError):
        points["c"].load()


def test_the_distribution_is_known(install: Install) -> None:
    install("thing-1.5.dist-info", "[some.group]\na = b\n")
    (point,) = installed.entry_points("some.group")
    assert (point.dist.name, point.dist.version) == ("thing", "1.5")


@pytest.mark.parametrize("text", ["[some.group]\nno value\n", "[some.group\n", "\0"])
def test_broken_records_break_nothing_but_themselves(install: Install, text: str) -> None:
    install("broken-1.dist-info", text)
    install("good-1.dist-info", "[some.group]\na = json\n")
    points = {ep.name: ep for ep in installed.entry_points("some.group")}
    assert points.pop("a").load() is __import__("json")
    for point in points.values():
        with pytest.raises(ValueError, match="module name"):
            point.load()


def test_a_path_object_on_the_path_is_no_obstacle(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("thing-1.dist-info", "[some.group]\na = b\n")
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    assert found("some.group") == [("a", "b")]


def test_discovering_again_with_an_archive_on_the_path_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    before = [row.handle for row in registry.table()]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.writestr("thing-1.dist-info/METADATA", "Name: thing\nVersion: 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "all.zip")])
    registry.discover()
    assert [row.handle for row in registry.table()] == before
