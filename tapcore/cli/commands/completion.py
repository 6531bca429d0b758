"""`tapdisk completion`."""

from __future__ import annotations

import click

from tapcore.cli.completion import SCRIPTS, script
from tapcore.cli.options import tap_command


@tap_command("completion")
@click.argument("shell", type=click.Choice(tuple(SCRIPTS)), metavar="|".join(SCRIPTS))
def command(shell: str) -> None:
    """Print the script that completes tapdisk's command lines in a shell.

    It completes commands, options, handles of the drivers that are installed, files, and the keys
    and values of -o.
    """
    click.echo(script(shell), nl=False)
