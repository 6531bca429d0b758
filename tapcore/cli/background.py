"""`--fork` and `--pid-file` of the commands that serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tapcore.cli.options import completes


def background_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command both; it is called with `fork` and `pid_file`."""
    pid_file = click.option(
        "--pid-file",
        metavar="FILE",
        shell_complete=completes("file"),
        help="Write the process number here once all is ready.",
    )
    fork = click.option("--fork", is_flag=True, help="Go on in the background once all is ready.")
    return fork(pid_file(command))
