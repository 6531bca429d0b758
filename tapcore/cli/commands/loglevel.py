"""`tapdisk log-level`."""

from __future__ import annotations

import click

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import LOG_LEVELS, json_option, tap_command
from tapcore.cli.output import print_json


@tap_command("log-level")
@click.argument("level", type=click.Choice(LOG_LEVELS, case_sensitive=False))
@disk_argument(required=False)
@run_dir_option
@json_option
def command(level: str, name: str | None, run_dir: str | None, as_json: bool) -> None:
    """Say what the daemon, or the process of one disk, tells in its log from now on."""
    with daemon_client(run_dir) as client:
        client.log_level(level, name)
    if as_json:
        print_json({"name": name, "level": level})
