"""`tapdisk detach`."""

from __future__ import annotations

import click

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json


@tap_command("detach")
@disk_argument()
@click.option(
    "--force", is_flag=True, help="Also where clients are connected, whose connections end then."
)
@run_dir_option
@json_option
def command(name: str, force: bool, run_dir: str | None, as_json: bool) -> None:
    """Flush and close a disk that the daemon serves.

    What clients have asked for is answered before that. Where clients are connected it is refused,
    unless it is forced.
    """
    with daemon_client(run_dir) as client:
        client.detach(name, force=force)
    if as_json:
        print_json({"name": name})
