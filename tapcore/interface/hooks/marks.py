"""The marks on functions by which pluggy knows hooks: what its own markers leave there.

They are made here, since pluggy would be imported for nothing else by most commands: a driver that
is plain (`plainhooks`) is called without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, overload

PROJECT: Final = "tapcore"
"""By its name pluggy finds the marks."""

F = TypeVar("F", bound=Callable[..., Any])


def mark_spec(
    function: Callable[..., Any], warning: Warning | None, of_arguments: Mapping[str, Warning]
) -> None:
    """Mark a function of the table.

    Args:
        function: of it.
        warning: for who implements it; None: there is none.
        of_arguments: for who takes one of these arguments, by name.
    """
    said = {
        "firstresult": True,
        "historic": False,
        "warn_on_impl": warning,
        "warn_on_impl_args": dict(of_arguments) or None,
    }
    setattr(function, f"{PROJECT}_spec", said)


@overload
def hookimpl(
    function: F,
    *,
    hookwrapper: bool = False,
    optionalhook: bool = False,
    tryfirst: bool = False,
    trylast: bool = False,
    specname: str | None = None,
    wrapper: bool = False,
) -> F: ...


@overload
def hookimpl(
    function: None = None,
    *,
    hookwrapper: bool = False,
    optionalhook: bool = False,
    tryfirst: bool = False,
    trylast: bool = False,
    specname: str | None = None,
    wrapper: bool = False,
) -> Callable[[F], F]: ...


def hookimpl(
    function: F | None = None,
    *,
    hookwrapper: bool = False,
    optionalhook: bool = False,
    tryfirst: bool = False,
    trylast: bool = False,
    specname: str | None = None,
    wrapper: bool = False,
) -> F | Callable[[F], F]:
    """Mark a function of a driver, or of a filter, as a hook: `@hookimpl`, `@hookimpl(...)`.

    Args:
        function: to be marked.
        hookwrapper, optionalhook, tryfirst, trylast, specname, wrapper: as pluggy has them.
    """
    said = {
        "wrapper": wrapper,
        "hookwrapper": hookwrapper,
        "optionalhook": optionalhook,
        "tryfirst": tryfirst,
        "trylast": trylast,
        "specname": specname,
    }

    def mark(function: F) -> F:
        setattr(function, f"{PROJECT}_impl", said)
        return function

    return mark if function is None else mark(function)
