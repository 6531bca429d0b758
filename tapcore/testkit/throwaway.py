"""A driver that is installed for one test, without pip, and `tapdisk` that finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

_TAPDISK = "import sys; from tapcore.cli.entry import run; sys.exit(run())"


@attrs.frozen
class ThrowAway:
    """A folder that programs started by `run` have on their path, as if pip had filled it.

    Attributes:
        site: the folder.
    """

    site: Path

    def install(
        self,
        handle: str,
        target: str,
        sources: Mapping[str, str],
        *,
        distribution: str = "",
        version: str = "0",
    ) -> None:
        """Install a driver: its files, and the entry point that makes it one.

        Args:
            handle: of the driver.
            target: what the entry point names: `MODULE` or `MODULE:CLASS`.
            sources: the files, by their paths below the folder.
            distribution: its name; empty: "tap-HANDLE".
            version: of the distribution.
        """
        name = distribution or f"tap-{handle}"
        facts = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        files = {
            **sources,
            f"{facts.name}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{facts.name}/entry_points.txt": f"[tapcore.drivers]\n{handle} = {target}\n",
        }
        for path, content in files.items():
            place = self.site / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)

    def run(
        self, *words: str | Path, cwd: str | Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that finds what is installed; it may fail.

        Args:
            words: the command line.
            cwd: the folder to run it in; the site's own by default.
            timeout: seconds until it is killed.
        """
        path = os.pathsep.join(filter(None, (str(self.site), os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            [str(word) for word in words],
            cwd=cwd or self.site,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def tapdisk(
        self, *words: str | Path, cwd: str | Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `tapdisk` with these arguments."""
        return self.run(sys.executable, "-c", _TAPDISK, *words, cwd=cwd, timeout=timeout)


@pytest.fixture
def throw_away(tmp_path: Path) -> ThrowAway:
    """A place for drivers of this test; import the fixture in the test's `conftest.py`."""
    site = tmp_path / "site"
    site.mkdir()
    return ThrowAway(site)
