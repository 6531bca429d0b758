"""Drivers as nearly all are: a module whose functions take exactly what their hooks are given.

Of such a function there is nothing to find out: it is called as it is. pluggy is asked about all
others, and to tell their authors what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, Final

from tapcore.interface.hooks import HOOKS, PROJECT
from tapcore.interface.misfits import ASYNC
from tapcore.interface.models import Hooks

_TAKES_MORE: Final = 0x0C
"""`inspect.CO_VARARGS` and `CO_VARKEYWORDS`, without the import, which takes longer than this."""


def plain_hooks(plugin: Any) -> dict[str, Callable[..., Any]] | None:
    """The functions of a driver that are marked as hooks, by name.

    Returns:
        None where one of them is not plain, or the driver is no module.
    """
    if type(plugin) is not ModuleType:
        return None
    found: dict[str, Callable[..., Any]] = {}
    for name, member in vars(plugin).items():
        mark = _mark_of(member)
        if mark is None:
            continue
        if name not in HOOKS or not _is_plain(member, mark, getattr(Hooks, name)):
            return None
        found[name] = member
    return found


def _mark_of(member: Any) -> object:
    try:
        return getattr(member, f"{PROJECT}_impl", None)
    except Exception:  # there are objects that cannot be asked
        return None


def _is_plain(function: Any, mark: object, spec: Any) -> bool:
    """Whether it is called with what the hook is given, in that order, and nobody is warned."""
    if type(function) is not FunctionType or not isinstance(mark, dict) or any(mark.values()):
        return False
    said = getattr(spec, f"{PROJECT}_spec")
    if said["warn_on_impl"] or said["warn_on_impl_args"]:
        return False
    code = function.__code__
    given = spec.__code__.co_varnames[: spec.__code__.co_argcount]
    return (
        code.co_varnames[: code.co_argcount] == given
        and not code.co_kwonlyargcount
        and not code.co_flags & (_TAKES_MORE | ASYNC)
        and not function.__defaults__
        and not hasattr(function, "__wrapped__")
    )
