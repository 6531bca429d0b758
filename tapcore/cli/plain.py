"""Commands as they are typed most, without options: done without the parser of the command line.

To import click and to declare options takes longer than what these do. Whatever else is said goes
the way of every command, which does the same there: both print by the same functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tapcore.cli.failures import Session, set_up_logging_later
from tapcore.cli.later import LateLogger

COMPLETE: Final = "_TAPDISK_COMPLETE"
"""Set in the environment by a shell that asks for completions."""


def plain_command(arguments: Sequence[str]) -> Callable[[Session], None] | None:
    """What does it; None where the command line has to be parsed.

    Args:
        arguments: without the program's name.
    """
    if not arguments or COMPLETE in os.environ:
        return None
    command, *rest = arguments
    known = _COMMANDS.get(command)
    if known is None or len(rest) != known[0] or not all(map(_is_plain, rest)):
        return None

    def run(session: Session) -> None:
        set_up_logging_later("warning", session)
        known[1](*rest)

    return run


def _is_plain(word: str) -> bool:
    return bool(word) and not word.startswith("-")


def _formats() -> None:
    from tapcore.cli.formatstable import print_formats

    print_formats()


def _info(image: str) -> None:
    from tapcore.cli.imagefacts import print_images
    from tapcore.cli.settings import parents_set
    from tapcore.interface.access import Access
    from tapcore.tools.info import image_info

    print_images(image_info(image, access=Access(parents_set())))


def _convert(source: str, target: str) -> None:
    from tapcore.cli.copied import print_copied
    from tapcore.cli.progress import progress
    from tapcore.cli.settings import parents_set
    from tapcore.tools.convert import convert_image

    with progress("converting", quiet=False) as tell:
        done = convert_image(source, target, parents=parents_set(), progress=tell)
    print_copied(*done)


_COMMANDS: Final[Mapping[str, tuple[int, Callable[..., None]]]] = {
    "convert": (2, _convert),
    "formats": (0, _formats),
    "info": (1, _info),
}
"""How many words each takes."""

_IS_CPYTHON: Final = sys.implementation.name == "cpython"


def _cleandoc(doc: str) -> str:
    """`inspect.cleandoc`, for which click imports that module: one line has little to clean."""
    if "\n" not in doc:
        return doc.expandtabs().lstrip()
    import inspect

    inspect.isclass(doc)  # loads the module, and with it its own
    return inspect.cleandoc(doc)


def _close_matches(word: str, possibilities: Sequence[str], *args: Any, **how: Any) -> list[str]:
    """`difflib.get_close_matches`, which click asks as well for what is near to each `-q`, taken
    for a long option first: nothing is."""
    if len(word) == len("-q"):
        return []
    import difflib

    difflib.ndiff  # noqa: B018 -- loads the module, and with it its own
    return difflib.get_close_matches(word, possibilities, *args, **how)


UNUSED_HERE: Final[Mapping[str, Mapping[str, Any]]] = {
    "inspect": {"cleandoc": _cleandoc},
    "difflib": {"get_close_matches": _close_matches},
    # click's texts have no other language, and these would look for it in a dozen places
    "gettext": {
        "gettext": lambda message: message,
        "ngettext": lambda one, many, count: one if count == 1 else many,
    },
    # asked by attrs and by uuid, for no more; the module compiles nine regular expressions
    "platform": {
        "system": lambda: os.uname().sysname,
        **({"python_implementation": lambda: "CPython"} if _IS_CPYTHON else {}),
    },
    **{
        name: {}
        for name in (
            *("attr.converters", "attr.filters", "attr.validators"),
            *("attrs.converters", "attrs.exceptions", "attrs.filters", "attrs.setters"),
            *("attrs.validators", "tokenize"),
        )
    },
}
"""What attrs and click import for cases that do not come in this project; and what they take of it
all the same."""

SELDOM_USED: Final[Mapping[str, Mapping[str, Any]]] = {
    **UNUSED_HERE,
    "logging": {"getLogger": LateLogger},
    "linecache": {"cache": {}},  # where attrs puts what debuggers would show
    "copy": {},
    "traceback": {},
}
"""And what is imported for cases that do not come in these commands."""
