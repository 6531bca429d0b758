"""What the commands share that ask the daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tapcore.cli.options import F, completes

if TYPE_CHECKING:
    from tapcore.daemon.client import DaemonClient

run_dir_option = click.option(
    "--run-dir",
    metavar="DIR",
    shell_complete=completes("directory"),
    help="Where the daemon has its sockets.  [default: $TAPCORE_RUN_DIR, or /run/tapcore for root, "
    "$XDG_RUNTIME_DIR/tapcore for others]",
)


def disk_argument(**settings: Any) -> Callable[[F], F]:
    """The name of a disk that is attached."""
    settings.setdefault("metavar", "NAME")
    return click.argument("name", shell_complete=_disk_items, **settings)


def _disk_items(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from tapcore.cli.candidates import disk_items

    return list(disk_items(incomplete, ctx.params.get("run_dir")))


def daemon_client(run_dir: str | None) -> DaemonClient:
    """A connection to the daemon.

    Raises:
        TapError: none runs there.
    """
    from tapcore.daemon.client import DaemonClient

    return DaemonClient(run_dir)
