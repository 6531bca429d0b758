"""Verbs: what can be asked for over a control socket, with parameters checked in one place.

A verb is a function whose parameters after the first are given by name; their annotations are what
a caller may give: `str`, `int`, `float`, `bool`, `tuple[str, ...]`, each `| None`. One without a
default has to be given. The first line of its docstring says what it does.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

import attrs

from tapcore.daemon.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, RpcError

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
        self._then: Callable[[Any, BaseException | None], object] | None = None
        self._settled: tuple[Any, BaseException | None] | None = None

    def answer(self, result: Any) -> None:
        """It went well."""
        self._settle(result, None)

    def fail(self, exc: BaseException) -> None:
        """It did not."""
        self._settle(None, exc)

    def then(self, tell: Callable[[Any, BaseException | None], object]) -> None:
        """Call `tell(result, error)` once that is known, perhaps now."""
        self._then = tell
        if self._settled is not None:
            tell(*self._settled)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self._settled is not None:
            return
        self._settled = result, error
        if self._then is not None:
            self._then(result, error)


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


@attrs.frozen
class Verb(Generic[Host]):
    """One thing that can be asked for.

    Attributes:
        name: the method's name.
        function: that does it.
        takes: its parameters.
        does: one line for the documentation.
    """

    name: str
    function: Callable[..., Any]
    takes: tuple[Parameter, ...]
    does: str

    @classmethod
    def of(cls, name: str, function: Callable[..., Any]) -> Verb[Host]:
        """From a function, by its signature."""
        given = list(inspect.signature(function).parameters.values())[1:]
        hints = typing.get_type_hints(function)
        takes = tuple(_parameter(each, hints[each.name]) for each in given)
        return cls(name, function, takes, (inspect.getdoc(function) or "").partition("\n")[0])

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
        known = {each.name for each in self.takes}
        for name in params:
            if name not in known:
                raise RpcError(INVALID_PARAMS, f"'{self.name}' has no parameter '{name}'")
        given = {}
        for each in self.takes:
            if each.name in params:
                given[each.name] = each.checked(params[each.name])
            elif each.required:
                raise RpcError(INVALID_PARAMS, f"'{self.name}' needs '{each.name}'")
        return self.function(host, **given)


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
