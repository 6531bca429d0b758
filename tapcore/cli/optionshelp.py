"""`-o help`: the options that a format takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tapcore.cli.output import print_line, print_pairs
from tapcore.interface.diskinfo import FormatOption
from tapcore.interface.registry import default_registry
from tapcore.opening.names import RAW_FORMAT, raw_handle
from tapcore.tools.create import new_image_target
from tapcore.tools.openimage import open_image


def print_format_options(image: str) -> None:
    """List what `-o` takes for the format of a new image.

    Raises:
        TapError: its name does not say the format.
    """
    _, info = new_image_target(image, default_registry())
    _print(info.handle, info.create_options)


def print_create_options(handle: str) -> None:
    """List what `-o` takes for a new image of a format.

    Raises:
        TapError: no driver has the handle.
    """
    registry = default_registry()
    info = registry.get(raw_handle(registry) if handle == RAW_FORMAT else handle)
    _print(info.handle, info.create_options)


def print_all_create_options() -> None:
    """List what `-o` takes for a new image, of every format that can be made."""
    for handle, name, described in described_options():
        print_line(f"{handle} ({name}):")
        print_pairs(described, "    ")


def described_options() -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Of every format that takes options when it is made: handle, name, and the options."""
    for info in default_registry().drivers():
        if info.create_options:
            options = [(each.name, _describe(each, True)) for each in info.create_options]
            yield info.handle, info.name, options


def print_amend_options(image: str) -> None:
    """List what `-o` takes for an image that exists.

    Raises:
        TapError: it cannot be opened.
    """
    with open_image(image, locking=False, with_parents=False, metadata_only=True) as disk:
        handle = disk.handle
    options = default_registry().get(handle).amend_options
    _print(handle, options, defaults=False)


def _print(handle: str, options: Sequence[FormatOption], *, defaults: bool = True) -> None:
    if not options:
        print_line(f"the format '{handle}' has no options")
        return
    print_pairs([(option.name, _describe(option, defaults)) for option in options])


def _describe(option: FormatOption, default: bool) -> str:
    text = option.help
    if option.choices:
        text += f": {', '.join(option.choices)}"
    return f"{text} (default: {option.default})" if default and option.default else text
