"""`TAPCORE_TRACE`: every call of a driver's hooks, or every request, as a line on standard error.

Nothing is here for a disk that is not traced: the lines are written by functions around the hooks,
and those are there only where the environment asks for them.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from itertools import count
from time import monotonic, perf_counter_ns
from typing import Any, Final

from tapcore.constants import BLK_NOT_ALLOCATED
from tapcore.errors import UsageError, describe
from tapcore.interface.filters.hooks import Calls, without_bypass
from tapcore.interface.hooks import HOOKS
from tapcore.interface.models import DiskDriver, Hooks

TRACE: Final = "TAPCORE_TRACE"
"""Environment variable: `hooks`, `requests`, or both, separated by a comma."""

_WORDS: Final = frozenset(("hooks", "requests"))
_MOST: Final = 60
"""Characters of an argument or a result."""

_numbers = count(1)
_begun = monotonic()


def traced(handle: str, calls: Calls, environment: Mapping[str, str]) -> Calls:
    """A driver's hooks, with what the environment asks for written down.

    Args:
        handle: of the driver.
        calls: a function for each hook.
        environment: of the process.

    Returns:
        The same where nothing is to be traced. Else no front end moves content past them.

    Raises:
        UsageError: the environment asks for something else than there is.
    """
    words = wanted(environment)
    if not words:
        return calls
    calls = without_bypass(calls, ())
    for hook in HOOKS:
        names = tuple(inspect.signature(getattr(Hooks, hook)).parameters)
        if "requests" in words and "cb" in names:
            calls[hook] = _request(handle, hook, calls[hook], names)
        if "hooks" in words:
            calls[hook] = _call(handle, hook, calls[hook], names)
    return calls


def wanted(environment: Mapping[str, str]) -> set[str]:
    """The words of `TRACE`.

    Raises:
        UsageError: one of them means nothing.
    """
    words = {word.strip() for word in environment.get(TRACE, "").split(",")} - {""}
    if unknown := sorted(words - _WORDS):
        raise UsageError(f"{TRACE}: '{unknown[0]}' is neither 'hooks' nor 'requests'")
    return words


def say(text: str) -> None:
    """A line on standard error, with the seconds since this was imported."""
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed
        sys.stderr.write(f"trace {monotonic() - _begun:.6f} {text}\n")


def _call(
    handle: str, hook: str, call: Callable[..., Any], names: tuple[str, ...]
) -> Callable[..., Any]:
    def hook_with_a_line(*args: Any) -> Any:
        said = ", ".join(map(_shown, names, args))
        start = perf_counter_ns()
        try:
            result = call(*args)
        except BaseException as exc:
            say(f"{handle} {hook}({said}) raised {describe(exc)}, {_since(start)}")
            raise
        say(f"{handle} {hook}({said}) = {_short(result)}, {_since(start)}")
        return result

    return hook_with_a_line


def _shown(name: str, value: Any) -> str:
    return f"{name}={_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, DiskDriver):
        return _short(value.name)
    if value is None or isinstance(value, int | str | bytes | float):
        text = repr(value)
        return text if len(text) <= _MOST else f"{text[:_MOST]}..."
    if isinstance(value, memoryview):
        return f"<{value.nbytes} bytes>"
    return f"<{type(value).__name__}>"


def _request(
    handle: str, hook: str, call: Callable[..., Any], names: tuple[str, ...]
) -> Callable[..., Any]:
    """Its line, and one for each answer."""
    answered_by = names.index("cb")
    op = hook.removeprefix("td_queue_")

    def queue_with_lines(*args: Any) -> Any:
        number, start = next(_numbers), perf_counter_ns()
        dd, *_ = args
        where = f" {args[1] * 512}+{args[2] * 512}" if "sector" in names else ""
        say(f"#{number} {op}{where} of {dd.name!r} by {handle}")
        cb = args[answered_by]

        def answered(dd: Any, res: int, sector: int, nb_sectors: int, id: int, prv: Any) -> int:
            part = f" {sector * 512}+{nb_sectors * 512}" if nb_sectors else ""
            say(f"#{number}{part} = {_result(res)}, {_since(start)}")
            finished: int = cb(dd, res, sector, nb_sectors, id, prv)
            return finished

        result = call(*args[:answered_by], answered, *args[answered_by + 1 :])
        if isinstance(result, int) and result < 0:
            say(f"#{number} was refused: {_result(result)}")
        return result

    return queue_with_lines


def _result(res: int) -> str:
    if res == BLK_NOT_ALLOCATED:
        return "not in this image"
    return os.strerror(-res) if res < 0 else str(res)


def _since(start: int) -> str:
    return f"{(perf_counter_ns() - start) // 1000} µs"
