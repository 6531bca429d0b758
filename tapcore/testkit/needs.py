"""Which checks apply to a driver, and that each comes to an end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import pytest

from tapcore.testkit.failing import within

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_tapcore_needs"


def needs(*words: str) -> Callable[[F], F]:
    """Mark a check: it is for drivers that have all of these, and must end in `check_limit` s.

    Args:
        words: capabilities as `tapdisk formats` lists them ("write", "parents", ...), names of
            hooks ("td_info"), or "file" (images are files), "lasting" (content outlives closing),
            "format" (not every file is an image), "recognised" (without its handle).
    """

    def mark(function: F) -> F:
        @functools.wraps(function)
        def check(self: Any, *args: Any, **kwargs: Any) -> None:
            what = "the check did not end: perhaps a request is never answered"
            with within(self.check_limit, what, 6 * self.patience):
                function(self, *args, **kwargs)

        setattr(check, _MARK, frozenset(words))
        return cast("F", check)

    return mark


def needs_of(check: object) -> frozenset[str]:
    """The words that a check was marked with."""
    found: frozenset[str] = getattr(check, _MARK, frozenset())
    return found


def left_out(reason: str) -> NoReturn:
    """End a check that cannot be made; the report says so, and why."""
    pytest.skip(reason)


def withdraw(cls: type, has: frozenset[str]) -> None:
    """Take the checks away from a class that need something that its driver does not have."""
    for name in dir(cls):
        if needs_of(getattr(cls, name, None)) - has:
            setattr(cls, name, None)
