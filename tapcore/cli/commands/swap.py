"""`tapdisk swap`."""

from __future__ import annotations

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import image_argument, json_option, tap_command
from tapcore.cli.output import print_json, print_line


@tap_command("swap")
@disk_argument()
@image_argument()
@run_dir_option
@json_option
def command(name: str, image: str, run_dir: str | None, as_json: bool) -> None:
    """Serve IMAGE in the place of what a disk is now; a paused disk goes on with it.

    It has to be as large, with sectors of the same size. Clients stay connected.
    """
    with daemon_client(run_dir) as client:
        told = client.swap(name, image)
    if as_json:
        print_json(told)
    else:
        print_line(f"{name} is {told['image']} now")
