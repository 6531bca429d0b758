"""`tapdisk list`."""

from __future__ import annotations

from typing import Any

from tapcore.cli.ofdaemon import daemon_client, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line, print_table


@tap_command("list")
@run_dir_option
@json_option
def command(run_dir: str | None, as_json: bool) -> None:
    """List the disks that the daemon serves, how each is, and where clients find it."""
    with daemon_client(run_dir) as client:
        rows = client.disks()
    if as_json:
        print_json(rows)
        return
    if not rows:
        print_line("no disk is attached")
        return
    header = ("NAME", "STATE", "HANDLE", "PID", "CLIENTS", "IMAGE", "URI")
    print_table(header, [_row(row) for row in rows])
    for row in rows:
        if row["reason"]:
            print_line(f"{row['name']}: {row['reason']}")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    shown = [row[key] for key in ("name", "state", "handle", "pid", "clients", "image", "uri")]
    shown[5] = shown[5].removeprefix(f"{row['handle']}:")
    return tuple("-" if each is None else str(each) for each in shown)
