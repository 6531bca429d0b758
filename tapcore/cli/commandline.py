"""The command line as click parses it."""

from __future__ import annotations

import os
import sys

import click

from tapcore.cli.failures import Session
from tapcore.cli.group import tapdisk
from tapcore.cli.plain import COMPLETE

PROGRAM = "tapdisk"


def run_command(arguments: list[str], session: Session) -> int:
    """Run a command, or complete a command line for a shell.

    Returns:
        The exit status.
    """
    if COMPLETE in os.environ:
        from tapcore.cli.completion import complete

        sys.stdout.write(complete(tapdisk, os.environ))
        return 0
    # not through click's own main(), which would report errors in its way
    try:
        with tapdisk.make_context(PROGRAM, arguments, obj=session) as context:
            status = tapdisk.invoke(context)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    return status if isinstance(status, int) else 0
