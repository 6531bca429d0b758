"""What is set once for all commands: in the environment, or in a configuration file.

The file is `tapcore/config.toml` in `$XDG_CONFIG_HOME` (`~/.config`), else in the first of
`$XDG_CONFIG_DIRS` (`/etc/xdg`) that has one. An option of a command comes before both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from tapcore.errors import UsageError, describe

PARENTS: Final = "TAPCORE_PARENTS"
"""Directories, `any` or `none`, with colons between: what `--parents` would say."""

_MAX_BYTES: Final = 1 << 20


def parents_set() -> tuple[str, ...]:
    """What stands for `--parents` where a command does not say it.

    Raises:
        UsageError: the environment or the configuration file says something impossible.
    """
    given = os.environ.get(PARENTS)
    if given is not None:
        words = tuple(word for word in given.split(":") if word)
        return _checked(words, PARENTS)
    path = config_path()
    return () if path is None else _from_file(path)


def config_path() -> str | None:
    """The configuration file, or None where there is none."""
    for folder in _folders():
        path = os.path.join(folder, "tapcore", "config.toml")
        if os.path.isfile(path):
            return path
    return None


def _folders() -> Iterator[str]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    others = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    # the specification: a relative path says nothing
    yield from (folder for folder in (home, *others.split(":")) if os.path.isabs(folder))


def _from_file(path: str) -> tuple[str, ...]:
    found = _read(path)
    unknown = sorted(found.keys() - {"parents"})
    if unknown:
        raise UsageError(f"has a key '{unknown[0]}'; 'parents' is the only one", image=path)
    words = found.get("parents", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError("'parents' is not a list of texts", image=path)
    return _checked(tuple(words), path)


def _read(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read(_MAX_BYTES).decode())
    except (OSError, ValueError) as exc:
        raise UsageError(f"cannot be read: {describe(exc)}", image=path) from None


def _checked(words: tuple[str, ...], where: str) -> tuple[str, ...]:
    """A relative directory would mean another one in each working directory."""
    for word in words:
        if word not in ("any", "none") and not os.path.isabs(word):
            raise UsageError(f"{where}: '{word}' is neither an absolute path, 'any' nor 'none'")
    return words
