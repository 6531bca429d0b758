"""`tapdisk snapshot`."""

from __future__ import annotations

from collections.abc import Callable

import click

from tapcore.cli.options import (
    image_argument,
    json_option,
    opening_options,
    quiet_option,
    tap_command,
)
from tapcore.cli.output import print_json, print_line, print_table
from tapcore.cli.signals import finishing_first
from tapcore.cli.snapshotrows import COLUMNS, snapshot_rows
from tapcore.interface.access import Access
from tapcore.interface.results import Snapshot
from tapcore.tools.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
    snapshot_as_dict,
)

_CHANGES: dict[str, tuple[Callable[..., Snapshot], str]] = {
    "create": (create_snapshot, "created"),
    "apply": (apply_snapshot, "applied"),
    "delete": (delete_snapshot, "deleted"),
}


@tap_command("snapshot")
@click.argument(
    "action", type=click.Choice(("list", *_CHANGES)), metavar="list|create|apply|delete"
)
@image_argument()
@click.argument("name", required=False)
@json_option
@opening_options
@quiet_option
@click.pass_context
def command(
    ctx: click.Context,
    action: str,
    image: str,
    name: str | None,
    as_json: bool,
    access: Access,
    quiet: bool,
) -> None:
    """List IMAGE's internal snapshots, or create, apply or delete the one called NAME.

    NAME is a snapshot's name or its id. To apply one means that IMAGE holds what it held then; what
    it holds now is gone, unless a snapshot keeps it.
    """
    if action == "list":
        if name is not None:
            raise click.UsageError("'list' takes no NAME", ctx)
        _print(list_snapshots(image, access=access), as_json=as_json)
        return
    if name is None:
        raise click.UsageError(f"'{action}' needs a NAME", ctx)
    change, done = _CHANGES[action]
    with finishing_first():
        snapshot = change(image, name, access=access)
    if as_json:
        print_json(snapshot_as_dict(snapshot))
    elif not quiet:
        print_line(f"{done} the snapshot {snapshot.name} (id {snapshot.id})")


def _print(snapshots: list[Snapshot], *, as_json: bool) -> None:
    if as_json:
        print_json([snapshot_as_dict(snapshot) for snapshot in snapshots])
    elif snapshots:
        print_table(COLUMNS, snapshot_rows(snapshots))
    else:
        print_line("no snapshots")
