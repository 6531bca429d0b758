"""Everything that a disk process may need, imported before it is forked.

Drivers and the core load most modules when they are first used. In a forked process that would
cost time before its first answer, and memory that it shares with no other.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Final

from tapcore.errors import TapError
from tapcore.files.direct import load_engine
from tapcore.interface.policy import ReferencePolicy, has_protocol
from tapcore.interface.registry import Registry
from tapcore.opening.names import split_name

log = logging.getLogger(__name__)

_ROOMS: Final = (
    "clusters",
    "engine",
    "files",
    "formats.foreign",
    "interface",
    "live",
    "nbd",
    "opening",
    "process",
    "ring",
    "simple",
)
"""Of the core: those that are at work while a disk is served."""

_LIBRARIES: Final = ("queue", "signal")
"""Of Python: what the core loads with its first thread."""

_ELSEWHERE: Final = ("tls", "fsspec", "manifest", "test", "conftest", "_")
"""How modules begin that no disk process needs, or that are programs."""


def warm_up(registry: Registry) -> None:
    """Load every driver and filter with its modules; one that cannot be is told of."""
    for room in _ROOMS:
        _import_below(f"tapcore.{room}")
    for library in _LIBRARIES:
        importlib.import_module(library)
    for info in registry.drivers():
        try:
            registry.load(info.handle)
        except TapError as exc:
            log.warning("%s", exc)
    for row in registry.rows():
        if not row.info.error and row.plugin is not None:
            _import_below(_package_of(row.plugin))
    registry.filters()
    _load_engine()
    _compile_names(registry)


def _load_engine() -> None:
    """Of `--cache none`, with its library: who is confined by then could not open that."""
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        load_engine(1, eventfd).close()
    except TapError as exc:
        log.debug("%s", exc)
    finally:
        os.close(eventfd)


def _compile_names(registry: Registry) -> None:
    """The expressions of names and policies are compiled when one is first looked at."""
    for info in registry.drivers():
        if not info.error:
            split_name(f"{info.handle}:image", registry)
    ReferencePolicy.from_words(("/images",))
    has_protocol("image")


def _package_of(plugin: object) -> str:
    """The package that a driver's module, or class, lies in."""
    name = getattr(plugin, "__name__", "") if hasattr(plugin, "__path__") else ""
    name = name or getattr(plugin, "__module__", "") or getattr(plugin, "__name__", "")
    return str(name).partition(".")[0]


def _import_below(package: str) -> None:
    try:
        path = importlib.import_module(package).__path__
    except (ImportError, AttributeError, ValueError):  # a module without others in it
        return
    for name in _modules(path, f"{package}."):
        try:
            importlib.import_module(name)
        except Exception as exc:  # what it needs is not installed: it is not needed either
            log.debug("%s is not imported: %s", name, exc)


def _modules(path: Iterable[str], prefix: str) -> Iterator[str]:
    """All below, without importing what is not wanted; packages before what is in them."""
    for _, name, is_package in pkgutil.iter_modules(path):
        if name.startswith(_ELSEWHERE):
            continue
        full = prefix + name
        yield full
        if is_package:
            inside = [f"{folder}/{name}" for folder in path]
            yield from _modules(inside, f"{full}.")
