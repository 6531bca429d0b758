"""What hooks give back that are no requests: looked at where they are called, for whoever does so.

A hook that returns what cannot be is an error that names the driver and the hook. What a driver
leaves out is the core's own, and is not looked at.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Final, TypeAlias

from tapcore.constants import SECTOR_SHIFT
from tapcore.interface.distrust import named, untrue

Calls: TypeAlias = dict[str, Callable[..., Any]]
"""A function for each hook, with the hook's positional arguments."""

_DONE: Final = (
    *("td_create", "td_close", "td_resize", "td_amend", "td_stream"),
    *("td_set_parent", "td_before_commit", "td_make_empty"),
    *("td_snapshot_apply", "td_snapshot_delete"),
    *("td_bitmap_add", "td_bitmap_remove", "td_bitmap_clear", "td_bitmap_enable"),
    "td_bitmap_merge",
)
"""Hooks that do something, and return nothing; or, as blktap's, 0 or -errno."""

_TEXTS: Final = {"name": str, "drivertype": str}


def looked_at(handle: str, calls: Calls, own: Iterable[str]) -> Calls:
    """The hooks of a driver; those in `own` with what they return looked at.

    Args:
        handle: of the driver.
        calls: all of its hooks.
        own: the names of those that it has itself.
    """
    found = {hook: _LOOKS[hook] for hook in own if hook in _LOOKS}
    return {**calls, **{hook: _with(handle, hook, calls[hook], found[hook]) for hook in found}}


_Look: TypeAlias = Callable[[Any, tuple[Any, ...]], str]
"""What is wrong with what a hook returned, called with these arguments; "" for nothing."""


def _with(handle: str, hook: str, call: Callable[..., Any], look: _Look) -> Callable[..., Any]:
    @wraps(call)
    def looked_at_call(*args: Any) -> Any:
        value = call(*args)
        if hook in _DONE and isinstance(value, int) and value < 0:
            raise OSError(-value, os.strerror(-value))
        if text := look(value, args):
            raise untrue(handle, hook, text, _image_of(args))
        return value

    return looked_at_call


def _image_of(args: tuple[Any, ...]) -> str:
    """Of the hook's first argument: an open image, or an image's name; "" where it has neither."""
    name = getattr(args[0], "name", args[0]) if args else ""
    return name if isinstance(name, str) else ""


# ---- of each kind --------------------------------------------------------------------------------


def _nothing(value: Any, args: tuple[Any, ...]) -> str:
    if value is None or (isinstance(value, int) and value == 0):
        return ""
    return f"returned {named(value)}, where None means that it is done"


def _resized(value: Any, args: tuple[Any, ...]) -> str:
    dd, size = args
    if text := _nothing(value, args):
        return text
    if dd.size << SECTOR_SHIFT != size:
        return f"was to make the disk {size} bytes long, and has left it {dd.size << SECTOR_SHIFT}"
    return ""


def _number(value: Any, args: tuple[Any, ...]) -> str:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return ""
    return f"returned {named(value)}, which is no number"


def _parent(value: Any, args: tuple[Any, ...]) -> str:
    _, found = args
    if text := _number(value, args):
        return text
    for name, kind in _TEXTS.items():
        if not isinstance(told := getattr(found, name), kind):
            return f"has set {name} to {named(told)}, which is no text"
    return ""


def _is_dict(value: Any, args: tuple[Any, ...]) -> str:
    return "" if isinstance(value, dict) else f"returned {named(value)}, which is no dict"


def _is(kind: str, *more: Callable[[Any], str]) -> _Look:
    """A model of what drivers say, whose module is imported where there may be one."""

    def look(value: Any, args: tuple[Any, ...]) -> str:
        if not isinstance(value, _result(kind)):
            return f"returned {named(value)}, which is no {kind}"
        return next(filter(None, (each(value) for each in more)), "")

    return look


def _result(kind: str) -> type[Any]:
    found: type[Any] = getattr(importlib.import_module(_MODULES.get(kind, _RESULTS)), kind)
    return found


def _counts(*names: str) -> Callable[[Any], str]:
    """Fields that are numbers of something."""

    def look(value: Any) -> str:
        for name in names:
            found = getattr(value, name)
            if not isinstance(found, int) or found < 0:
                return f"returned the {name} {found!r}, which is no number of anything"
        return ""

    return look


def _each(field: str, kind: str | type[Any]) -> Callable[[Any], str]:
    """A field that holds several of a kind."""
    return lambda value: _several(getattr(value, field), kind, f"{field}: ")


def _several(value: Any, kind: str | type[Any], of: str = "") -> str:
    """Of what was made on the way, as a generator does, nothing can be seen without taking it."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return f"returned {of}{named(value)}, which is no list"
    if not isinstance(value, list | tuple) or not value:
        return ""
    wanted = _result(kind) if isinstance(kind, str) else kind
    for each in value:
        if not isinstance(each, wanted):
            return f"returned {of}{named(each)} in a list of {wanted.__name__}"
    return ""


def _list_of(kind: str | type[Any]) -> _Look:
    return lambda value, args: _several(value, kind)


def _references(said: Any) -> str:
    for each in said.references:
        pair = isinstance(each, tuple) and len(each) == 2
        if not pair or not all(isinstance(text, str) for text in each):
            return f"returned the reference {each!r}, which is no pair of role and name"
    return ""


_NUMBERS: Final = (
    *("leaks", "leaks_fixed", "corruptions", "corruptions_fixed", "check_errors"),
    *("total_clusters", "allocated_clusters", "compressed_clusters", "image_end_offset"),
)

_RESULTS: Final = "tapcore.interface.results"
_MODULES: Final = dict.fromkeys(("Finding", "Inspection"), "tapcore.interface.inspection")
"""Of models; all others are in `_RESULTS`."""

_LOOKS: Final[Mapping[str, _Look]] = {
    **dict.fromkeys(_DONE, _nothing),
    "td_close": lambda value, args: "",  # it is closed, whatever was returned
    "td_resize": _resized,
    "td_get_parent_id": _parent,
    "td_validate_parent": _number,
    "td_other_files": _list_of(str),
    "td_snapshots": _list_of("Snapshot"),
    "td_snapshot_create": _is("Snapshot"),
    "td_bitmaps": _list_of("Bitmap"),
    "td_info": _is_dict,
    "td_check": _is("CheckResult", _counts(*_NUMBERS), _each("messages", str)),
    "td_measure": _is("Measurement", _counts("required", "fully_allocated", "bitmaps")),
    "td_inspect": _is(
        "Inspection", _counts("virtual_size"), _references, _each("findings", "Finding")
    ),
}
