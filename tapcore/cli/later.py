"""Modules that others import at their top and mostly do not use: loaded at the first use.

As `importlib.util.LazyLoader`, which in Python 3.11 loads a module as soon as a second one imports
it, and itself costs a tenth of a short command. One thread loads it, and others wait for that.
"""

from __future__ import annotations

import sys
from _thread import RLock
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from typing import Any

_loading = RLock()
_then: dict[str, Callable[[], object]] = {}
"""What is to be done when a module is loaded."""


class _NotLoaded(ModuleType):
    """A module that has nothing but what an import looks at, and what is known of it."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # asked by each `from ... import`; a package has it from the start
            raise AttributeError(name)
        with _loading:
            spec: Any = self.__spec__
            if type(self) is _NotLoaded and isinstance(spec.loader, _Later):
                loader = self.__loader__ = spec.loader = spec.loader.loader
                loader.exec_module(self)
                self.__class__ = ModuleType  # type: ignore[assignment]
                if (then := _then.pop(self.__name__, None)) is not None:
                    then()
        return ModuleType.__getattribute__(self, name)


class _Later:
    """Stands for a module's loader until that has something to do."""

    def __init__(self, loader: Loader, known: Mapping[str, Any]) -> None:
        self.loader = loader
        self._known = known

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._known)
        module.__class__ = _NotLoaded


class _Finder:
    def __init__(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader, self._modules[fullname])  # type: ignore[assignment]
        return spec


def load_later(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """From now on an import of these loads nothing until something of theirs is asked for.

    Args:
        modules: by name; each with what can be had of it without loading it. Those that are
            imported already stay as they are.
    """
    sys.meta_path.insert(0, _Finder(modules))


def when_loaded(name: str, then: Callable[[], object]) -> None:
    """Do something as soon as a module is loaded: now, unless that is put off.

    Args:
        name: of the module, which was imported.
        then: what is to be done.
    """
    if type(sys.modules.get(name)) is _NotLoaded:
        _then[name] = then
    else:
        then()


class LateLogger:
    """`logging.getLogger` of who has nothing to tell; loads `logging` when there is something.

    Args:
        name: of the logger.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        import logging

        logger = logging.Logger.manager.getLogger(self._name)  # loads it: `getLogger` need not
        return getattr(logger, attribute)
