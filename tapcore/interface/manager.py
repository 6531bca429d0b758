"""pluggy, for drivers that are not plain modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pluggy

from tapcore.interface.hooks import HOOKS, PROJECT, REQUIRED_HOOKS
from tapcore.interface.models import Hooks


class Manager(pluggy.PluginManager):
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

    def caller_of(self, hook: str, source: Any) -> Callable[..., Any]:
        """The function of `source` itself: the driver, or `Hooks` where it lacks the hook."""
        caller = getattr(self.hook, hook)
        assert caller.spec is not None
        (impl,) = (i for i in caller.get_hookimpls() if i.plugin is source)
        return _direct(impl.function, tuple(impl.argnames), tuple(caller.spec.argnames))


_PLAIN: Final = pluggy.HookimplOpts(
    wrapper=False,
    hookwrapper=False,
    optionalhook=False,
    tryfirst=False,
    trylast=False,
    specname=None,
)


def _direct(
    function: Callable[..., Any], takes: tuple[str, ...], given: tuple[str, ...]
) -> Callable[..., Any]:
    """A function that may take fewer arguments than the hook has, as pluggy allows."""
    if takes == given:
        return function
    places = [given.index(name) for name in takes]
    return lambda *args: function(*[args[place] for place in places])
