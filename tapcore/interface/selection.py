"""Which of the drivers that are installed may be used: what a user leaves out, and what is bad."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from tapcore.errors import UsageError
from tapcore.interface.installed import normalized

ONLY_THESE: Final = "TAPCORE_PLUGINS"
"""Environment variable: drivers that may be used, separated by commas; no others."""


class Selection(NamedTuple):
    """What a user says of plugins, by handles or names of distributions (`qcow2`, `tap-qcow2`).

    Attributes:
        only: none but these; None: all.
        without: these are left out.
    """

    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    @classmethod
    def of_environment(
        cls, without: Iterable[str] = (), environment: Mapping[str, str] = os.environ
    ) -> Selection:
        """What `TAPCORE_PLUGINS` says; empty or missing: all.

        Args:
            without: to be left out besides.
            environment: of the process.
        """
        names = [name.strip() for name in environment.get(ONLY_THESE, "").split(",")]
        only = tuple(filter(None, names)) or None
        return cls(only, tuple(without))

    @property
    def takes_all(self) -> bool:
        """Nothing is left out."""
        return self.only is None and not self.without

    def reason_against(self, handle: str, distribution: str) -> str:
        """Why a driver is left out; "" where it is not.

        Args:
            handle: of the driver.
            distribution: that brought it.
        """
        if any(_means(name, handle, distribution) for name in self.without):
            return f"left out by --no-plugin {handle}"
        if self.only is None or any(_means(name, handle, distribution) for name in self.only):
            return ""
        return f"left out: {ONLY_THESE} does not name it"

    def check(self, installed: Iterable[tuple[str, str]]) -> None:
        """Find names that mean nothing.

        Args:
            installed: handle and distribution of all drivers.

        Raises:
            UsageError: one of the names is of no driver that is installed.
        """
        found = list(installed)
        for where, names in ((ONLY_THESE, self.only or ()), ("--no-plugin", self.without)):
            for name in names:
                if not any(_means(name, *each) for each in found):
                    known = ", ".join(sorted({handle for handle, _ in found}))
                    text = f"{where}: no driver '{name}' is installed (there are: {known})"
                    raise UsageError(text)


def _means(name: str, handle: str, distribution: str) -> bool:
    return name == handle or normalized(name) == normalized(distribution)
