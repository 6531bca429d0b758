"""`tapdisk snapshot-live`."""

from __future__ import annotations

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import format_options, image_argument, json_option, tap_command
from tapcore.cli.output import print_json, print_line


@tap_command("snapshot-live")
@disk_argument()
@image_argument("child")
@format_options
@run_dir_option
@json_option
def command(
    name: str, child: str, options: dict[str, str], run_dir: str | None, as_json: bool
) -> None:
    """Make a new CHILD under a disk, and serve that: the old image keeps what it holds now.

    Clients wait for a moment, and nothing of what they ask for is lost. CHILD is [HANDLE:]PATH.
    """
    if "help" in options:
        from tapcore.cli.optionshelp import print_format_options

        print_format_options(child)
        return
    with daemon_client(run_dir) as client:
        told = client.snapshot_live(name, child, options=options)
    if as_json:
        print_json(told)
    else:
        print_line(f"{name} is {told['image']} now")
