"""`tapdisk new-plugin`: what it writes installs, is found, keeps the contract, and serves.

In an environment of wheels alone: tapcore's and the new packages', built here; what they need from
others is lent from the environment that the tests run in. No index is asked.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import attrs
import pytest

from builtwheels import CLEAN_ENV, Environment, build, repository_wheels, run
from peers import peer
from tapcore import UsageError
from tapcore.cli.main import main
from tapcore.interface.registry import Registry
from tapcore.tools.newplugin import Door, new_plugin

DOORS: tuple[Door, ...] = ("simple", "map", "hooks")


@attrs.frozen
class Clean:
    """An environment with the core and the new packages.

    Attributes:
        environment: it.
        packages: folders of the new packages.
    """

    environment: Environment
    packages: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        return self.environment.folder

    def run(self, *command: object, cwd: Path) -> str:
        return self.environment.run(*command, cwd=cwd)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    work = tmp_path_factory.mktemp("new")
    empty = Registry(discover=False)
    packages = [
        Path(new_plugin(f"n{door}", door, directory=str(work), registry=empty).folder)
        for door in DOORS
    ]
    dist = work / "dist"
    dist.mkdir()
    build(dist, packages)
    environment = Environment(work / "venv")
    environment.install(repository_wheels(tmp_path_factory)["tapcore"], *dist.glob("*.whl"))
    environment.lend("pytest")
    return Clean(environment, tuple(packages))


@pytest.mark.timeout(400)  # it builds, and checks types without a cache
def test_what_is_written_is_a_plugin_that_works(clean: Clean, tmp_path: Path) -> None:
    """Found by `formats`, sound for the doctor, the kit and mypy; it serves to qemu-io."""
    handles = {f"n{door}" for door in DOORS}
    rows = json.loads(clean.run("tapdisk", "formats", "--json", cwd=tmp_path))
    assert {row["handle"]: row["error"] for row in rows} == dict.fromkeys(handles)
    assert all({"read", "write", "create"} <= {*row["capabilities"]} for row in rows)
    for row in json.loads(clean.run("tapdisk", "plugins", "doctor", "--json", cwd=tmp_path)):
        assert (row["problems"], row["remarks"]) == ([], [])
    tests = [package / "tests" for package in clean.packages]
    printed = clean.run("python", "-m", "pytest", "-q", "-pno:cacheprovider", *tests, cwd=tmp_path)
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None
    assert int(passed[1]) > 60, printed
    checked = [package / package.name.replace("-", "_") for package in clean.packages]
    python = clean.folder / "bin" / "python"
    mypy = ["--strict", "--cache-dir", tmp_path / "cache", "--python-executable", python]
    run(sys.executable, "-m", "mypy", *mypy, *checked, cwd=tmp_path)
    for handle in sorted(handles):
        clean.run("tapdisk", "create", f"{handle}:disk.{handle}", "8M", cwd=tmp_path)
        serve_and_write(clean, tmp_path, f"disk.{handle}")


def test_it_needs_nothing_but_the_wheels(clean: Clean, tmp_path: Path) -> None:
    """And says what to do next."""
    printed = clean.run("tapdisk", "new-plugin", "foo", "--map", cwd=tmp_path).splitlines()
    assert "wrote ./tap-foo/tap_foo/driver.py" in printed
    assert [line.split()[0] for line in printed[-3:]] == ["pip", "pytest", "tapdisk"]
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {f"wrote ./{path}" for path in written} == {*printed[:-4]}


def serve_and_write(clean: Clean, folder: Path, image: str) -> None:
    commands = ("write -P 7 1000 100000", "flush", "read -P 7 1000 100000", "read -P 0 4M 1M")
    words = [word for command in commands for word in ("-c", command)]
    with subprocess.Popen(
        [clean.folder / "bin" / "tapdisk", "serve", image, "--socket", folder / "s"],
        cwd=folder,
        env=CLEAN_ENV,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            uri = server.stdout.readline().strip()
            said = run(peer("qemu-io"), "-f", "raw", *words, uri, cwd=folder)
        finally:
            server.terminate()
            assert server.wait(30) == 0
    assert not re.search("failed|error", said, re.IGNORECASE), said


def test_one_that_is_only_read_keeps_the_contract_too(tmp_path: Path) -> None:
    folders = []
    for door in DOORS:
        made = new_plugin(f"r{door}", door, read_only=True, directory=str(tmp_path))
        folder = Path(made.folder)
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        ((name, value),) = project["entry-points"]["tapcore.drivers"].items()
        records = folder / f"tap_{name}-0.1.0.dist-info"
        records.mkdir()
        (records / "METADATA").write_text(f"Name: {folder.name}\nVersion: 0.1.0\n")
        (records / "entry_points.txt").write_text(f"[tapcore.drivers]\n{name} = {value}\n")
        folders.append(str(folder))
    path = os.pathsep.join(folders)
    tests = [f"{folder}/tests" for folder in folders]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    printed = run(*command, cwd=tmp_path, PYTHONPATH=path)
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None
    assert int(passed[1]) > 30, printed
    doctor = [Path(sys.executable).parent / "tapdisk", "plugins", "doctor", "--json"]
    rows = json.loads(run(*doctor, cwd=tmp_path, PYTHONPATH=path))
    mine = [row for row in rows if row["name"] in {f"r{door}" for door in DOORS}]
    assert [(row["problems"], row["remarks"]) for row in mine] == [([], [])] * 3


@pytest.mark.parametrize("name", ["", "Big", "7up", "a-b", "tencharsxx", "../x", "tap-"])
def test_what_cannot_be_a_handle_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a handle"):
        new_plugin(name, directory=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tap-foo").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        new_plugin("foo", directory=str(tmp_path))
    with pytest.raises(UsageError, match="'aio' is taken"):
        new_plugin("tap-aio", directory=str(tmp_path))


def test_one_door_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "foo", "--simple", "--map"]) == 2
    assert "--simple and --map do not go together" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
