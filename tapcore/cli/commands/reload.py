"""`tapdisk reload`."""

from __future__ import annotations

from tapcore.cli.ofdaemon import daemon_client, run_dir_option
from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line


@tap_command("reload")
@run_dir_option
@json_option
def command(run_dir: str | None, as_json: bool) -> None:
    """Let the daemon look for drivers again, while its disks go on.

    Disks that are attached afterwards use what is installed now: new drivers, and other versions.
    """
    with daemon_client(run_dir) as client:
        found = client.reload()
    if as_json:
        print_json(found)
        return
    for word in ("added", "removed"):
        if found[word]:
            print_line(f"{word}: {', '.join(found[word])}")
