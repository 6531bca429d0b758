"""The filters that are known: installed, or registered by a program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tapcore.errors import UsageError, describe
from tapcore.interface.filters.filter import Filter
from tapcore.interface.filters.parameters import (
    FilterInfo,
    is_factory,
    make_filter,
    split_choice,
)
from tapcore.interface.installed import release_of
from tapcore.interface.misfits import describe_misfit, marked, unknown_hooks

if TYPE_CHECKING:
    from tapcore.interface.filters.hooks import Calls


class FilterTable:
    """Finds filters by their names, and has them made.

    Args:
        installed: gives the entry points of what is installed.
        known: what was registered, by name; what is loaded is added.
    """

    def __init__(self, installed: Callable[[], Iterable[Any]], known: dict[str, Any]) -> None:
        self._installed = installed
        self._known = known

    def make(self, chosen: Iterable[Any]) -> tuple[Any, ...]:
        """See `Registry.make_filters`."""
        made: list[Any] = []
        for each in chosen:
            plugin = self._make(each) if isinstance(each, str) else each
            if inspect.isclass(plugin) and issubclass(plugin, Filter):
                raise TypeError(f"filters: {plugin.__name__} is a class; give an instance of it")
            if isinstance(plugin, Filter) or plugin not in made:
                made.append(plugin)
        return tuple(made)

    def _make(self, text: str) -> Any:
        name, values = split_choice(text)
        found = self._find(name)
        if is_factory(found):
            return make_filter(name, found, values)
        if values:
            raise UsageError(f"the filter '{name}' takes no parameters")
        return found

    def _find(self, name: str) -> Any:
        if name not in self._known:
            found = {ep.name: ep for ep in self._installed()}
            if name not in found:
                names = ", ".join(sorted({*found, *self._known}))
                known = f"installed: {names}" if names else "none is installed"
                raise UsageError(f"no filter is named '{name}' ({known})")
            try:
                self._known[name] = found[name].load()
            except Exception as exc:
                raise _unusable(name, describe(exc)) from exc
        return self._known[name]

    def rows(self) -> list[FilterInfo]:
        """See `Registry.filters`."""
        found = {ep.name: ep for ep in self._installed()}
        return [self._row(name, found.get(name)) for name in sorted({*found, *self._known})]

    def _row(self, name: str, entry_point: Any) -> FilterInfo:
        version = release_of(entry_point)
        try:
            return FilterInfo.of(name, self._find(name), *version)
        except UsageError as exc:
            return FilterInfo(name, "", (), *version, error=exc.message)

    def wrap(self, calls: Calls, plugins: tuple[Any, ...]) -> Calls:
        """A driver's hooks with filters around, the first outermost.

        Raises:
            UsageError: one does not fit.
        """
        from tapcore.interface.filters.hooks import around, without_bypass

        for plugin in reversed(plugins):
            try:
                unknown = unknown_hooks({hook for hook, _ in marked(plugin)})
                calls = around(plugin, calls)
            except Exception as exc:
                raise _unusable(self._name_of(plugin), describe_misfit(exc)) from exc
            if unknown:
                raise _unusable(self._name_of(plugin), unknown)
        return without_bypass(calls, plugins)

    def _name_of(self, plugin: Any) -> str:
        names = [name for name, known in self._known.items() if known in (plugin, type(plugin))]
        return names[0] if names else type(plugin).__name__


def _unusable(name: str, problem: str) -> UsageError:
    return UsageError(f"the filter '{name}' cannot be used: {problem}")
