"""`tapdisk man`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tapcore.cli.group import COMMANDS
from tapcore.cli.options import completes, tap_command
from tapcore.cli.output import print_line


@tap_command("man")
@click.argument("name", metavar="[COMMAND]", default="")
@click.option(
    "--write",
    metavar="DIR",
    shell_complete=completes("directory"),
    help="Write all man pages into DIR, and show none.",
)
@click.pass_context
def command(ctx: click.Context, name: str, write: str | None) -> None:
    """Show the man page of tapdisk, or of one of its commands.

    On a terminal it is shown by man(1), where that is installed; elsewhere it is printed as roff.
    """
    from tapcore.cli.manpages import pages, write_pages

    if name and name not in COMMANDS:
        raise click.UsageError(f"no such command '{name}'", ctx)
    if write is not None:
        written = write_pages(Path(write))
        print_line(f"wrote {len(written)} pages into {write}")
        return
    wanted = f"tapdisk-{name}.1" if name else "tapdisk.1"
    page = next(content for file, content in pages() if file == wanted)
    program = shutil.which("man")
    if program is None or not sys.stdout.isatty():
        sys.stdout.write(page)
        return
    with tempfile.NamedTemporaryFile("w", suffix=f"-{wanted}") as file:
        file.write(page)
        file.flush()
        subprocess.run([program, "-l", file.name], check=False)
