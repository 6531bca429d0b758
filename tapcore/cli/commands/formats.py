"""`tapdisk formats`."""

from __future__ import annotations

from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line, print_table
from tapcore.interface.models import DiskInfo
from tapcore.tools.formats import format_as_dict, list_formats


@tap_command("formats")
@json_option
def command(as_json: bool) -> None:
    """List the drivers that are installed, and what each can do.

    A driver is a package of its own (tap-aio, tap-ram ...), found once it is installed. One that
    fails to load is listed with its error; the others still work.
    """
    found = list_formats()
    if as_json:
        print_json([format_as_dict(info) for info in found])
    elif found:
        print_table(("HANDLE", "NAME", "PACKAGE", "CAN"), [_row(info) for info in found])
    else:
        print_line("no driver is installed: pip install tap-aio, or another tap-* package")


def _row(info: DiskInfo) -> tuple[str, str, str, str]:
    package = f"{info.distribution} {info.version}".strip() or "-"
    if info.error:
        return info.handle, "(failed to load)", package, f"error: {info.error}"
    return info.handle, info.name, package, ", ".join(info.capabilities)
