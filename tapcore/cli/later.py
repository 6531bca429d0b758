"""Modules that others import at their top and mostly do not use: loaded at the first use.

For a process with one thread: before Python 3.12 two that meet at the first use could see the half
of a module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _Later:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def load_later(names: Sequence[str]) -> None:
    """From now on an import of these loads nothing until something of theirs is asked for.

    Args:
        names: of modules; those that are imported already stay as they are.
    """
    sys.meta_path.insert(0, _Later(names))
