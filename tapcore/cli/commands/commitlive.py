"""`tapdisk commit-live`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import json_option, progress_option, quiet_option, tap_command
from tapcore.cli.output import print_json, print_line
from tapcore.cli.progress import Style, progress
from tapcore.errors import IOFailedError
from tapcore.sizes import format_size

if TYPE_CHECKING:
    from tapcore.daemon.client import DaemonClient

_GOES_ON = ("beginning", "copying", "finishing")
_LOOK_SECONDS = 0.1


@tap_command("commit-live")
@disk_argument()
@click.option("--no-wait", is_flag=True, help="Only begin it.")
@click.option("--status", is_flag=True, help="Tell how far it is.")
@click.option("--cancel", is_flag=True, help="End it; the disk is served on as before.")
@run_dir_option
@progress_option
@quiet_option
@json_option
def command(
    name: str,
    no_wait: bool,
    status: bool,
    cancel: bool,
    run_dir: str | None,
    progress_style: Style,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fold a disk into its parent while it is served; afterwards the parent is served.

    The old child is emptied, and in use no more. Ctrl-C leaves it going on; --cancel ends it.
    """
    if no_wait + status + cancel > 1:
        raise click.UsageError("--no-wait, --status and --cancel are different things")
    with daemon_client(run_dir) as client:
        if status:
            told = client.commit_status(name)
        elif cancel:
            client.commit_cancel(name)
            told = _wait(client, name, None)
        else:
            told = client.commit_live(name)
            if not no_wait:
                with progress("committing", quiet=quiet or as_json, style=progress_style) as tell:
                    told = _wait(client, name, tell)
    if told["phase"] == "failed":
        raise IOFailedError(f"the commit has failed: {told['error']}", image=name)
    if as_json:
        print_json(told)
    elif not quiet:
        print_line(_words(name, told))


def _wait(client: DaemonClient, name: str, tell: Any) -> dict[str, Any]:
    while (told := client.commit_status(name))["phase"] in _GOES_ON:
        if tell is not None and "total" in told:
            tell(told["done"], told["total"])
        time.sleep(_LOOK_SECONDS)
    return told


def _words(name: str, told: dict[str, Any]) -> str:
    phase = told["phase"]
    if phase == "beginning":
        return f"{name}: it begins"
    done = f"{format_size(told['copied'])} written to {told['parent']}"
    if phase == "done":
        return f"{name} is {told['parent']} now: {done} in {told['seconds']:.1f} s"
    if phase == "cancelled":
        return f"{name} is {told['child']} as before: the commit was cancelled"
    share = 100 * told["done"] // max(told["total"], 1)
    return f"{name}: {phase}, {share} %: {done}, {format_size(told['rate'])} a second"
