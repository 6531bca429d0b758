"""Wheels of this repository and environments with some of them: built once for all workers."""

import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
CLEAN_ENV = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def run(*command: object, cwd: Path, **env: str) -> str:
    """What a command prints, which must not fail; without what Python hears from a test's own."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**CLEAN_ENV, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker makes which wants it, and all others use.

    Args:
        factory: of the test session.
        name: of the folder.
        make: fills an empty folder.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, new = base / name, base / f"{name}.new"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            make(new)
            new.rename(folder)
    return folder


def build(folder: Path, projects: Iterable[Path]) -> None:
    """As `make tool` builds them."""
    run(sys.executable, ROOT / "scripts" / "wheels.py", folder, *projects, cwd=folder)


def repository_wheels(factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of every distribution of this repository, by the distribution's name."""
    sources = [ROOT, *(ROOT / "plugins" / plugin for plugin in PLUGINS)]
    folder = made_once(factory, "wheels", lambda new: build(new, sources))
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.iterdir()}


class Environment:
    """A virtual environment that sees nothing of the one that the tests run in.

    What is installed into it are wheels. What they say that they require is lent, as it is
    installed here: no index is asked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)

    def install(self, *wheels: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
        how = ["install", "-q", "--no-index", "--no-deps"]
        run(*pip, self.folder / "bin" / "python", *how, *wheels, cwd=self.folder)
        needed = {name for wheel in wheels for name in _required_by(wheel)}
        self.lend(*(name for name in needed if not name.startswith(("tapcore", "tap-"))))

    def lend(self, *names: str) -> None:
        """Let distributions of the tests' own environment be seen, with all that they require."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        for name in _closure(*names):
            distribution = importlib.metadata.distribution(name)
            tops = {path.parts[0] for path in distribution.files or ()} - {"..", "__pycache__"}
            for top in tops:
                if not (site / top).exists():
                    (site / top).symlink_to(Path(str(distribution.locate_file(top))))

    def run(self, *command: object, cwd: Path) -> str:
        return run(self.folder / "bin" / str(command[0]), *command[1:], cwd=cwd)


def _required_by(wheel: Path) -> set[str]:
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    return set(_applying(found.requires or ()))


def _applying(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _closure(*names: str) -> set[str]:
    """Distributions, and all that they require here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _applying(importlib.metadata.requires(name) or ())
    return found
