"""Keywords of public functions that have a new name: the old one works, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function be called with keywords of earlier releases.

    Args:
        names: the new name of each old one.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in names.items():
                if old in kwargs:
                    kwargs[new] = _moved(function.__name__, old, new, kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def _moved(function: str, old: str, new: str, given: dict[str, object]) -> object:
    if new in given:
        raise TypeError(f"{function}() got both '{new}' and '{old}', its name of earlier releases")
    text = f"{function}(): '{old}' is called '{new}' now"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return given.pop(old)
