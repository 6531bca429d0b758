"""A package with a driver that works, for somebody who begins to write one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args

import attrs

from tapcore.errors import UsageError
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.magic import Magic
from tapcore.interface.manifest import MANIFEST, Manifest, render_manifest
from tapcore.interface.misfits import MAX_HANDLE
from tapcore.interface.registry import Registry, default_registry

Door: TypeAlias = Literal["simple", "map", "hooks"]
"""How the driver is written: the three doors of docs/write-a-driver.md."""

_HANDLE: Final = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_TEMPLATES: Final = os.path.join(os.path.dirname(__file__), "templates")
_FILES: Final = {
    "pyproject.toml": "pyproject",
    "README.md": "readme",
    "LICENSE": "license",
    ".github/workflows/test.yml": "workflow",
    "tests/test_{{handle}}.py": "tests",
}
"""What every package has besides the driver; path, and name of the template."""

_READS: Final = {
    "simple": {"td_close", "td_do_callbacks", "td_open", "td_queue_read"},
    "map": {
        *("td_close", "td_do_callbacks", "td_extents", "td_open", "td_places", "td_queue_read"),
        "td_submit",
    },
    "hooks": {"td_close", "td_do_callbacks", "td_open", "td_queue_read", "td_submit"},
}
_WRITES: Final = {
    "simple": {"td_create", "td_queue_flush", "td_queue_write"},
    "map": {
        *("td_create", "td_queue_discard", "td_queue_flush", "td_queue_write"),
        "td_queue_write_zeroes",
    },
    "hooks": {"td_create", "td_queue_flush", "td_queue_write"},
}


@attrs.frozen
class NewPlugin:
    """What was written.

    Attributes:
        folder: of the package.
        handle: of its driver.
        files: paths in the folder, sorted.
        next_commands: what to do now.
    """

    folder: str
    handle: str
    files: tuple[str, ...]
    next_commands: tuple[str, ...]


def new_plugin(
    name: str,
    door: Door = "simple",
    *,
    read_only: bool = False,
    directory: str = ".",
    registry: Registry | None = None,
) -> NewPlugin:
    """Write a package `tap-HANDLE` with a driver, its tests, and all that it takes to publish it.

    Args:
        name: the handle, or `tap-HANDLE`.
        door: how the driver is written.
        read_only: it can neither be written to nor made.
        directory: where the package's folder is made.
        registry: whose handles are taken.

    Raises:
        UsageError: this cannot be a handle, it is taken, or the folder exists.
        OSError: it cannot be written.
    """
    handle = name.removeprefix("tap-")
    _check(handle, door, registry or default_registry())
    folder = os.path.join(directory, f"tap-{handle}")
    try:
        os.makedirs(folder)
    except FileExistsError:
        raise UsageError(f"{folder} exists already") from None
    contents = _contents(handle, door, read_only=read_only)
    for path, text in contents.items():
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "w", encoding="utf-8") as file:
            file.write(text)
    return NewPlugin(folder, handle, tuple(sorted(contents)), _next_commands(folder, handle))


def _check(handle: str, door: str, registry: Registry) -> None:
    if door not in get_args(Door):
        raise UsageError(f"no such kind of driver: {door}")
    if not _HANDLE.fullmatch(handle) or len(handle) > MAX_HANDLE:
        raise UsageError(
            f"'{handle}' cannot be a handle: small letters and digits, at most {MAX_HANDLE}"
        )
    if registry.knows(handle):
        raise UsageError(f"the handle '{handle}' is taken by a driver that is installed")


def _next_commands(folder: str, handle: str) -> tuple[str, ...]:
    return (
        f"pip install -e '{folder}[test]'",
        f"pytest {folder}",
        f"tapdisk formats --long {handle}",
    )


def _contents(handle: str, door: Door, *, read_only: bool) -> dict[str, str]:
    """The text of each file, by its path."""
    package = f"tap_{handle}"
    words = _words(handle, door)
    found = {
        _fill(path, words, read_only): _fill(_template(name), words, read_only)
        for path, name in _FILES.items()
    }
    found[f"{package}/__init__.py"] = f'"""{words["Handle"]} disk images for tapcore."""\n'
    found[f"{package}/py.typed"] = ""
    found[f"{package}/driver.py"] = _fill(_template(door), words, read_only)
    found[f"{package}/{MANIFEST}"] = _manifest(handle, door, words["magic"], read_only=read_only)
    return found


def _words(handle: str, door: Door) -> dict[str, str]:
    """What stands for the names in `{{ }}` of a template."""
    package, named = f"tap_{handle}", handle.capitalize()
    simple = door == "simple"
    imports = {
        "simple": f"HEADER, START, {named}",
        "map": "CHUNK, HEADER, MAGIC, slots_for",
        "hooks": "HEADER, MAGIC, START",
    }
    return {
        "handle": handle,
        "Handle": named,
        "Class": named,
        "project": f"tap-{handle}",
        "package": package,
        "magic": f"{handle.upper()}-DISK",
        "entry_point": f"{package}.driver:{named}" if simple else f"{package}.driver",
        "year": str(time.localtime().tm_year),
        "test_imports": imports[door],
        "test_magic": f"{named}.magic" if simple else "MAGIC",
        "test_length": "(1 + slots_for(4 * slots_for(size))) * CHUNK"
        if door == "map"
        else "START + size",
    }


def _manifest(handle: str, door: Door, magic: str, *, read_only: bool) -> str:
    info = DiskInfo(
        handle=handle,
        name=f"{handle} image",
        api=1,
        suffixes=(f".{handle}",),
        magic=(Magic(magic.encode()),),
    )
    hooks = _READS[door] if read_only else _READS[door] | _WRITES[door]
    return render_manifest([Manifest(info, frozenset(hooks))])


def _template(name: str) -> str:
    with open(os.path.join(_TEMPLATES, f"{name}.txt"), encoding="utf-8") as file:
        return file.read()


def _fill(text: str, words: Mapping[str, str], read_only: bool) -> str:
    """A template with its words, and with the parts for one kind alone taken or left out.

    `%% write` and `%% readonly` begin such a part, on a line of their own; `%% end` ends it.
    """
    kept, taken = [], True
    for line in text.splitlines(keepends=True):
        if line.startswith("%% "):
            part = line[3:].strip()
            taken = part == "end" or part == ("readonly" if read_only else "write")
        elif taken:
            kept.append(line)
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], "".join(kept))
