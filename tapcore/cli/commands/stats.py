"""`tapdisk stats`."""

from __future__ import annotations

from typing import Any

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line, print_table


@tap_command("stats")
@disk_argument(required=False)
@run_dir_option
@json_option
def command(name: str | None, run_dir: str | None, as_json: bool) -> None:
    """Show what disks of the daemon have done: all, or one."""
    with daemon_client(run_dir) as client:
        rows = client.stats(name)
    if as_json:
        print_json(rows)
    elif not rows:
        print_line("no disk is served")
    else:
        print_table(("NAME", "UPTIME", "CLIENTS", "IN FLIGHT"), [_row(row) for row in rows])


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    uptime = f"{row['uptime']:.0f} s"
    return row["name"], uptime, str(row["clients"]), str(row["in_flight"])
