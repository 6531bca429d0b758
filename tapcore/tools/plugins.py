"""What is installed of drivers and filters, what is wrong with it, and what a file would need."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

import attrs

from tapcore.errors import ImageFormatError, TapError, UnknownHandleError
from tapcore.interface.hooks import HOOKS
from tapcore.interface.installed import entry_points, release_of
from tapcore.interface.manifest import (
    MANIFEST,
    Manifest,
    Row,
    differences,
    render_manifest,
)
from tapcore.interface.misfits import unmarked_hooks
from tapcore.interface.registry import FILTER_GROUP, Registry, default_registry
from tapcore.opening.probe import probe
from tapcore.simple import SimpleDriver
from tapcore.simple.methods import SimpleMethods

_NEARLY: Final = 0.8
"""From this likeness on (0 to 1) a name is thought to be another one."""

_API_OF_CORE: Final = re.compile(r"\bapi\s*=\s*(?:tapcore\.)?HOOKS_VERSION\b")


@attrs.frozen
class Plugin:
    """Something that a distribution offers.

    Attributes:
        kind: "driver" or "filter".
        name: of the entry point: a driver's handle.
        distribution: that brought it.
        version: of the distribution.
        module: what is imported for it.
        manifest: its facts are read without import.
        error: why it cannot be used, as far as that is known without loading it; empty: nothing.
    """

    kind: str
    name: str
    distribution: str
    version: str
    module: str
    manifest: bool
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The item of `plugins list --json`."""
        return {**attrs.asdict(self), "error": self.error or None}


def list_plugins(registry: Registry | None = None) -> list[Plugin]:
    """All that is installed; nothing that has a manifest is loaded for it."""
    registry = registry or default_registry()
    found = [_driver(row) for row in registry.rows() if row.entry_point is not None]
    found += _filters(registry, load=False)
    return sorted(found, key=lambda plugin: (plugin.kind, plugin.name))


def _driver(row: Row) -> Plugin:
    ep = row.entry_point
    assert ep is not None
    has = row.manifest is not None
    return Plugin("driver", ep.name, *release_of(ep), ep.value, has, row.info.error)


# ---- the doctor ------------------------------------------------------------------------------


@attrs.frozen
class Diagnosis:
    """What is to be said of a plugin.

    Attributes:
        plugin: it.
        problems: why it cannot be used.
        remarks: what its author should change; it works.
        cause: what it raised.
    """

    plugin: Plugin
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    cause: BaseException | None = None

    def as_dict(self) -> dict[str, Any]:
        """The item of `plugins doctor --json`."""
        return {
            **self.plugin.as_dict(),
            "problems": list(self.problems),
            "remarks": list(self.remarks),
        }


def examine_plugins(registry: Registry | None = None) -> list[Diagnosis]:
    """Load everything that is installed, and say what is wrong with it."""
    registry = registry or default_registry()
    found = [_examined(registry, row) for row in registry.rows() if row.entry_point is not None]
    for plugin in _filters(registry, load=True):
        found.append(Diagnosis(plugin, (plugin.error,) if plugin.error else ()))
    return sorted(found, key=lambda each: (each.plugin.kind, each.plugin.name))


def _examined(registry: Registry, row: Row) -> Diagnosis:
    if not row.info.error:
        with contextlib.suppress(TapError):  # the row says it
            registry.load(row.info.handle)
    plugin = _driver(row)
    if row.info.error:
        return Diagnosis(plugin, (row.info.error,), cause=row.cause)
    return Diagnosis(plugin, remarks=tuple(_remarks(row)))


def _remarks(row: Row) -> Iterable[str]:
    for name in unmarked_hooks(row.plugin):
        yield f"{name} is never called: it is not marked with @hookimpl"
    for name, near in _misspelt_methods(row.plugin):
        yield f"{name} is nothing that a SimpleDriver has: did you mean {near}?"
    for name in sorted(_hooks_of(row)):
        if HOOKS[name].retiring:
            yield f"{name} will go {HOOKS[name].retiring}"
    if _API_OF_CORE.search(_source(row.plugin)):
        yield "its api is the running core's HOOKS_VERSION: write the number, api=1"
    if row.manifest is None:
        yield f"it has no manifest ({MANIFEST}), so every command loads it"
    elif differing := differences(row.manifest, row.plugin.disk_info, _hooks_of(row)):
        yield f"its manifest is not true of it: {', '.join(differing)}"


def _misspelt_methods(plugin: Any) -> Iterable[tuple[str, str]]:
    """What a `SimpleDriver` calls nearly, and not quite, like something that is used of it."""
    if not isinstance(plugin, type) or not issubclass(plugin, SimpleDriver):
        return
    used = [name for name in vars(SimpleMethods) if not name.startswith("_")]
    used += SimpleMethods.__annotations__
    for name in vars(plugin):
        if name.islower() and not name.startswith(("_", "td_")) and name not in used:
            for near in difflib.get_close_matches(name, used, 1, _NEARLY):
                if near not in vars(plugin):
                    yield name, near


def _hooks_of(row: Row) -> frozenset[str]:
    assert row.info.drv is not None
    return row.info.drv.implemented


def _source(plugin: Any) -> str:
    try:
        return inspect.getsource(plugin if inspect.ismodule(plugin) else _class_of(plugin))
    except (OSError, TypeError):  # there is none to be read
        return ""


def _class_of(plugin: Any) -> type:
    return plugin if isinstance(plugin, type) else type(plugin)


def _filters(registry: Registry, *, load: bool) -> list[Plugin]:
    errors = {info.name: info.error for info in registry.filters()} if load else {}
    return [
        Plugin("filter", ep.name, *release_of(ep), ep.value, False, errors.get(ep.name, ""))
        for ep in entry_points(FILTER_GROUP)
    ]


# ---- files -----------------------------------------------------------------------------------


@attrs.frozen
class Need:
    """What a file needs to be opened.

    Attributes:
        file: its path.
        handle: of the driver that is there for it; empty: none is.
        text: for people: which driver, or what to install, or why nothing helps.
    """

    file: str
    handle: str
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The item of `plugins doctor FILE --json`."""
        return attrs.asdict(self)


def need_of(path: str, registry: Registry | None = None) -> Need:
    """Which driver a file needs; it is not opened with it.

    Args:
        path: of a file or block device.
        registry: drivers to ask instead of the installed ones.

    Raises:
        TapError: it cannot be read.
    """
    registry = registry or default_registry()
    try:
        handle = probe(path, registry)
        info = registry.load(handle)
    except (ImageFormatError, UnknownHandleError) as exc:
        return Need(path, "", exc.message)
    (row,) = [row for row in registry.rows() if row.info is info]
    release = " ".join(release_of(row.entry_point)).strip()
    return Need(path, handle, f"{info.name}: {release or 'registered by the program'}")


# ---- manifests -------------------------------------------------------------------------------


def manifest_of(handle: str, registry: Registry | None = None) -> str:
    """The manifest of the package that a driver is in, made from all drivers of that.

    Args:
        handle: of one of them.
        registry: drivers to use instead of the installed ones.

    Raises:
        TapError: one of them cannot be used, or is in no package.
    """
    registry = registry or default_registry()
    registry.load(handle)
    rows = [row for row in registry.rows() if row.entry_point is not None]
    package = {row.info.handle: _package(row) for row in rows}
    if handle not in package:
        raise TapError(f"the driver '{handle}' was registered by the program: it is in no package")
    of_it = sorted(each for each, where in package.items() if where == package[handle])
    return render_manifest([_stated(registry, each) for each in of_it])


def _package(row: Row) -> str:
    assert row.entry_point is not None
    return row.entry_point.value.partition(":")[0].partition(".")[0].strip()


def _stated(registry: Registry, handle: str) -> Manifest:
    registry.load(handle)
    (row,) = [row for row in registry.rows() if row.info.handle == handle and row.plugin]
    return Manifest(row.plugin.disk_info, _hooks_of(row))
