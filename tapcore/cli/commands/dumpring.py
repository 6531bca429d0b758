"""`tapdisk dump-ring`."""

from __future__ import annotations

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line


@tap_command("dump-ring")
@disk_argument()
@run_dir_option
@json_option
def command(name: str, run_dir: str | None, as_json: bool) -> None:
    """Show the shared rings of a disk: indices of both sides, events, and slots in use."""
    with daemon_client(run_dir) as client:
        rings = client.dump_ring(name)
    if as_json:
        print_json(rings)
        return
    if not rings:
        print_line(f"{name}: no front end is connected")
        return
    from tapcore.ring.dump import lines_of, state_from

    for number, ring in enumerate(rings):
        for line in lines_of(number, state_from(ring)):
            print_line(line)
