"""What is wrong with an object that is to be a driver or a filter, in words for its author."""

from __future__ import annotations

from types import FunctionType, ModuleType
from typing import Any, Final

from tapcore.constants import HOOKS_VERSION, OLDEST_HOOKS_VERSION
from tapcore.errors import describe
from tapcore.interface.diskinfo import DiskInfo, FormatOption
from tapcore.interface.hooks import HOOKS, PROJECT
from tapcore.interface.magic import Magic

MAX_HANDLE: Final = 9

ASYNC: Final = 0x0280
"""`inspect.CO_COROUTINE` and `CO_ASYNC_GENERATOR`, without the import."""

_SINGLE: Final[dict[str, type]] = {"handle": str, "name": str, "api": int}
_SEVERAL: Final[dict[str, type]] = {
    "suffixes": str,
    "create_options": FormatOption,
    "amend_options": FormatOption,
    "magic": Magic,
}
"""Of which kinds the parts of a `disk_info` are."""


def problem_with(plugin: Any) -> str:
    """Why the functions of an object cannot be a driver's; "" where they may be."""
    if waiting := sorted(h for h, _, function in _marks(plugin) if _is_async(function)):
        return f"has {', '.join(waiting)} as 'async def': hooks are called, and never awaited"
    wrappers = sorted(h for h, opts in marked(plugin) if opts["wrapper"] or opts["hookwrapper"])
    if wrappers:
        return f"marks {', '.join(wrappers)} as a wrapper, which only a filter may be"
    return unknown_hooks({hook for hook, _ in marked(plugin)})


def problem_with_info(info: object, handle: str) -> str:
    """The same of its `disk_info`.

    Args:
        info: what it has by that name.
        handle: the name of its entry point.
    """
    if not isinstance(info, DiskInfo):
        return "has no disk_info: not a tapcore driver"
    return _wrong_kinds(info) or problem_with_facts(info, handle)


def _wrong_kinds(info: DiskInfo) -> str:
    """What of a `disk_info` is of another kind than it has to be: slips of authors."""
    for name, kind in _SINGLE.items():
        value = getattr(info, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"its disk_info has {name}={value!r}, which is no {kind.__name__}"
    for name, kind in _SEVERAL.items():
        found = getattr(info, name)
        if not isinstance(found, tuple | list) or not all(isinstance(each, kind) for each in found):
            return f"its disk_info has {name}={found!r}, which is no tuple of {kind.__name__}"
    looked_for: list[Any] = [magic.content for magic in info.magic]
    if strange := [content for content in looked_for if not isinstance(content, bytes)]:
        return f"its disk_info looks for the magic {strange[0]!r}, which is not bytes"
    return ""


def problem_with_facts(info: DiskInfo, handle: str) -> str:
    """As `problem_with_info`, of what a driver or its manifest says."""
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
    if type(plugin) is ModuleType:
        return isinstance(vars(plugin).get(name), FunctionType)
    import inspect

    from tapcore.interface.models import Hooks

    try:
        member = inspect.getattr_static(plugin, name, None)
    except Exception:  # there are objects that cannot be asked
        return False
    function = getattr(member, "__func__", member)
    # a driver that is a class may have inherited the default
    return isinstance(function, FunctionType) and function is not getattr(Hooks, name)


def marked(plugin: Any) -> list[tuple[str, dict[str, Any]]]:
    """The functions that carry a `@hookimpl` mark: name of the hook, what the mark says."""
    return [(hook, opts) for hook, opts, _ in _marks(plugin)]


def _marks(plugin: Any) -> list[tuple[str, dict[str, Any], object]]:
    """As `marked`, with the function."""
    mark = f"{PROJECT}_impl"
    found: list[tuple[str, dict[str, Any], object]] = []
    for name, member in _members(plugin):
        try:
            function = getattr(member, "__func__", member)
            opts = getattr(function, mark, None)
        except Exception:  # there are objects that cannot be asked
            continue
        if isinstance(opts, dict):  # and others that have every attribute
            found.append((opts.get("specname") or name, opts, function))
    return found


def _is_async(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & ASYNC)


def _members(plugin: Any) -> list[tuple[str, Any]]:
    if type(plugin) is ModuleType:  # and `inspect` takes longer to import than most of them
        return sorted(vars(plugin).items())
    import inspect

    return inspect.getmembers_static(plugin)


def describe_misfit(exc: Exception) -> str:
    """pluggy says over several lines what is wrong with a hook."""
    import pluggy

    if isinstance(exc, pluggy.PluginValidationError):
        return " ".join(str(exc).split())
    return describe(exc)
