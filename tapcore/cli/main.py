"""The console entry `tapdisk`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from tapcore.cli.failures import Session, end_logging, report
from tapcore.cli.later import load_later
from tapcore.cli.plain import SELDOM_USED, plain_command
from tapcore.cli.signals import stopped_by_signals
from tapcore.cli.standardstreams import named_output, open_standard_streams

_STAYING: Final = frozenset(("daemon", "inspect", "serve"))
"""Commands that serve for long, or confine themselves and may load nothing any more then."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None for the process's own.

    Returns:
        The exit status. Every error has been reported, on one line of standard error.
    """
    session = Session()
    open_standard_streams()
    try:
        with stopped_by_signals(), named_output():
            status = _run(sys.argv[1:] if arguments is None else list(arguments), session)
    except BaseException as exc:
        status = report(exc, session)
    finally:
        end_logging()
    return status


def run() -> NoReturn:
    """The console script: `main`, and an end without the interpreter's slow tidying up.

    By then everything is closed and written; what is left would only be memory given back piece by
    piece.
    """
    if not _STAYING & {*sys.argv[1:]}:
        load_later(SELDOM_USED)
    status = main()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def _run(arguments: list[str], session: Session) -> int:
    if (plain := plain_command(arguments)) is not None:
        plain(session)
        return 0
    from tapcore.cli.commandline import run_command

    return run_command(arguments, session)
