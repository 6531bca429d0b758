"""The kit without pytest's command line: every check of one class, and what came of each."""

from __future__ import annotations

import inspect
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Literal

import attrs
import pytest

from tapcore.testkit.subject import SEED, Subject

Outcome = Literal["passed", "failed", "left out"]


@attrs.frozen
class Result:
    """What came of one check with one size and cache mode.

    Attributes:
        check: its name, without "test_".
        case: size and cache mode, as pytest shows them: "512-writeback"; "" where it has none.
        outcome: "passed", "failed" or "left out".
        message: why it failed or was left out.
    """

    check: str
    case: str
    outcome: Outcome
    message: str = ""


def checks_of(cls: type[Subject]) -> list[str]:
    """The names of the checks that apply to a class's driver, without "test_"."""
    names = [name for name in dir(cls) if name.startswith("test_")]
    return [name.removeprefix("test_") for name in names if callable(getattr(cls, name))]


def run_checks(cls: type[Subject], only: tuple[str, ...] = ()) -> Iterator[Result]:
    """Run the checks of a class in this process, each in a new folder.

    What is random is as with pytest: by `TAPCORE_SEED` and the check's name.

    Args:
        cls: a subclass of `DriverContract`.
        only: names of checks; all by default.
    """
    for name in checks_of(cls):
        if only and name not in only:
            continue
        for case in _cases(cls, getattr(cls, f"test_{name}")):
            label = "-".join(map(str, case.values()))
            outcome, message = _run(cls, f"test_{name}", case, label)
            yield Result(name, label, outcome, message)


def _cases(cls: type[Subject], check: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """As `pytest_generate_tests` makes them."""
    takes = inspect.signature(check).parameters
    for size in cls.sizes if "size" in takes else (None,):
        for cache in cls.cache_modes if "cache" in takes else (None,):
            given = {"size": size, "cache": cache}
            yield {name: value for name, value in given.items() if name in takes}


def _run(cls: type[Subject], name: str, case: dict[str, Any], label: str) -> tuple[Outcome, str]:
    subject = cls()
    check = getattr(subject, name)
    if "rng" in inspect.signature(check).parameters:
        node = f"{name}[{label}]" if label else name
        case = {**case, "rng": random.Random(f"{SEED} {node}")}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        subject.folder = os.path.realpath(folder)
        try:
            check(**case)
        except pytest.skip.Exception as exc:
            return "left out", str(exc.msg)
        except pytest.fail.Exception as exc:
            return "failed", str(exc.msg)
        except Exception as exc:
            return "failed", f"{type(exc).__name__}: {exc}"
    return "passed", ""
