"""`tapdisk snapshot-live`."""

from __future__ import annotations

import click

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import completes, json_option, tap_command
from tapcore.cli.output import print_json, print_line


@tap_command("snapshot-live")
@disk_argument()
@click.argument("child", metavar="CHILD", shell_complete=completes("file"))
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the new image's format. Repeatable.",
)
@run_dir_option
@json_option
def command(
    name: str, child: str, options: tuple[str, ...], run_dir: str | None, as_json: bool
) -> None:
    """Make a new CHILD under a disk, and serve that: the old image keeps what it holds now.

    Clients wait for a moment, and nothing of what they ask for is lost. CHILD is [HANDLE:]PATH.
    """
    pairs = [word.partition("=") for word in options]
    if any(not key or not equals for key, equals, _ in pairs):
        raise click.UsageError("-o needs KEY=VALUE")
    chosen = {key: value for key, _, value in pairs}
    with daemon_client(run_dir) as client:
        told = client.snapshot_live(name, child, options=chosen)
    if as_json:
        print_json(told)
    else:
        print_line(f"{name} is {told['image']} now")
