"""`tapdisk daemon`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import click

from tapcore.cli.background import background_options
from tapcore.cli.logplace import log_option, log_to
from tapcore.cli.ofdaemon import daemon_client, run_dir_option
from tapcore.cli.options import completes, tap_command
from tapcore.daemon.confining import Confining
from tapcore.daemon.control import ControlDaemon
from tapcore.daemon.rundir import RunDirectory, default_run_directory
from tapcore.process.activation import activated, tell_ready
from tapcore.process.background import PidFile, in_background
from tapcore.process.confinement import User
from tapcore.process.logs import LOG

log = logging.getLogger(__name__)


@tap_command("daemon")
@run_dir_option
@click.option(
    "--restore",
    is_flag=True,
    help="Attach those disks again that were attached when the daemon ended, and are lost.",
)
@click.option(
    "--state",
    metavar="FILE",
    shell_complete=completes("file"),
    help="Remember attached disks here.  [default: in the run directory, which a restart of the "
    "machine empties]",
)
@background_options
@click.option(
    "--no-confinement",
    is_flag=True,
    help="Disk processes keep the rights that they begin with; without this they give up what they "
    "do not need, once their images are open.",
)
@click.option(
    "--user", metavar="NAME", default="", help="As root: disk processes go on as this user."
)
@click.option(
    "--metrics",
    "metrics_port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Show what disks do on this port of loopback: / for a browser, /metrics for Prometheus.",
)
@log_option
@click.option("--stop", is_flag=True, help="End the daemon that runs, and wait until it has ended.")
@click.option("--keep-disks", is_flag=True, help="With --stop: disks go on without the daemon.")
@click.pass_context
def command(
    ctx: click.Context,
    run_dir: str | None,
    restore: bool,
    state: str | None,
    fork: bool,
    pid_file: str | None,
    no_confinement: bool,
    user: str,
    metrics_port: int | None,
    log_place: str,
    stop: bool,
    keep_disks: bool,
) -> int:
    """Run disks, each in a process of its own, until SIGTERM or Ctrl-C; SIGHUP finds new drivers.

    Other commands tell it which: attach, detach, list, stats. When it ends, disks are flushed and
    closed; when it is killed they go on, and the next daemon finds them again.
    """
    if keep_disks and not stop:
        raise click.UsageError("--keep-disks goes with --stop")
    if user and no_confinement:
        raise click.UsageError("--user is a part of confinement")
    if stop:
        with daemon_client(run_dir) as client:
            client.stop(keep_disks=keep_disks)
        return 0
    if user:
        User.named(user)  # now, and not with each disk
    log_to(log_place)
    os.environ[LOG] = log_place  # for disk processes
    place = RunDirectory(run_dir or default_run_directory())
    control = _opened_socket()
    ready = in_background() if fork else None
    daemon = ControlDaemon(
        place,
        metrics_port=metrics_port,
        state=state,
        restore=restore,
        level=ctx.find_root().meta.get("tapcore.log_level", "warning"),
        without=ctx.find_root().meta.get("tapcore.no_plugin", []),
        confining=Confining(wanted=not no_confinement, user=user),
        control=control,
    )
    return 0 if _run(daemon, place, ready, pid_file) else 1


def _opened_socket() -> int | None:
    """The control socket, where systemd has opened it."""
    sockets = activated()
    if len(sockets) > 1:
        raise click.UsageError(
            f"the daemon has one control socket, and LISTEN_FDS is {len(sockets)}"
        )
    return sockets[0] if sockets else None


def _run(
    daemon: ControlDaemon,
    place: RunDirectory,
    ready: Callable[[], None] | None,
    pid_file: str | None,
) -> bool:
    written: list[PidFile] = []

    def tell() -> None:
        if pid_file is not None:
            written.append(PidFile(pid_file))
        click.echo(place.control)
        tell_ready()
        if ready is not None:
            ready()

    try:
        return daemon.run(tell)
    finally:
        for each in written:
            each.remove()
