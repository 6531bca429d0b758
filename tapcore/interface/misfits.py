"""What is wrong with an object that is to be a driver or a filter, in words for its author."""

from __future__ import annotations

import inspect
import types
from typing import Any, Final

import pluggy

from tapcore.constants import HOOKS_VERSION, OLDEST_HOOKS_VERSION
from tapcore.errors import describe
from tapcore.interface.hooks import HOOKS, PROJECT
from tapcore.interface.models import DiskInfo, Hooks

MAX_HANDLE: Final = 9


def problem_with(plugin: Any, info: object, handle: str) -> str:
    """Why an object cannot be a driver; "" where it may be one.

    Args:
        plugin: the object.
        info: its `disk_info`.
        handle: the name of its entry point.
    """
    if not isinstance(info, DiskInfo):
        return "has no disk_info: not a tapcore driver"
    if problem := problem_with_facts(info, handle):
        return problem
    wrappers = sorted(h for h, opts in marked(plugin) if opts["wrapper"] or opts["hookwrapper"])
    if wrappers:
        return f"marks {', '.join(wrappers)} as a wrapper, which only a filter may be"
    return unknown_hooks({hook for hook, _ in marked(plugin)})


def problem_with_facts(info: DiskInfo, handle: str) -> str:
    """As `problem_with`, of what a driver or its manifest says."""
    if not OLDEST_HOOKS_VERSION <= info.api <= HOOKS_VERSION:
        return f"was written for version {info.api} of the hooks, this is version {_versions()}"
    if info.handle != handle:
        return f"its entry point is named '{handle}', but its handle is '{info.handle}'"
    if not handle.isidentifier() or len(handle) > MAX_HANDLE:
        return f"the handle must be a name of at most {MAX_HANDLE} characters"
    return ""


def _versions() -> str:
    if OLDEST_HOOKS_VERSION == HOOKS_VERSION:
        return str(HOOKS_VERSION)
    return f"{HOOKS_VERSION}, which takes {OLDEST_HOOKS_VERSION} and later"


def unknown_hooks(names: set[str] | frozenset[str]) -> str:
    """What to say of hooks that do not exist, with those that are meant perhaps; "" for none."""
    unknown = sorted(names - set(HOOKS))
    if not unknown:
        return ""
    return f"implements hooks that do not exist: {', '.join(map(_with_suggestion, unknown))}"


def _with_suggestion(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, HOOKS, 1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def unmarked_hooks(plugin: Any) -> list[str]:
    """Functions that are called like hooks, and are none for lack of a mark."""
    has = {hook for hook, _ in marked(plugin)}
    return [name for name in HOOKS if name not in has and _is_plain_hook(plugin, name)]


def _is_plain_hook(plugin: Any, name: str) -> bool:
    try:
        member = inspect.getattr_static(plugin, name, None)
    except Exception:  # there are objects that cannot be asked
        return False
    function = getattr(member, "__func__", member)
    # a driver that is a class may have inherited the default
    return isinstance(function, types.FunctionType) and function is not getattr(Hooks, name)


def marked(plugin: Any) -> list[tuple[str, dict[str, Any]]]:
    """The functions that carry a `@hookimpl` mark: name of the hook, what the mark says."""
    mark = f"{PROJECT}_impl"
    found = []
    for name, member in inspect.getmembers_static(plugin):
        try:
            opts = getattr(getattr(member, "__func__", member), mark, None)
        except Exception:  # there are objects that cannot be asked
            continue
        if isinstance(opts, dict):  # and others that have every attribute
            found.append((opts.get("specname") or name, opts))
    return found


def describe_misfit(exc: Exception) -> str:
    """pluggy says over several lines what is wrong with a hook."""
    if isinstance(exc, pluggy.PluginValidationError):
        return " ".join(str(exc).split())
    return describe(exc)
