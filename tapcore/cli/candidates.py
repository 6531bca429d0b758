"""What can stand where a command line wants an image, a file, an option: for completion."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from tapcore.interface.filters.parameters import FilterInfo

_MOST: Final = 2000
"""Of one directory's files."""


def _handles() -> list[str]:
    """Of the drivers that are installed; none is loaded for it."""
    from tapcore.interface.installed import entry_points
    from tapcore.interface.registry import DRIVER_GROUP

    return sorted({entry.name for entry in entry_points(group=DRIVER_GROUP)})


def handle_items(incomplete: str) -> list[CompletionItem[str]]:
    """`HANDLE`."""
    return [CompletionItem(name) for name in _handles() if name.startswith(incomplete)]


def filter_items(incomplete: str) -> list[CompletionItem[str]]:
    """`NAME[:KEY=VALUE,...]`: names of filters that are installed; then what one can be told."""
    from tapcore.interface.registry import default_registry

    rows = default_registry().filters()
    name, colon, values = incomplete.partition(":")
    if not colon:
        return [CompletionItem(row.name, help=row.title) for row in rows if _begins(row, name)]
    before, comma, last = values.rpartition(",")
    front = f"{name}:{before}{comma}"
    known = [each for row in rows if row.name == name for each in row.parameters]
    return [CompletionItem(f"{front}{each.name}=") for each in known if each.name.startswith(last)]


def _begins(row: FilterInfo, name: str) -> bool:
    return row.name.startswith(name) and not row.error


def image_items(incomplete: str) -> list[CompletionItem[str]]:
    """`[HANDLE:]PATH`: handles that are installed, and files."""
    handle, colon, path = incomplete.partition(":")
    if colon and handle in _handles():
        return file_items(path, f"{handle}:")
    found = [CompletionItem(f"{name}:") for name in _handles() if name.startswith(incomplete)]
    return [*file_items(incomplete), *found]


def file_items(
    incomplete: str, front: str = "", *, only_directories: bool = False
) -> list[CompletionItem[str]]:
    """Files and directories whose path goes on from what was typed.

    Args:
        incomplete: the beginning of a path; `~` is the user's home.
        front: what stands before the path in the word.
        only_directories: leave files out.
    """
    directory, name = os.path.split(incomplete)
    shown = f"{directory.rstrip('/')}/" if directory else ""
    found: list[str] = []
    try:
        with os.scandir(os.path.expanduser(directory) or ".") as entries:
            for entry in entries:
                if not entry.name.startswith(name) or (entry.name[0] == "." and not name):
                    continue
                if entry.is_dir():
                    found.append(f"{entry.name}/")
                elif not only_directories:
                    found.append(entry.name)
                if len(found) == _MOST:
                    break
    except OSError:  # not there, or not to be read
        return []
    return [CompletionItem(f"{front}{shown}{name}", type="file") for name in sorted(found)]


def key_file_items(incomplete: str) -> list[CompletionItem[str]]:
    """`[IMAGE=]FILE`."""
    image, equals, path = incomplete.rpartition("=")
    return file_items(path, image + equals)


def directory_items(incomplete: str) -> list[CompletionItem[str]]:
    """`DIR`."""
    return file_items(incomplete, only_directories=True)


def parents_items(incomplete: str) -> list[CompletionItem[str]]:
    """`DIR|any|none`."""
    words = [CompletionItem(word) for word in ("any", "none") if word.startswith(incomplete)]
    return [*words, *file_items(incomplete, only_directories=True)]


def named_image(ctx: click.Context) -> str:
    """The image of which a command line names the format so far; "" where it names none."""
    names = [
        argument.name for argument in ctx.command.params if isinstance(argument, click.Argument)
    ]
    # before an option that lacks its value click leaves the arguments where they are
    given = dict(zip(names, ctx.args, strict=False))
    given.update((name, value) for name, value in ctx.params.items() if value)
    made = f"{given['handle']}:new" if "handle" in given else ""
    return str(made or given.get("target") or given.get("image") or "")


def format_option_items(
    image: str, incomplete: str, *, amending: bool = False
) -> list[CompletionItem[str]]:
    """`KEY=VALUE[,KEY=VALUE]...` of the format that a new image's name says.

    Args:
        image: `[HANDLE:]PATH`.
        incomplete: the beginning of the option's value.
        amending: what can be changed of an image, not what a new one can have.
    """
    from tapcore.interface.registry import default_registry
    from tapcore.opening.names import handle_for_new, split_name

    registry = default_registry()
    info = handle_for_new(split_name(image, registry), registry)
    known = info.amend_options if amending else info.create_options
    options = {option.name: option for option in known}
    before, comma, last = incomplete.rpartition(",")
    front = before + comma
    key, equals, value = last.partition("=")
    if equals:
        choices = options[key].choices if key in options else ()
        values = [choice for choice in choices if choice.startswith(value)]
        return [CompletionItem(f"{front}{key}={choice}") for choice in values]
    return [
        CompletionItem(f"{front}{name}=", help=option.help)
        for name, option in options.items()
        if name.startswith(last)
    ]


def disk_items(incomplete: str, run_dir: str | None) -> list[CompletionItem[str]]:
    """Names of disks that are attached; none where no daemon answers at once."""
    from tapcore.daemon.client import DaemonClient
    from tapcore.errors import TapError

    try:
        with DaemonClient(run_dir, timeout=1.0) as client:
            rows = client.disks()
    except TapError:
        return []
    return [
        CompletionItem(row["name"], help=row["image"])
        for row in rows
        if row["name"].startswith(incomplete)
    ]
