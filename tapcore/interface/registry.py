"""Discovery: the drivers that are installed, found through entry points when the core starts.

The core has no list of drivers. One that fails to import, or was written for other hooks, becomes
a row with an error; it breaks nothing else.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from tapcore.errors import UnknownHandleError, describe
from tapcore.interface import knownbad
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.hooks import capabilities
from tapcore.interface.installed import EntryPoint, entry_points, release_of
from tapcore.interface.manifest import Manifest, Row, broken, differences, manifest_at
from tapcore.interface.misfits import (
    problem_with_facts,
    problem_with_info,
    unknown_hooks,
    unmarked_hooks,
)
from tapcore.interface.selection import Selection

if TYPE_CHECKING:
    from tapcore.interface.callers import HookCallers
    from tapcore.interface.filters.parameters import FilterInfo
    from tapcore.interface.filters.table import FilterTable
    from tapcore.interface.models import TapDisk

log = logging.getLogger(__name__)

DRIVER_GROUP = "tapcore.drivers"
FILTER_GROUP = "tapcore.filters"

_TRACE: Final = "TAPCORE_TRACE"
"""Environment variable; see `tracing`, which is not imported without it."""

_PLAUSIBLE: Final = r"[a-z][a-z0-9]{1,8}"
"""What a driver's handle looks like; what does not is more likely a part of a file's name."""


_TAKEN: Final = "its handle is taken by another driver"
_UNMARKED: Final = "the driver %s: its %s is never called: it is not marked with @hookimpl"
_UNTRUE_MANIFEST: Final = (
    "the driver %s: its manifest is not true of it (%s): tapdisk plugins manifest %s makes it anew"
)


class Registry:
    """The driver table (blktap's `dtypes`) and the hook machinery behind it.

    A driver whose distribution has a manifest is imported when it is first used.

    Args:
        discover: look for installed drivers now; False starts empty (tests, embedding).
        selection: which of those may be used; None: as the environment says.
    """

    def __init__(self, *, discover: bool = True, selection: Selection | None = None) -> None:
        self._selection = Selection.of_environment() if selection is None else selection
        self._rows: dict[str, Row] = {}
        self._refused: list[Row] = []
        self._operations: dict[tuple[str, tuple[str, ...]], TapDisk] = {}
        self._known_filters: dict[str, Any] = {}
        self._loading = RLock()
        if discover:
            self.discover()

    # ---- filling the table ------------------------------------------------------------------

    @cached_property
    def _callers(self) -> HookCallers:
        """Made when the first driver is loaded: to list them takes nothing of it."""
        from tapcore.interface.callers import HookCallers

        return HookCallers()

    def discover(self) -> None:
        """Add a row for each installed driver, in the order of their handles.

        Raises:
            UsageError: the selection names a driver that is not there.
        """
        known = {(ep.name, ep.value) for row in self.rows() if (ep := row.entry_point)}
        found = sorted(entry_points(group=DRIVER_GROUP), key=lambda ep: ep.name)
        if not self._selection.takes_all:
            self._selection.check([(ep.name, release_of(ep)[0]) for ep in found])
        for ep in found:
            if (ep.name, ep.value) in known:
                continue
            if problem := self._reason_against(ep):
                self._add_broken(ep.name, problem, ep)
            elif (manifest := manifest_at(ep.value, ep.name)) is None:
                self._discover_by_import(ep)
            else:
                self._add_by_manifest(ep, manifest)

    def _reason_against(self, ep: EntryPoint) -> str:
        if self._selection.takes_all and not knownbad.KNOWN_BAD:
            return ""  # its distribution's records are not even read
        name, version = release_of(ep)
        return self._selection.reason_against(ep.name, name) or knownbad.reason(name, version)

    def _discover_by_import(self, ep: EntryPoint) -> None:
        try:
            plugin = ep.load()
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # a plugin may raise anything at all, SystemExit too
            self._add_broken(ep.name, describe(exc), ep, exc)
            return
        self.register(plugin, handle=ep.name, entry_point=ep)

    def _add_by_manifest(self, ep: EntryPoint, manifest: Manifest) -> None:
        problem = problem_with_facts(manifest.info, ep.name) or unknown_hooks(manifest.hooks)
        if not problem and ep.name in self:
            problem = _TAKEN
        if problem:
            self._add_broken(ep.name, problem, ep)
            return
        can = capabilities(set(manifest.hooks))
        info = manifest.info._replace(idnum=len(self._rows), capabilities=can)
        self._enter(Row(info, None, ep, manifest))

    def _enter(self, row: Row) -> None:
        """Into the table, in the place of a broken one of its handle."""
        handle = row.info.handle
        if handle in self._rows:
            self._refused.append(self._rows[handle])
        self._rows[handle] = row

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
        name, info, problem, cause = handle or "?", None, "", None
        try:
            info = getattr(plugin, "disk_info", None)
            name = handle or (info.handle if isinstance(info, DiskInfo) else "?")
            problem = problem_with_info(info, name)
            if not problem and name in self:
                problem = _TAKEN
            problem = problem or self._callers.take_in(plugin, name)
        except Exception as exc:  # merely looking at it may raise
            problem, cause = describe(exc), exc
        if problem or not isinstance(info, DiskInfo):
            return self._add_broken(name, problem, entry_point, cause)
        self._enter(Row(info._replace(idnum=len(self._rows)), plugin, entry_point))
        return self._taken_in(name)

    def _taken_in(self, handle: str) -> DiskInfo:
        """The row of a driver whose hooks were taken in, completed."""
        row = self._rows[handle]
        can = capabilities(self._callers.implemented(row.plugin))
        row.info = row.info._replace(capabilities=can, drv=self._operations_of(handle))
        for name in unmarked_hooks(row.plugin):
            log.warning(_UNMARKED, handle, name)
        return row.info

    def load(self, handle: str) -> DiskInfo:
        """The row of a driver, which is imported now where that was not done before.

        Raises:
            UnknownHandleError: none has the handle, or it cannot be used.
        """
        if self._is_loaded(handle):
            return self.get(handle)
        with self._loading:  # two threads may want their first disks of a format at once
            return self.get(handle) if self._is_loaded(handle) else self._load(handle)

    def _is_loaded(self, handle: str) -> bool:
        self.get(handle)
        return self._rows[handle].plugin is not None

    def _load(self, handle: str) -> DiskInfo:
        info = self.get(handle)
        row = self._rows[handle]
        assert row.entry_point is not None
        assert row.manifest is not None
        problem, cause = "", None
        plugin: Any = None
        try:
            plugin = row.entry_point.load()
            problem = problem_with_info(getattr(plugin, "disk_info", None), handle)
            problem = problem or self._callers.take_in(plugin, handle)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            problem, cause = describe(exc), exc
        if problem:
            row.break_off(problem, cause)
            return self.get(handle)
        said: DiskInfo = plugin.disk_info
        row.plugin, row.info = plugin, said._replace(idnum=info.idnum)
        differing = differences(row.manifest, said, frozenset(self._callers.implemented(plugin)))
        if differing:
            log.warning(_UNTRUE_MANIFEST, handle, ", ".join(differing), handle)
        return self._taken_in(handle)

    def _add_broken(
        self,
        handle: str,
        problem: str,
        entry_point: EntryPoint | None,
        cause: BaseException | None = None,
    ) -> DiskInfo:
        row = Row(broken(handle, problem, len(self._rows)), None, entry_point, cause=cause)
        if self._rows.setdefault(handle, row) is not row:
            self._refused.append(row)
        return row.info

    # ---- reading it -------------------------------------------------------------------------

    def drivers(self) -> list[DiskInfo]:
        """The usable drivers, with their operations, by handle."""
        return [self._with_operations(row) for row in self._rows.values() if not row.info.error]

    def table(self) -> list[DiskInfo]:
        """Every row, the broken ones too, with the distribution that brought it."""
        return [row.told() for row in self.rows()]

    def rows(self) -> list[Row]:
        """All that is known of each driver, in the order of `table`."""
        return [*self._rows.values(), *self._refused]

    def broken(self) -> list[DiskInfo]:
        """The rows of drivers that cannot be used."""
        return [row.info for row in self.rows() if row.info.error]

    def get(self, handle: str) -> DiskInfo:
        """The driver of a handle.

        Raises:
            UnknownHandleError: none has it, or it failed to load; the text says which exist.
        """
        row = self._rows.get(handle)
        if row is None:
            remedy = f": pip install tap-{handle}" if re.fullmatch(_PLAUSIBLE, handle) else ""
            text = f"no driver has the handle '{handle}' ({self._known()}){remedy}"
            raise UnknownHandleError(text)
        if row.info.error:
            text = f"the driver '{handle}' cannot be used: {row.info.error}"
            raise UnknownHandleError(text) from row.cause
        return self._with_operations(row)

    def _with_operations(self, row: Row) -> DiskInfo:
        """What is known of a driver, for who opens images: to list them takes no operations."""
        if row.info.drv is None and row.manifest is not None:
            from tapcore.interface.models import LateTapDisk

            handle = row.info.handle
            late = LateTapDisk(handle, row.manifest.hooks, partial(self.operations, handle))
            row.info = row.info._replace(drv=late)
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

    def operations(self, handle: str, filters: Sequence[Any] = ()) -> TapDisk:
        """The operations of a driver under the filters named, resolved for the fast path.

        Args:
            handle: of a usable driver.
            filters: as for `make_filters`; the first is the outermost.

        Raises:
            UnknownHandleError: the driver has to be loaded for it, and cannot be used.
        """
        self.load(handle)
        return self._operations_of(handle, filters)

    def _operations_of(self, handle: str, filters: Sequence[Any] = ()) -> TapDisk:
        key = (handle, tuple(filters))
        found = self._operations.get(key)
        if found is None:
            plugins = self.make_filters(filters)
            found = self._resolve(handle, plugins)
            if not self._are_of_one_disk(plugins):
                self._operations[key] = found
        return found

    def _resolve(self, handle: str, filters: tuple[Any, ...]) -> TapDisk:
        plugin = self._rows[handle].plugin
        from tapcore.interface.returned import looked_at

        own = self._callers.implemented(plugin)
        calls = looked_at(handle, self._callers.calls_of(plugin), own)
        if filters:
            calls = self._filters.wrap(calls, filters)
        if os.environ.get(_TRACE):
            from tapcore.interface.tracing import traced

            calls = traced(handle, calls, os.environ)
        from tapcore.interface.models import TapDisk

        return TapDisk(handle, self._callers.implemented(plugin), calls)

    # ---- filters ----------------------------------------------------------------------------

    @cached_property
    def _filters(self) -> FilterTable:
        """Imported when there are filters to look for: without any a disk pays nothing for them."""
        from tapcore.interface.filters.table import FilterTable

        return FilterTable(lambda: entry_points(group=FILTER_GROUP), self._known_filters)

    @staticmethod
    def _are_of_one_disk(plugins: Sequence[Any]) -> bool:
        if not plugins:
            return False
        from tapcore.interface.filters.filter import Filter

        return any(isinstance(plugin, Filter) for plugin in plugins)

    def register_filter(self, name: str, plugin: Any) -> None:
        """Make a filter, or what makes one, known under a name without an entry point."""
        self._known_filters[name] = plugin

    def make_filters(self, chosen: Iterable[Any]) -> tuple[Any, ...]:
        """The filters of one disk.

        Args:
            chosen: for each `NAME[:KEY=VALUE,...]`, with a name in the group `tapcore.filters` or
                a registered one; or the filter itself.

        Raises:
            UsageError: there is no such filter, it cannot be used, or not with these values.
        """
        chosen = tuple(chosen)
        return self._filters.make(chosen) if chosen else ()

    def filter_releases(self) -> dict[str, tuple[str, str]]:
        """Name and version of what brought each filter, by the filter's name; none is loaded."""
        found = {ep.name: release_of(ep) for ep in entry_points(group=FILTER_GROUP)}
        return {name: found.get(name, ("", "")) for name in sorted({*found, *self._known_filters})}

    def filters(self) -> list[FilterInfo]:
        """The filters that are installed or registered, by name, with what each can be told."""
        return self._filters.rows()


_default: Registry | None = None


def set_default_registry(registry: Registry | None) -> Registry | None:
    """Let `default_registry` give this one; None: one that it makes. Returns that before."""
    global _default
    before, _default = _default, registry
    return before


def default_registry() -> Registry:
    """The table of what is installed, made at the first call."""
    global _default
    if _default is None:
        _default = Registry()
    return _default
