"""Verbs: what can be asked for over a control socket, with parameters checked in one place.

A verb is a function whose keyword parameters are what a caller gives; their annotations say what
that may be: `str`, `int`, `float`, `bool`, `tuple[str, ...]`, each `| None`, or an attrs class of
those. One without a default has to be given. The first line of the docstring says what it does.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final, Generic, TypeVar

import attrs

from tapcore.daemon.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, RpcError
from tapcore.errors import printable

MAX_WORDS: Final = 256
"""Of one parameter that is a list."""

MAX_TEXT: Final = 4096
"""Characters of one text: a path's length."""

_MAX_INTEGER: Final = 1 << 63

Host = TypeVar("Host")


class Later:
    """An answer that comes later: a verb gives it back, and settles it once."""

    __slots__ = ("_settled", "_then")

    def __init__(self) -> None:
        self._then: list[Callable[[Any, BaseException | None], object]] = []
        self._settled: tuple[Any, BaseException | None] | None = None

    def answer(self, result: Any) -> None:
        """It went well."""
        self.settle(result, None)

    def fail(self, exc: BaseException) -> None:
        """It did not."""
        self.settle(None, exc)

    def then(self, tell: Callable[[Any, BaseException | None], object]) -> None:
        """Call `tell(result, error)` once that is known, perhaps now; several can be told."""
        if self._settled is not None:
            tell(*self._settled)
        else:
            self._then.append(tell)

    def settle(self, result: Any, error: BaseException | None) -> None:
        """It went as another one did, which is told by `other.then(this.settle)`."""
        if self._settled is not None:
            return
        self._settled = result, error
        then, self._then = self._then, []
        for tell in then:
            tell(result, error)


@attrs.frozen
class Parameter:
    """What a verb takes.

    Attributes:
        name: of it.
        kind: `str`, `int`, `float`, `bool` or `tuple`.
        default: what is taken where it is not given; `inspect.Parameter.empty`: it has to be.
        nullable: it can be null, too.
    """

    name: str
    kind: type
    default: Any
    nullable: bool

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        """As documentation writes it: with its default, where that says something."""
        if self.required:
            return f"`{self.name}`"
        said = "" if self.default in ("", None, ()) else f"={json.dumps(self.default)}"
        return f"[`{self.name}{said}`]"

    def checked(self, value: Any) -> Any:
        """The value, as the verb wants it.

        Raises:
            RpcError: it is something else.
        """
        if value is None and self.nullable:
            return None
        right = _CHECKS[self.kind](value)
        if right is None:
            raise RpcError(INVALID_PARAMS, f"'{self.name}' has to be {_WORDS[self.kind]}")
        return right


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else None


def _integer(value: Any) -> int | None:
    right = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_INTEGER
    return value if right else None


def _number(value: Any) -> float | None:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if right and abs(value) < _MAX_INTEGER else None  # not NaN either


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or len(value) > MAX_WORDS:
        return None
    return None if any(_text(each) is None for each in value) else tuple(value)


_CHECKS: Final[Mapping[type, Callable[[Any], Any]]] = {
    str: _text,
    int: _integer,
    float: _number,
    bool: _flag,
    tuple: _texts,
}
_WORDS: Final[Mapping[type, str]] = {
    str: f"a text of {MAX_TEXT} characters at most",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    tuple: f"a list of {MAX_WORDS} texts at most",
}


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """What a function, or the making of an attrs class, takes by name.

    A parameter that is an attrs class itself stands for all that this takes.
    """
    takes: tuple[Parameter, ...] = _parameters_of(function)
    return takes


@cache
def _parameters_of(function: Any) -> tuple[Parameter, ...]:
    found: list[Parameter] = []
    for each, hint in _given(function):
        found += parameters_of(hint) if attrs.has(hint) else [_parameter(each, hint)]
    return tuple(found)


def _given(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    hints = typing.get_type_hints(function)
    given = inspect.signature(function).parameters.values()
    named = [each for each in given if inspect.isclass(function) or each.kind is each.KEYWORD_ONLY]
    return [(each, hints[each.name]) for each in named]


def _parameter(given: inspect.Parameter, hint: Any) -> Parameter:
    kinds, nullable = [hint], False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [each for each in typing.get_args(hint) if each is not types.NoneType]
        nullable = len(kinds) < len(typing.get_args(hint))
    (kind,) = kinds
    kind = typing.get_origin(kind) or kind
    if kind not in _CHECKS:
        raise TypeError(f"a verb cannot take a {kind}")
    return Parameter(given.name, kind, given.default, nullable)


def taken(takes: Iterable[Parameter], params: Mapping[str, Any], what: str) -> dict[str, Any]:
    """What was given of these parameters, each checked; those that have defaults can be missing.

    Args:
        takes: the parameters.
        params: as they came.
        what: it is that takes them, for messages.

    Raises:
        RpcError: one is missing, unknown, or has the wrong type.
    """
    known = {each.name: each for each in takes}
    for name in params:
        if name not in known:
            raise RpcError(INVALID_PARAMS, f"'{what}' has no parameter '{printable(name)}'")
    for each in known.values():
        if each.required and each.name not in params:
            raise RpcError(INVALID_PARAMS, f"'{what}' needs '{each.name}'")
    return {name: known[name].checked(value) for name, value in params.items()}


@attrs.frozen
class Verb(Generic[Host]):
    """One thing that can be asked for.

    Attributes:
        name: the method's name.
        function: that does it.
        takes: its parameters.
        made: of those, what one parameter of the function is made of: its name, and its class.
        does: one line for the documentation.
    """

    name: str
    function: Callable[..., Any]
    takes: tuple[Parameter, ...]
    made: tuple[tuple[str, type], ...]
    does: str

    @classmethod
    def of(cls, name: str, function: Callable[..., Any]) -> Verb[Host]:
        """From a function, by its signature."""
        made = tuple((each.name, hint) for each, hint in _given(function) if attrs.has(hint))
        does = (inspect.getdoc(function) or "").partition("\n")[0]
        return cls(name, function, parameters_of(function), made, does)

    def __call__(self, host: Host, params: Mapping[str, Any]) -> Any:
        """Do it.

        Args:
            host: whose verb it is.
            params: as they came.

        Returns:
            The result, or a `Later`.

        Raises:
            RpcError: a parameter is missing, unknown, or has the wrong type.
        """
        given = taken(self.takes, params, self.name)
        for name, kind in self.made:
            inside = {each.name for each in parameters_of(kind)}
            parts = {key: given.pop(key) for key in inside & given.keys()}
            given[name] = kind(**parts)
        return self.function(host, **given)


class VerbTable(Generic[Host]):
    """Verbs by their names.

    Args:
        functions: for each name what does it.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._verbs: dict[str, Verb[Host]] = {}
        self.add(functions)

    def add(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        """More of them."""
        for name, function in functions.items():
            self._verbs[name] = Verb.of(name, function)

    def __contains__(self, name: str) -> bool:
        return name in self._verbs

    def __iter__(self) -> Iterator[Verb[Host]]:
        return iter(self._verbs.values())

    def find(self, name: str) -> Verb[Host]:
        """The verb of a name.

        Raises:
            RpcError: there is none.
        """
        verb = self._verbs.get(name)
        if verb is None:
            raise RpcError(METHOD_NOT_FOUND, f"there is no method '{name[:100]}'")
        return verb
