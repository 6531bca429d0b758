"""`tapdisk stats`."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Sequence

import click

from tapcore.cli.ofdaemon import daemon_client, disk_argument, run_dir_option
from tapcore.cli.options import completes, json_option, tap_command
from tapcore.cli.output import can_show, print_json, print_line
from tapcore.cli.statstable import Table, of_disks, of_operations
from tapcore.errors import UsageError, printable
from tapcore.metrics.pages import PageSet
from tapcore.metrics.reading import Snapshot
from tapcore.metrics.summary import snapshot_as_dict

_MICRO = "\N{MICRO SIGN}"
_HOME, _BOLD, _RED, _PLAIN = "\x1b[H\x1b[J", "\x1b[1m", "\x1b[31m", "\x1b[0m"


@tap_command("stats")
@disk_argument(required=False)
@click.option("--watch", "-w", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="With --watch: how often; figures are of the last interval.",
)
@click.option("--count", type=click.IntRange(1), help="With --watch: so many times.")
@click.option(
    "--page",
    "pages",
    multiple=True,
    metavar="FILE|DIR",
    shell_complete=completes("file"),
    help="Of a server that counts here (serve --metrics), instead of the daemon's disks.",
)
@run_dir_option
@json_option
def command(
    name: str | None,
    watch: bool,
    interval: float,
    count: int | None,
    pages: tuple[str, ...],
    run_dir: str | None,
    as_json: bool,
) -> None:
    """Show what disks do: all, or one by its operations.

    Rates, megabytes, requests under way, and durations that 50, 99 and 99.9 in a hundred requests
    have not exceeded.

    The figures come from the pages that servers write, so that nobody is asked. Without --watch
    they are of all the time since a disk was opened.
    """
    if count is not None and not watch:
        raise click.UsageError("--count goes with --watch")
    places = pages or _of_daemon(run_dir)
    found = PageSet(places)
    for number in itertools.count(1):
        _show(_chosen(found.look(), name), name, watch=watch, as_json=as_json)
        if not watch or number == count:
            return
        sys.stdout.flush()
        time.sleep(interval)


def _of_daemon(run_dir: str | None) -> tuple[str, ...]:
    from tapcore.daemon.rundir import RunDirectory, default_run_directory

    place = os.path.dirname(RunDirectory(run_dir or default_run_directory()).page("x"))
    if not PageSet.any_in(place):
        with daemon_client(run_dir) as client:  # tells if there is none
            client.call("version")
    return (place,)


Pair = tuple[Snapshot, Snapshot]


def _chosen(seen: Sequence[Pair], name: str | None) -> list[Pair]:
    chosen = [pair for pair in seen if name in (None, pair[1].name)]
    if name is not None and not chosen:
        raise UsageError("no disk of this name is counted", image=name)
    return chosen


def _show(pairs: list[Pair], name: str | None, *, watch: bool, as_json: bool) -> None:
    if as_json:
        print_json([snapshot_as_dict(now) for _, now in pairs])
        return
    on_terminal = sys.stdout.isatty()
    if watch and on_terminal:
        sys.stdout.write(_HOME)
    if not pairs:
        print_line("no disk is served")
        return
    columns = shutil.get_terminal_size((120, 24)).columns
    micro = _MICRO if can_show(_MICRO) else "u"
    table = of_disks(pairs, columns, micro) if name is None else of_operations(*pairs[0], micro)
    _print(table, columns, colours=on_terminal and not os.environ.get("NO_COLOR"))


def _print(table: Table, columns: int, *, colours: bool) -> None:
    for number, line in enumerate(table.lines(columns)):
        safe = printable(line, len(line))
        style = "" if not colours else _RED if number - 1 in table.bad else _BOLD * (not number)
        sys.stdout.write(f"{style}{safe}{_PLAIN if style else ''}\n")
