"""Discovery: the drivers that are installed, found through entry points when the core starts.

The core has no list of drivers. One that fails to import, or was written for other hooks, becomes
a row with an error; it breaks nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs
import pluggy

from tapcore import defaults, hookspecs
from tapcore.constants import HOOKS_VERSION
from tapcore.errors import UnknownHandleError, UsageError, describe
from tapcore.models import DiskInfo, TapDisk

DRIVER_GROUP = "tapcore.drivers"
FILTER_GROUP = "tapcore.filters"

HOOKS = tuple(
    f.name for f in attrs.fields(TapDisk) if f.name.startswith("td_")
)
REQUIRED_HOOKS = ("td_open", "td_queue_read")
MAX_HANDLE = 9

_CAPABILITY_HOOKS = (
    ("read", "td_queue_read"),
    ("write", "td_queue_write"),
    ("create", "td_create"),
    ("parents", "td_get_parent_id"),
    ("discard", "td_queue_discard"),
    ("zero", "td_queue_write_zeroes"),
    ("extents", "td_extents"),
    ("resize", "td_resize"),
    ("check", "td_check"),
)


@attrs.define
class _Row:
    info: DiskInfo
    plugin: Any = None
    entry_point: EntryPoint | None = None


class Registry:
    """The driver table (blktap's `dtypes`) and the hook machinery behind it.

    Args:
        discover: look for installed drivers now; False starts empty (tests, embedding).
    """

    def __init__(self, *, discover: bool = True) -> None:
        self._pm = pluggy.PluginManager(hookspecs.PROJECT)
        self._pm.add_hookspecs(hookspecs)
        self._pm.register(defaults, "defaults")
        self._rows: dict[str, _Row] = {}
        self._operations: dict[tuple[str, tuple[str, ...]], TapDisk] = {}
        if discover:
            self.discover()

    # ---- filling the table ------------------------------------------------------------------

    def discover(self) -> None:
        """Add a row for each installed driver, in the order of their handles."""
        for ep in sorted(entry_points(group=DRIVER_GROUP), key=lambda ep: ep.name):
            if ep.name in self._rows:
                continue
            try:
                plugin = ep.load()
            except BaseException as exc:  # a plugin may raise anything at all, SystemExit too
                if isinstance(exc, KeyboardInterrupt):
                    raise
                self._add_broken(ep.name, describe(exc), ep)
                continue
            self.register(plugin, handle=ep.name, entry_point=ep)

    def register(
        self, plugin: Any, *, handle: str | None = None, entry_point: EntryPoint | None = None
    ) -> DiskInfo:
        """Add one driver.

        Args:
            plugin: a module or object with `disk_info` and functions marked `@hookimpl`.
            handle: the name of its entry point; `disk_info.handle` where there is none.
            entry_point: where it was found.

        Returns:
            Its row; `error` says why it cannot be used, and is empty for a good one.
        """
        info = getattr(plugin, "disk_info", None)
        name = handle or (info.handle if isinstance(info, DiskInfo) else "?")
        problem = _problem_with(plugin, info, name)
        if not problem:
            problem = self._register_hooks(plugin, name)
        if problem or not isinstance(info, DiskInfo):
            return self._add_broken(name, problem, entry_point)
        row = attrs.evolve(
            info,
            idnum=len(self._rows),
            capabilities=_capabilities(_implemented(self._pm, plugin)),
        )
        self._rows[name] = _Row(row, plugin, entry_point)
        row = attrs.evolve(row, drv=self.operations(name))
        self._rows[name].info = row
        return row

    def _register_hooks(self, plugin: Any, handle: str) -> str:
        try:
            self._pm.register(plugin, f"driver:{handle}")
        except Exception as exc:
            self._pm.unregister(name=f"driver:{handle}") if self._pm.has_plugin(
                f"driver:{handle}"
            ) else None
            return describe(exc)
        missing = [h for h in REQUIRED_HOOKS if h not in _implemented(self._pm, plugin)]
        if not missing:
            return ""
        self._pm.unregister(plugin)
        return f"does not implement {', '.join(missing)}"

    def _add_broken(self, handle: str, problem: str, entry_point: EntryPoint | None) -> DiskInfo:
        info = DiskInfo(handle=handle, name="", api=0, idnum=len(self._rows), error=problem)
        self._rows.setdefault(handle, _Row(info, None, entry_point))
        return info

    # ---- reading it -------------------------------------------------------------------------

    def drivers(self) -> list[DiskInfo]:
        """The usable drivers, by handle."""
        return [row.info for row in self._rows.values() if not row.info.error]

    def table(self) -> list[DiskInfo]:
        """Every row, the broken ones too, with the distribution that brought it."""
        return [_with_distribution(row) for row in self._rows.values()]

    def get(self, handle: str) -> DiskInfo:
        """The driver of a handle.

        Raises:
            UnknownHandleError: none has it, or it failed to load; the text says which exist.
        """
        row = self._rows.get(handle)
        if row is None:
            raise UnknownHandleError(f"no driver has the handle '{handle}' ({self._known()})")
        if row.info.error:
            raise UnknownHandleError(f"the driver '{handle}' cannot be used: {row.info.error}")
        return row.info

    def __contains__(self, handle: str) -> bool:
        row = self._rows.get(handle)
        return row is not None and not row.info.error

    def knows(self, handle: str) -> bool:
        """Whether a row, good or broken, has the handle."""
        return handle in self._rows

    def _known(self) -> str:
        names = [info.handle for info in self.drivers()]
        if not names:
            return "no driver is installed: pip install tap-aio, or another tap-* package"
        return f"installed: {', '.join(names)}"

    # ---- operations -------------------------------------------------------------------------

    def operations(self, handle: str, filters: Sequence[str] = ()) -> TapDisk:
        """The operations of a driver under the filters named, resolved for the fast path.

        Args:
            handle: of a usable driver.
            filters: names in the group `tapcore.filters`, or of registered filter plugins.
        """
        key = (handle, tuple(filters))
        if key not in self._operations:
            self._operations[key] = self._resolve(handle, [self._filter(n) for n in filters])
        return self._operations[key]

    def register_filter(self, name: str, plugin: Any) -> None:
        """Make a filter known under a name without an entry point."""
        self._pm.register(plugin, f"filter:{name}")

    def _filter(self, name: str) -> Any:
        plugin = self._pm.get_plugin(f"filter:{name}")
        if plugin is not None:
            return plugin
        found = [ep for ep in entry_points(group=FILTER_GROUP) if ep.name == name]
        if not found:
            raise UsageError(f"no filter is named '{name}'")
        plugin = found[0].load()
        self._pm.register(plugin, f"filter:{name}")
        return plugin

    def _resolve(self, handle: str, filters: list[Any]) -> TapDisk:
        plugin = self._rows[handle].plugin
        own = _implemented(self._pm, plugin)
        calls: dict[str, Callable[..., Any]] = {}
        for hook in HOOKS:
            source = plugin if hook in own else defaults
            wrapping = [f for f in filters if hook in _implemented(self._pm, f)]
            calls[hook] = self._caller(hook, source, wrapping)
        return TapDisk(disk_type=handle, implemented=frozenset(own), **calls)

    def _caller(self, hook: str, source: Any, wrapping: list[Any]) -> Callable[..., Any]:
        """The plugin's own function where it stands alone, else a call through pluggy."""
        caller = getattr(self._pm.hook, hook)
        impls = [i for i in caller.get_hookimpls() if i.plugin is source]
        argnames = caller.spec.argnames
        if not wrapping and len(impls) == 1 and tuple(impls[0].argnames) == tuple(argnames):
            function: Callable[..., Any] = impls[0].function
            return function
        keep = [source, *wrapping]
        others = [p for p in self._pm.get_plugins() if not any(p is k for k in keep)]
        subset = self._pm.subset_hook_caller(hook, others)
        return lambda *args: subset(**dict(zip(argnames, args, strict=True)))


def _problem_with(plugin: Any, info: object, handle: str) -> str:
    if not isinstance(info, DiskInfo):
        return "has no disk_info: not a tapcore driver"
    if info.api != HOOKS_VERSION:
        return f"was written for version {info.api} of the hooks, this is version {HOOKS_VERSION}"
    if info.handle != handle:
        return f"its entry point is named '{handle}', but its handle is '{info.handle}'"
    if not handle.isidentifier() or len(handle) > MAX_HANDLE:
        return f"the handle must be a name of at most {MAX_HANDLE} characters"
    unknown = sorted(_marked(plugin) - set(HOOKS))
    return f"implements hooks that do not exist: {', '.join(unknown)}" if unknown else ""


def _marked(plugin: Any) -> set[str]:
    """Names of the functions that carry a `@hookimpl` mark."""
    mark = f"{hookspecs.PROJECT}_impl"
    members = inspect.getmembers_static(plugin, lambda m: hasattr(m, mark))
    return {getattr(m, mark).get("specname") or name for name, m in members}


def _implemented(pm: pluggy.PluginManager, plugin: Any) -> set[str]:
    return {caller.name for caller in pm.get_hookcallers(plugin) or ()}


def _capabilities(implemented: Iterable[str]) -> tuple[str, ...]:
    have = set(implemented)
    return tuple(name for name, hook in _CAPABILITY_HOOKS if hook in have)


def _with_distribution(row: _Row) -> DiskInfo:
    dist = row.entry_point.dist if row.entry_point is not None else None
    if dist is None:
        return row.info
    return attrs.evolve(row.info, distribution=dist.name, version=dist.version)


_default: Registry | None = None


def default_registry() -> Registry:
    """The table of what is installed, made at the first call."""
    global _default
    if _default is None:
        _default = Registry()
    return _default
