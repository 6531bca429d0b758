"""`tapdisk pause`."""

from __future__ import annotations

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line


@tap_command("pause")
@disk_argument()
@run_dir_option
@json_option
def command(name: str, run_dir: str | None, as_json: bool) -> None:
    """Let the clients of a disk wait, and close its images, which others may use then.

    What clients have asked for is answered and flushed before that. They stay connected.
    """
    with daemon_client(run_dir) as client:
        told = client.pause(name)
    if as_json:
        print_json(told)
    else:
        print_line(f"{name} is paused: {told['image']} is closed")
