"""What a call of a hook really calls: the functions of drivers, as they are or as pluggy has them.

pluggy knows the table of hooks, whose functions are the defaults. It is started by the first driver
that is not plain (`plainhooks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tapcore.interface.hooks import HOOKS, REQUIRED_HOOKS
from tapcore.interface.misfits import describe_misfit, problem_with
from tapcore.interface.models import Hooks
from tapcore.interface.plainhooks import plain_hooks

if TYPE_CHECKING:
    from tapcore.interface.manager import Manager


class HookCallers:
    """The drivers that were taken in, and what is called of each."""

    def __init__(self) -> None:
        self._plain: list[tuple[Any, Mapping[str, Callable[..., Any]]]] = []

    @cached_property
    def _pm(self) -> Manager:
        from tapcore.interface.manager import Manager

        return Manager()

    def take_in(self, plugin: Any, handle: str) -> str:
        """Look at a driver's functions.

        Args:
            plugin: the driver.
            handle: of it.

        Returns:
            Why they cannot be used; "" where they can, and are taken in.
        """
        functions = plain_hooks(plugin)
        if functions is not None:
            problem = _missing(functions)
            if not problem:
                self._plain.append((plugin, functions))
            return problem
        return problem_with(plugin) or self._register(plugin, f"driver:{handle}")

    def _register(self, plugin: Any, name: str) -> str:
        try:
            self._pm.register(plugin, name)
        except Exception as exc:
            if self._pm.get_plugin(name) is plugin:
                self._pm.unregister(name=name)
            return describe_misfit(exc)
        problem = _missing(self.implemented(plugin))
        if problem:
            self._pm.unregister(plugin)
        return problem

    def implemented(self, plugin: Any) -> set[str]:
        """The hooks that a driver has which was taken in."""
        functions = self._functions_of(plugin)
        if functions is not None:
            return {*functions}
        return {caller.name for caller in self._pm.get_hookcallers(plugin) or ()}

    def calls_of(self, plugin: Any) -> dict[str, Callable[..., Any]]:
        """The function of each hook: the driver's, or the default, for all hooks."""
        functions = self._functions_of(plugin)
        if functions is not None:
            return {hook: functions.get(hook) or getattr(Hooks, hook) for hook in HOOKS}
        own = self.implemented(plugin)
        return {hook: self._pm.caller_of(hook, plugin if hook in own else Hooks) for hook in HOOKS}

    def _functions_of(self, plugin: Any) -> Mapping[str, Callable[..., Any]] | None:
        return next((functions for known, functions in self._plain if known is plugin), None)


def _missing(implemented: Mapping[str, Any] | set[str]) -> str:
    missing = [hook for hook in REQUIRED_HOOKS if hook not in implemented]
    return f"does not implement {', '.join(missing)}" if missing else ""
