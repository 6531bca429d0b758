"""A driver's hooks with a filter around them, and nothing that leads past it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, Final, TypeAlias

import attrs
import pluggy

from tapcore.interface.extent import Extent
from tapcore.interface.filters.around import FilterAround
from tapcore.interface.filters.filter import Filter
from tapcore.interface.hooks import HOOKS, PROJECT, hookimpl
from tapcore.interface.models import DiskDriver, Hooks

Calls: TypeAlias = dict[str, Callable[..., Any]]
"""A function for each hook, with the hook's positional arguments."""


def around(plugin: Any, calls: Calls) -> Calls:
    """The hooks of a driver, or of a filter around it, with another filter around.

    Args:
        plugin: the filter: a `Filter`, or anything with functions marked as hooks, or both.
        calls: what it is around.

    Raises:
        Exception: it does not fit; as pluggy says.
    """
    if isinstance(plugin, Filter):
        calls = {**calls, **FilterAround(plugin, calls).hooks}
    below = _Below(calls)
    pm = pluggy.PluginManager(PROJECT)
    pm.add_hookspecs(Hooks)
    pm.register(below, "below")
    pm.register(plugin, "filter")
    named = {caller.name for caller in pm.get_hookcallers(plugin) or ()}
    return {hook: _through(pm, hook) if hook in named else calls[hook] for hook in HOOKS}


class _Below:
    """As a plugin, what a filter is around."""

    def __init__(self, calls: Calls) -> None:
        for hook, call in calls.items():
            setattr(self, hook, _as_hook(hook, call))


def _as_hook(hook: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(getattr(Hooks, hook))  # pluggy has to see the arguments' names
    def below(*args: Any) -> Any:
        return call(*args)

    return hookimpl(below)


def _through(pm: pluggy.PluginManager, hook: str) -> Callable[..., Any]:
    caller = getattr(pm.hook, hook)
    assert caller.spec is not None
    names = tuple(caller.spec.argnames)
    return lambda *args: caller(**dict(zip(names, args, strict=True)))


# ---- no way past it ------------------------------------------------------------------------------


def without_bypass(calls: Calls, filters: Sequence[Any]) -> Calls:
    """The same hooks, with none by which content could be moved without the filters' seeing it."""
    if any(isinstance(plugin, Filter) and plugin.changes_content for plugin in filters):
        runs = _of_unknown_content
    else:
        runs = _without_descriptors
    told = calls["td_extents"]

    def td_extents(dd: DiskDriver[Any], sector: int, nb_sectors: int) -> Iterator[Extent]:
        return runs(dd, told(dd, sector, nb_sectors))

    return {**calls, "td_extents": td_extents, "td_places": _nowhere}


def _nowhere(dd: DiskDriver[Any]) -> None:
    return None


def _without_descriptors(dd: DiskDriver[Any], told: Any) -> Iterator[Extent]:
    for extent in told:
        yield extent if extent.fd is None else attrs.evolve(extent, fd=None)


_SHOWN: Final = "compressed"
"""Content of a kind that only the driver, and here the filter, can read."""


def _of_unknown_content(dd: DiskDriver[Any], told: Any) -> Iterator[Extent]:
    """Even zeroes may be shown as something else; but a hole over a parent is asked of that."""
    for extent in told:
        if extent.kind == "unallocated" and dd.next is not None:
            yield extent
        else:
            yield Extent(extent.sector, extent.nb_sectors, _SHOWN)
