"""`tapdisk resize-live`."""

from __future__ import annotations

import click

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line
from tapcore.sizes import format_size


@tap_command("resize-live")
@disk_argument()
@click.argument("size", metavar="SIZE|+N|-N")
@click.option("--shrink", is_flag=True, help="Allow to cut the end off.")
@run_dir_option
@json_option
def command(name: str, size: str, shrink: bool, run_dir: str | None, as_json: bool) -> None:
    """Change the size of a disk while it is served; new space reads as zeroes.

    NBD clients see the new size when they connect again. (Write -- before a size with a minus.)
    """
    with daemon_client(run_dir) as client:
        told = client.resize_live(name, size, shrink=shrink)
    if as_json:
        print_json(told)
        return
    old, new = format_size(told["old_size"]), format_size(told["virtual_size"])
    print_line(f"{name} has {new} now, not {old}; clients see it when they connect again")
