"""The conformance sheet: what the kit found of a driver, as data for its package.

    python -m tapcore.testkit --sheet mypackage/tapcore-conformance.json tests

runs pytest, and writes the sheet when it is over. `tapdisk formats --long HANDLE` shows it, without
running anything, where it lies in the package that the entry point names.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest

from tapcore.testkit.contract import DriverContract
from tapcore.testkit.running import checks_of
from tapcore.testkit.subject import SEED, Subject

_WORSE: Final = ("not for it", "passed", "left out", "failed")
"""What comes later wins, where a check was run several times."""


def all_checks() -> list[str]:
    """Every check of the kit, in words: "a power loss leaves what was flushed"."""
    return [in_words(name) for name in checks_of(DriverContract)]


def in_words(name: str) -> str:
    """The name of a check without its underscores."""
    return name.removeprefix("test_").replace("_", " ")


class SheetWriter:
    """A plugin of pytest that notes what came of the checks.

    Args:
        path: where the sheet is written.
        handle: of the driver; empty: the one that is tested, of several the first.

    Attributes:
        written: there is a sheet.
    """

    def __init__(self, path: str | Path, handle: str = "") -> None:
        self.path, self.handle = Path(path), handle
        self.outcomes = dict.fromkeys(all_checks(), _WORSE[0])
        self.written = False
        self._checks: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Which of the tests are checks of the kit."""
        for item in session.items:
            cls: Any = getattr(item, "cls", None)
            if not isinstance(cls, type) or not issubclass(cls, Subject):
                continue
            self.handle = self.handle or cls.handle
            name = in_words(getattr(item, "originalname", None) or item.name)
            if cls.handle == self.handle and name in self.outcomes:
                self._checks[item.nodeid] = name

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One part of one test is over."""
        name = self._checks.get(report.nodeid)
        if name is None or (report.when != "call" and report.passed):
            return
        outcome = "left out" if report.skipped else report.outcome
        before = self.outcomes[name]
        self.outcomes[name] = max(before, outcome, key=_WORSE.index)

    def pytest_sessionfinish(self) -> None:
        """Write it; nothing where no check was run."""
        if self._checks:
            self.written = True
            self.path.write_text(json.dumps(self.as_dict(), indent=2) + "\n")

    def as_dict(self) -> dict[str, str]:
        """The sheet: what was tested, and each check with what came of it."""
        return {
            "driver": self.handle,
            "test kit": f"tapcore {metadata.version('tapcore')}",
            "seed": SEED,
            **self.outcomes,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pytest with the arguments that are left, and write the sheet where one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tapcore.testkit", allow_abbrev=False)
    parser.add_argument("--sheet", metavar="FILE", help="write the conformance sheet there")
    parser.add_argument("--handle", default="", help="of the driver, where several are tested")
    options, rest = parser.parse_known_args(arguments)
    if not options.sheet:
        return int(pytest.main(rest))
    writer = SheetWriter(options.sheet, options.handle)
    status = int(pytest.main(rest, plugins=[writer]))
    if not writer.written:
        print(
            "no sheet: no check of the kit ran in this process (nor does it with -n)",
            file=sys.stderr,
        )
    return status or int(not writer.written)
