"""Judging `-o KEY=VALUE` before a driver sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tapcore.errors import UsageError
from tapcore.interface.diskinfo import FormatOption


def as_texts(options: Mapping[str, str | os.PathLike[str]] | None) -> dict[str, str]:
    """Options for a driver: some name files, and from Python a name may be a path."""
    return {key: os.fsdecode(value) for key, value in (options or {}).items()}


def check_options(
    image: str, handle: str, known: Sequence[FormatOption], options: Mapping[str, str]
) -> None:
    """Stop at an option that a format does not have, or a value that it cannot have.

    Args:
        image: whose options they are, for the error.
        handle: of its format.
        known: what the format takes.
        options: from `-o`.

    Raises:
        UsageError: the text lists what is allowed.
    """
    by_name = {option.name: option for option in known}
    for key, value in options.items():
        option = by_name.get(key)
        if option is None:
            names = ", ".join(by_name) or "none"
            raise UsageError(
                f"the format '{handle}' has no option '{key}' (known: {names})", image=image
            )
        if option.choices and value not in option.choices:
            raise UsageError(
                f"'{value}' is not a value of the option '{key}' "
                f"(allowed: {', '.join(option.choices)})",
                image=image,
            )
