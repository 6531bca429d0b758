"""`--log` of the commands that serve."""

from __future__ import annotations

import logging

import click

from tapcore.process.logs import PLACES, log_handler

log_option = click.option(
    "--log",
    "log_place",
    type=click.Choice(PLACES),
    default="stderr",
    show_default=True,
    help="Where the log goes, once the command line is read.",
)
"""For servers."""


def log_to(place: str) -> None:
    """Where a server's log goes from now on; errors of the command line stay where they are.

    Args:
        place: one of `tapcore.process.logs.PLACES`.

    Raises:
        UsageError: nobody takes it there.
    """
    root = logging.getLogger()
    for old in [each for each in root.handlers if getattr(each, "of_tapdisk", False)]:
        new = log_handler(place)
        new.of_tapdisk = True  # type: ignore[attr-defined]
        new.setFormatter(old.formatter if place == "stderr" else logging.Formatter("%(message)s"))
        for each in old.filters:
            new.addFilter(each)
        root.removeHandler(old)
        root.addHandler(new)
