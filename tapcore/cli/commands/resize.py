"""`tapdisk resize`."""

from __future__ import annotations

import click

from tapcore.cli.options import image_argument, opening_options, quiet_option, tap_command
from tapcore.cli.output import print_line, size_with_bytes
from tapcore.cli.signals import finishing_first
from tapcore.cli.sizes import SizeChange
from tapcore.interface.access import Access
from tapcore.tools.resize import resize_image


def _no_option(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """What looks like an option, and is none of this command's, is a typing error."""
    if value.startswith("-"):
        raise click.NoSuchOption(value, ctx=ctx)
    return value


# `-512M` looks like options; what is no option at all comes through to SIZE
@tap_command("resize", context_settings={"ignore_unknown_options": True})
@image_argument(callback=_no_option)
@click.argument("size", metavar="SIZE|+N|-N", type=SizeChange())
@click.option("--shrink", is_flag=True, help="Allow to cut the end off.")
@opening_options
@quiet_option
def command(image: str, size: str, shrink: bool, access: Access, quiet: bool) -> None:
    """Set IMAGE's size (20G), or change it (+5G, -512M). New space reads as zeroes."""
    with finishing_first():
        old, new = resize_image(image, size, shrink=shrink, access=access)
    if not quiet:
        print_line(f"resized from {size_with_bytes(old)} to {size_with_bytes(new)}")
