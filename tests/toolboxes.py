"""Clients of NBD that were installed with this system, and those of a newer Debian beside it.

`scripts/newer-peers.sh DIR` makes the second set; it is used where TAPCORE_NEWER_PEERS=DIR says so.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

from peers import missing, peer

NEWER = os.environ.get("TAPCORE_NEWER_PEERS", "")


@attrs.frozen
class Toolbox:
    """A set of clients.

    Attributes:
        name: for the test's.
        start: what a command begins with, before the program.
        folder: of the programs; None: those that are installed.
        python: one that has libnbd.
        home: where that one's library is, if not where it says.
        extended: they speak extended headers.
    """

    name: str
    start: Sequence[str] = ()
    folder: Path | None = None
    python: str = "/usr/bin/python3"
    home: str = ""
    extended: bool = False

    def command(self, program: str) -> list[str]:
        """The words that a command line of a program begins with."""
        if self.folder is None:
            return [peer(program)]
        for place in ("bin", "sbin"):
            if (found := self.folder / place / program).exists():
                return [*self.start, str(found)]
        pytest.fail(f"TAPCORE_NEWER_PEERS has no {program}")

    def run(self, program: str, *words: object, status: int = 0) -> str:
        """What a program prints; both outputs where it is to fail."""
        return _run([*self.command(program), *map(str, words)], status=status)

    def nbdsh(self, code: str, status: int = 0, debug: bool = False) -> str:
        """Python with libnbd: `nbd`, and `h`, a handle."""
        home = {"PYTHONHOME": self.home} if self.home else {}
        environment = {**os.environ, **home, "LIBNBD_DEBUG": str(int(debug))}
        has = "import nbd\nh = nbd.NBD()\n"
        done = subprocess.run(
            [*self.start, self.python, "-c", "import nbd"], env=environment, capture_output=True
        )
        if done.returncode:
            missing("there is no libnbd for Python (Debian package python3-libnbd)")
        return _run([*self.start, self.python, "-c", has + code], status, environment)


def _run(words: list[str], status: int = 0, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, (words, done.stdout, done.stderr)
    return done.stdout if not status else done.stdout + done.stderr


def _newer() -> Toolbox:
    root = Path(NEWER)
    [loader] = [*root.glob("lib64/ld-linux-*.so.*"), *root.glob("lib/ld-linux-*.so.*")][:1]
    libraries = ":".join(map(str, [*root.glob("usr/lib/*-linux-gnu"), root / "usr/lib"]))
    return Toolbox(
        "newer",
        start=(str(loader), "--library-path", libraries),
        folder=root / "usr",
        python=str(root / "usr/bin/python3"),
        home=str(root / "usr"),
        extended=True,
    )


def toolbox(name: str) -> Toolbox:
    """The clients "installed", or "newer"; without the latter the test is skipped."""
    if name == "installed":
        return Toolbox("installed")
    if not NEWER:
        pytest.skip("TAPCORE_NEWER_PEERS says no folder (scripts/newer-peers.sh makes it)")
    return _newer()
