"""Discovery: the drivers that are installed, found through entry points when the core starts.

The core has no list of drivers. One that fails to import, or was written for other hooks, becomes
a row with an error; it breaks nothing else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import pluggy

from tapcore.constants import HOOKS_VERSION
from tapcore.errors import UnknownHandleError, UsageError, describe
from tapcore.interface.hooks import HOOKS, PROJECT, capabilities
from tapcore.interface.installed import EntryPoint, entry_points
from tapcore.interface.models import DiskInfo, Hooks, TapDisk

DRIVER_GROUP = "tapcore.drivers"
FILTER_GROUP = "tapcore.filters"

REQUIRED_HOOKS = tuple(row.name for row in HOOKS.values() if not row.default)
MAX_HANDLE = 9
_PLAUSIBLE = re.compile(r"[a-z][a-z0-9]{1,8}", re.ASCII)
"""What a driver's handle looks like; what does not is more likely a part of a file's name."""


@attrs.define
class _Row:
    info: DiskInfo
    plugin: Any = None
    entry_point: EntryPoint | None = None


class _HookCallers(pluggy.PluginManager):
    """pluggy's machinery with the table of hooks in it, whose functions are the defaults."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(Hooks)
        self.register(Hooks, "defaults")

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> pluggy.HookimplOpts | None:
        """The table's functions carry no mark: a driver that derives from it would inherit that."""
        if plugin is not Hooks:
            return super().parse_hookimpl_opts(plugin, name)
        return _PLAIN if name in HOOKS and name not in REQUIRED_HOOKS else None


_PLAIN: Final = pluggy.HookimplOpts(
    wrapper=False,
    hookwrapper=False,
    optionalhook=False,
    tryfirst=False,
    trylast=False,
    specname=None,
)


class Registry:
    """The driver table (blktap's `dtypes`) and the hook machinery behind it.

    Args:
        discover: look for installed drivers now; False starts empty (tests, embedding).
    """

    def __init__(self, *, discover: bool = True) -> None:
        self._pm = _HookCallers()
        self._rows: dict[str, _Row] = {}
        self._refused: list[_Row] = []
        self._filters: dict[str, Any] = {}
        self._operations: dict[tuple[str, tuple[str, ...]], TapDisk] = {}
        if discover:
            self.discover()

    # ---- filling the table ------------------------------------------------------------------

    def discover(self) -> None:
        """Add a row for each installed driver, in the order of their handles."""
        rows = (*self._rows.values(), *self._refused)
        known = {(row.entry_point.name, row.entry_point.value) for row in rows if row.entry_point}
        for ep in sorted(entry_points(group=DRIVER_GROUP), key=lambda ep: ep.name):
            if (ep.name, ep.value) in known:
                continue
            try:
                plugin = ep.load()
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # a plugin may raise anything at all, SystemExit too
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
        name, info, problem = handle or "?", None, ""
        try:
            info = getattr(plugin, "disk_info", None)
            name = handle or (info.handle if isinstance(info, DiskInfo) else "?")
            problem = _problem_with(plugin, info, name)
            if not problem and name in self:
                problem = "its handle is taken by another driver"
            if not problem:
                problem = self._register_hooks(plugin, name)
        except Exception as exc:  # merely looking at it may raise
            problem = describe(exc)
        if problem or not isinstance(info, DiskInfo):
            return self._add_broken(name, problem, entry_point)
        row = attrs.evolve(
            info,
            idnum=len(self._rows),
            capabilities=capabilities(_implemented(self._pm, plugin)),
        )
        if name in self._rows:  # a broken one
            self._refused.append(self._rows[name])
        self._rows[name] = _Row(row, plugin, entry_point)
        row = attrs.evolve(row, drv=self.operations(name))
        self._rows[name].info = row
        return row

    def _register_hooks(self, plugin: Any, handle: str) -> str:
        name = f"driver:{handle}"
        try:
            self._pm.register(plugin, name)
        except Exception as exc:
            if self._pm.get_plugin(name) is plugin:
                self._pm.unregister(name=name)
            return _describe_misfit(exc)
        missing = [h for h in REQUIRED_HOOKS if h not in _implemented(self._pm, plugin)]
        if not missing:
            return ""
        self._pm.unregister(plugin)
        return f"does not implement {', '.join(missing)}"

    def _add_broken(self, handle: str, problem: str, entry_point: EntryPoint | None) -> DiskInfo:
        info = DiskInfo(handle=handle, name="", api=0, idnum=len(self._rows), error=problem)
        row = _Row(info, None, entry_point)
        if self._rows.setdefault(handle, row) is not row:
            self._refused.append(row)
        return info

    # ---- reading it -------------------------------------------------------------------------

    def drivers(self) -> list[DiskInfo]:
        """The usable drivers, by handle."""
        return [row.info for row in self._rows.values() if not row.info.error]

    def table(self) -> list[DiskInfo]:
        """Every row, the broken ones too, with the distribution that brought it."""
        return [_with_distribution(row) for row in (*self._rows.values(), *self._refused)]

    def broken(self) -> list[DiskInfo]:
        """The rows of drivers that cannot be used."""
        return [row.info for row in (*self._rows.values(), *self._refused) if row.info.error]

    def get(self, handle: str) -> DiskInfo:
        """The driver of a handle.

        Raises:
            UnknownHandleError: none has it, or it failed to load; the text says which exist.
        """
        row = self._rows.get(handle)
        if row is None:
            remedy = f": pip install tap-{handle}" if _PLAUSIBLE.fullmatch(handle) else ""
            text = f"no driver has the handle '{handle}' ({self._known()}){remedy}"
            raise UnknownHandleError(text)
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
        key = (handle, tuple(dict.fromkeys(filters)))
        if key not in self._operations:
            self._operations[key] = self._resolve(*key)
        return self._operations[key]

    def register_filter(self, name: str, plugin: Any) -> None:
        """Make a filter known under a name without an entry point."""
        self._filters[name] = plugin

    def _filter(self, name: str) -> Any:
        if name not in self._filters:
            found = [ep for ep in entry_points(group=FILTER_GROUP) if ep.name == name]
            if not found:
                raise UsageError(f"no filter is named '{name}'")
            try:
                self._filters[name] = found[0].load()
            except Exception as exc:
                raise _unusable_filter(name, describe(exc)) from exc
        return self._filters[name]

    def _resolve(self, handle: str, filters: tuple[str, ...]) -> TapDisk:
        plugin = self._rows[handle].plugin
        own = _implemented(self._pm, plugin)
        pm = self._wrapped(plugin, filters) if filters else self._pm
        calls: dict[str, Callable[..., Any]] = {}
        for hook in HOOKS:
            source = plugin if hook in own else Hooks
            calls[hook] = _caller(pm, hook, source, filtered=bool(filters))
        return TapDisk(disk_type=handle, implemented=own, calls=calls)

    def _wrapped(self, plugin: Any, filters: tuple[str, ...]) -> pluggy.PluginManager:
        """One driver and its filters, apart from all others: what comes later changes nothing."""
        pm = _HookCallers()
        pm.register(plugin, "driver")
        for name in reversed(filters):  # pluggy's last is the outermost, ours the first
            found = self._filter(name)
            try:
                unknown = _unknown_hooks(found)
                pm.register(found, f"filter:{name}")
            except Exception as exc:
                raise _unusable_filter(name, _describe_misfit(exc)) from exc
            if unknown:
                raise _unusable_filter(name, unknown)
        return pm


def _caller(
    pm: pluggy.PluginManager, hook: str, source: Any, *, filtered: bool
) -> Callable[..., Any]:
    """The function of `source` itself where no filter wraps it, else a call through pluggy.

    `source` is the driver, or `Hooks` where it does not implement the hook.
    """
    caller = getattr(pm.hook, hook)
    assert caller.spec is not None
    argnames = tuple(caller.spec.argnames)
    others = [i.plugin for i in caller.get_hookimpls() if i.plugin is not source]
    if not filtered or all(other is Hooks for other in others):
        (impl,) = (i for i in caller.get_hookimpls() if i.plugin is source)
        return _direct(impl.function, tuple(impl.argnames), argnames)
    subset = pm.subset_hook_caller(hook, [Hooks] if source is not Hooks else [])
    return lambda *args: subset(**dict(zip(argnames, args, strict=True)))


def _direct(
    function: Callable[..., Any], takes: tuple[str, ...], given: tuple[str, ...]
) -> Callable[..., Any]:
    """A function that may take fewer arguments than the hook has, as pluggy allows."""
    if takes == given:
        return function
    places = [given.index(name) for name in takes]
    return lambda *args: function(*[args[place] for place in places])


def _problem_with(plugin: Any, info: object, handle: str) -> str:
    if not isinstance(info, DiskInfo):
        return "has no disk_info: not a tapcore driver"
    if info.api != HOOKS_VERSION:
        return f"was written for version {info.api} of the hooks, this is version {HOOKS_VERSION}"
    if info.handle != handle:
        return f"its entry point is named '{handle}', but its handle is '{info.handle}'"
    if not handle.isidentifier() or len(handle) > MAX_HANDLE:
        return f"the handle must be a name of at most {MAX_HANDLE} characters"
    wrappers = sorted(h for h, opts in _marked(plugin) if opts["wrapper"] or opts["hookwrapper"])
    if wrappers:
        return f"marks {', '.join(wrappers)} as a wrapper, which only a filter may be"
    return _unknown_hooks(plugin)


def _unknown_hooks(plugin: Any) -> str:
    unknown = sorted({hook for hook, _ in _marked(plugin)} - set(HOOKS))
    return f"implements hooks that do not exist: {', '.join(unknown)}" if unknown else ""


def _marked(plugin: Any) -> list[tuple[str, dict[str, Any]]]:
    """The functions that carry a `@hookimpl` mark: name of the hook, what the mark says."""
    mark = f"{PROJECT}_impl"
    found = []
    for name, member in inspect.getmembers_static(plugin):
        try:
            opts = getattr(member, mark, None)
        except Exception:  # there are objects that cannot be asked
            continue
        if isinstance(opts, dict):  # and others that have every attribute
            found.append((opts.get("specname") or name, opts))
    return found


def _describe_misfit(exc: Exception) -> str:
    """pluggy says over several lines what is wrong with a hook."""
    if isinstance(exc, pluggy.PluginValidationError):
        return " ".join(str(exc).split())
    return describe(exc)


def _unusable_filter(name: str, problem: str) -> UsageError:
    return UsageError(f"the filter '{name}' cannot be used: {problem}")


def _implemented(pm: pluggy.PluginManager, plugin: Any) -> set[str]:
    return {caller.name for caller in pm.get_hookcallers(plugin) or ()}


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
