"""How a hook gets into the table, and how a driver's function is marked as one.

A hook is a static method of `tapcore.Hooks`: its name, its signature, its contract (the docstring)
and what happens without it (the body). `hook` notes the rest. Everything else that has to know the
hooks follows from that: what pluggy is told, the resolved operations, the capabilities, the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar, get_args

from tapcore.errors import NotSupportedError
from tapcore.interface.hooks.marks import hookimpl, mark_spec

D = TypeVar("D")
"""The image that a hook is called for: `DiskDriver`, which itself knows the hooks."""

Callback: TypeAlias = Callable[[D, int, int, int, int, Any], int]
"""`TdCallback`, for that image."""

Capability: TypeAlias = Literal[
    "read",
    "write",
    "create",
    "parents",
    "discard",
    "zero",
    "extents",
    "resize",
    "check",
    "compress",
    "snapshots",
    "amend",
    "rebase",
    "stream",
    "bitmaps",
    "measure",
]
"""What `tapdisk formats` lists, in this order."""


class Hook(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the function.
        default: what a driver gets that lacks it, one line for people; empty where none may.
        capability: what a driver can do that has it; None: nothing that is listed.
        lack: the error where it is needed and missing, `{format}` in it for the format's name;
            empty where it is never needed.
        retiring: when it goes, and what takes its place, for a driver's author; empty: it stays.
    """

    name: str
    default: str
    capability: Capability | None
    lack: str
    retiring: str = ""


HOOKS: Final[dict[str, Hook]] = {}
"""The table, by name; `tapcore.interface.models` has loaded all of it."""

_F = TypeVar("_F", bound=Callable[..., Any])
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def hook(
    default: str = "",
    *,
    required: bool = False,
    capability: Capability | None = None,
    lack: str = "",
    retiring: str = "",
    retiring_arguments: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[_F], _F]:
    """Enter a function into the table.

    Args:
        default: what its body does, one line for people.
        required: a driver must have the hook, and the body is never called.
        capability: what a driver can do that has it.
        lack: what is said where it is needed and missing: `{format} cannot be resized`.
        retiring: it will go: "in 0.4; td_other takes its place". Who implements it is warned, for
            two releases.
        retiring_arguments: the same of its arguments, by name.
    """
    assert required != bool(default)

    def enter(function: _F) -> _F:
        name = function.__name__
        HOOKS[name] = Hook(name, default, capability, lack, retiring)
        leaves = {
            each: _retires(f"{name}({each})", why) for each, why in retiring_arguments.items()
        }
        mark_spec(function, _retires(name, retiring) if retiring else None, leaves)
        return function

    return enter


def _retires(what: str, why: str) -> Warning:
    return DeprecationWarning(f"{what} will go {why}")


def implements(
    hook: Callable[_Parameters, _Result],
) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Mark a driver's function as a hook, as `hookimpl` does; a type checker compares the two.

    Args:
        hook: the method of `Hooks`: `@implements(Hooks.td_open)`.

    Raises:
        TypeError: the function has another name than the hook.
    """

    def mark(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        if function.__name__ != hook.__name__:
            raise TypeError(f"{function.__name__} cannot implement {hook.__name__}")
        return hookimpl(function)

    return mark


def lack_of(hook: str, handle: str = "") -> str:
    """What is said where a hook is needed and the driver lacks it.

    Args:
        hook: its name.
        handle: of the driver; empty where it is not known.
    """
    return HOOKS[hook].lack.format(format=f"the format '{handle}'" if handle else "this format")


def not_supported(hook: str) -> NotSupportedError:
    """What a hook raises by default that a driver may lack and cannot do without."""
    return NotSupportedError(lack_of(hook))


def capabilities(implemented: set[str]) -> tuple[str, ...]:
    """What a driver with these hooks can do, in the order in which it is listed."""
    can = {row.capability for row in HOOKS.values() if row.name in implemented}
    return tuple(name for name in get_args(Capability) if name in can)
