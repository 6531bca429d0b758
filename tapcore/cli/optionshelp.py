"""`-o help`: the options of a new image's format."""

from __future__ import annotations

from tapcore.cli.output import print_line, print_pairs
from tapcore.models import FormatOption
from tapcore.registry import default_registry
from tapcore.tools.create import new_image_target


def print_format_options(image: str) -> None:
    """List what `-o` takes for the format of a new image.

    Raises:
        TapError: its name does not say the format.
    """
    _, info = new_image_target(image, default_registry())
    if not info.create_options:
        print_line(f"the format '{info.handle}' has no options")
        return
    print_pairs([(option.name, _describe(option)) for option in info.create_options])


def _describe(option: FormatOption) -> str:
    text = option.help
    if option.choices:
        text += f": {', '.join(option.choices)}"
    return f"{text} (default: {option.default})" if option.default else text
