"""`tapdisk resume-io`."""

from __future__ import annotations

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line


@tap_command("resume-io")
@disk_argument()
@run_dir_option
@json_option
def command(name: str, run_dir: str | None, as_json: bool) -> None:
    """Open the images of a paused disk again, and answer what its clients wait for.

    Where that fails, requests fail until it is tried again.
    """
    with daemon_client(run_dir) as client:
        told = client.resume_io(name)
    if as_json:
        print_json(told)
    else:
        print_line(f"{name} goes on with {told['image']}")
