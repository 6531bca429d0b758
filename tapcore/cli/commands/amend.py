"""`tapdisk amend`."""

from __future__ import annotations

from tapcore.cli.options import (
    format_options,
    image_argument,
    opening_options,
    quiet_option,
    tap_command,
)
from tapcore.cli.optionshelp import print_amend_options
from tapcore.cli.output import print_line
from tapcore.cli.signals import finishing_first
from tapcore.interface.access import Access
from tapcore.tools.amend import amend_image


@tap_command("amend")
@image_argument()
@format_options
@opening_options
@quiet_option
def command(
    image: str,
    options: dict[str, str],
    access: Access,
    quiet: bool,
) -> None:
    """Change options of IMAGE in place; what it holds stays.

    Which can be changed is the format's to say: '-o help' lists them.
    """
    if "help" in options:
        print_amend_options(image)
        return
    with finishing_first():
        amend_image(image, options, access=access)
    if not quiet:
        print_line("changed " + ", ".join(f"{key} to {value}" for key, value in options.items()))
