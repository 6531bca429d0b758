"""What a filter is told on a command line: `NAME[:KEY=VALUE,...]`, typed by its factory.

A factory is a class that derives from `Filter`, or a function; its parameters with their
annotations say what can be given. A wrong one is one line that lists what is allowed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin
from typing import get_type_hints as _hints_of

import attrs

from tapcore.errors import TapError, UsageError
from tapcore.interface.filters.filter import Filter
from tapcore.sizes import parse_size

Factory: TypeAlias = Callable[..., Any]


@attrs.frozen
class TextForm:
    """How a parameter is written: `Annotated[float, TextForm("SECONDS", read_seconds)]`.

    Attributes:
        shown: what stands for a value in lists: "SECONDS".
        read: the value from its text; raises ValueError or UsageError, whose text says what is
            allowed.
    """

    shown: str
    read: Callable[[str], Any]


# ---- values --------------------------------------------------------------------------------------

_SECONDS: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(us|ms|s|)", re.ASCII)
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}


def read_seconds(text: str) -> float:
    """Seconds from `250us`, `10ms`, `1.5s`, `2`."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a time (examples: 250us, 10ms, 1.5s)")
    return float(match[1]) * _UNITS[match[2]]


def read_rate(text: str) -> float:
    """How often, 0 to 1, from `0.01` or `1%`."""
    number, percent = (text[:-1], 100.0) if text.endswith("%") else (text, 1.0)
    try:
        rate = float(number) / percent
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise ValueError(f"'{text}' is not a rate (0 to 1, or 0% to 100%)")
    return rate


def _read_whole(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise ValueError(f"'{text}' is not a whole number")
    return int(text)


def _read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a number") from None


def _read_switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"'{text}' is neither on nor off")
    return text == "on"


Seconds: TypeAlias = Annotated[float, TextForm("SECONDS", read_seconds)]
Rate: TypeAlias = Annotated[float, TextForm("RATE", read_rate)]
Size: TypeAlias = Annotated[int, TextForm("SIZE", parse_size)]

_PLAIN: Final = {
    int: TextForm("N", _read_whole),
    float: TextForm("X", _read_number),
    str: TextForm("TEXT", str),
    bool: TextForm("on|off", _read_switch),
}


def _form_of(hint: Any) -> TextForm:
    """How values of an annotation are written; as text where it says nothing that is known."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        forms = [each for each in inside[1:] if isinstance(each, TextForm)]
        return forms[0] if forms else _form_of(inside[0])
    if origin in (Union, UnionType):
        return _form_of(next(each for each in inside if each is not NoneType))
    if origin is Literal:
        return TextForm("|".join(map(str, inside)), lambda text: _one_of(text, inside))
    return _PLAIN.get(hint, _PLAIN[str])


def _one_of(text: str, known: tuple[Any, ...]) -> Any:
    for each in known:
        if str(each) == text:
            return each
    raise ValueError(f"'{text}' is none of {', '.join(map(str, known))}")


# ---- parameters ----------------------------------------------------------------------------------


@attrs.frozen
class Parameter:
    """What a factory can be told.

    Attributes:
        name: the key.
        form: of its value.
        required: there is no default.
    """

    name: str
    form: TextForm
    required: bool

    def __str__(self) -> str:
        text = f"{self.name}={self.form.shown}"
        return text if self.required else f"[{text}]"


@attrs.frozen
class FilterInfo:
    """A row of the table of filters.

    Attributes:
        name: by which it is chosen.
        title: what it does, one line.
        parameters: what it can be told.
        distribution: that brought it, and its version; empty where it was registered.
        version: of the distribution.
        error: why it cannot be used; empty for a good one.
    """

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    distribution: str = ""
    version: str = ""
    error: str = ""

    @classmethod
    def of(cls, name: str, plugin: Any, distribution: str, version: str) -> FilterInfo:
        """Of a filter, or what makes one."""
        title = getattr(plugin, "title", "") or (inspect.getdoc(plugin) or "").partition("\n")[0]
        known = tuple(parameters_of(plugin)) if is_factory(plugin) else ()
        return cls(name, title.rstrip("."), known, distribution, version)


def is_factory(plugin: object) -> bool:
    """Whether an entry point's object makes filters, and is none itself."""
    if inspect.isclass(plugin):
        return issubclass(plugin, Filter)
    return inspect.isfunction(plugin)


def parameters_of(factory: Factory) -> list[Parameter]:
    """What a factory can be told, in its order."""
    described = factory.__init__ if inspect.isclass(factory) else factory
    hints = _hints_of(described, include_extras=True)
    return [
        Parameter(name, _form_of(hints.get(name, str)), each.default is each.empty)
        for name, each in inspect.signature(factory).parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]


def split_choice(text: str) -> tuple[str, dict[str, str]]:
    """`NAME[:KEY=VALUE,...]` into the name and the values; `,,` is a comma in a value."""
    name, _, rest = text.partition(":")
    values: dict[str, str] = {}
    for item in rest.replace(",,", "\0").split(",") if rest else ():
        key, equals, value = item.replace("\0", ",").partition("=")
        if not key or not equals:
            raise UsageError(f"the filter '{name}': '{key}' is not KEY=VALUE")
        if key in values:
            raise UsageError(f"the filter '{name}': {key} is given twice")
        values[key] = value
    return name, values


def make_filter(name: str, factory: Factory, values: Mapping[str, str]) -> Any:
    """Have a filter made.

    Raises:
        UsageError: a parameter or a value is wrong, or missing; the text lists what there is.
    """
    known = {each.name: each for each in parameters_of(factory)}
    given: dict[str, Any] = {}
    for key, text in values.items():
        if key not in known:
            raise _wrong(name, f"has no parameter '{key}'", known)
        try:
            given[key] = known[key].form.read(text)
        except (ValueError, TapError) as exc:
            raise _wrong(name, f"{key}: {exc}", known) from None
    missing = [each.name for each in known.values() if each.required and each.name not in given]
    if missing:
        raise _wrong(name, f"needs {', '.join(missing)}", known)
    try:
        return factory(**given)
    except (TapError, OSError, ValueError) as exc:
        raise _wrong(name, str(exc), known) from None


def _wrong(name: str, problem: str, known: Mapping[str, Parameter]) -> UsageError:
    allowed = ", ".join(map(str, known.values())) or "nothing"
    colon = "" if problem.startswith(("has ", "needs ")) else ":"
    return UsageError(f"the filter '{name}'{colon} {problem} (it takes: {allowed})")
