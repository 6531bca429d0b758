"""Modules that others import at their top and mostly do not use: loaded at the first use.

As `importlib.util.LazyLoader`, which in Python 3.11 loads a module as soon as a second one imports
it, and itself costs a tenth of a short command. For a process with one thread: two that meet at the
first use could see the half of a module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from importlib.abc import Loader
    from typing import Any


class _NotLoaded(ModuleType):
    """A module that has nothing but what an import looks at."""

    def __getattr__(self, name: str) -> Any:
        spec: Any = self.__spec__
        loader = self.__loader__ = spec.loader = spec.loader.loader
        self.__class__ = ModuleType  # type: ignore[assignment]
        loader.exec_module(self)
        return getattr(self, name)


class _Later:
    """Stands for a module's loader until that has something to do."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _NotLoaded


class _Finder:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)  # type: ignore[assignment]
        return spec


def load_later(names: Sequence[str]) -> None:
    """From now on an import of these loads nothing until something of theirs is asked for.

    Args:
        names: of modules; those that are imported already stay as they are.
    """
    sys.meta_path.insert(0, _Finder(names))
