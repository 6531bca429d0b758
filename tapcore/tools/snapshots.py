"""Internal snapshots: states of a disk that its image keeps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from tapcore.disk import Disk
from tapcore.errors import UsageError
from tapcore.interface.access import Access
from tapcore.interface.models import DiskDriver
from tapcore.interface.results import Snapshot
from tapcore.opening.names import ImageName
from tapcore.tools.losses import refuse_missing
from tapcore.tools.openimage import open_image


def list_snapshots(
    name: ImageName,
    *,
    access: Access | None = None,
) -> list[Snapshot]:
    """The snapshots of an image, in its own order. Takes no lock.

    Args:
        name: `[HANDLE:]PATH`.
        access: which files it may name, with which keys and drivers; None: the defaults.

    Raises:
        TapError: the image cannot be opened, or its format has no snapshots.
    """
    with open_image(
        name,
        access=access,
        locking=False,
        with_parents=False,
        metadata_only=True,
    ) as disk:
        _require(disk, "td_snapshots")
        return disk.snapshots()


def create_snapshot(
    name: ImageName,
    snapshot: str,
    *,
    access: Access | None = None,
) -> Snapshot:
    """Keep the present content of an image under a name; arguments as `list_snapshots`.

    Raises:
        UsageError: the name is empty, or a snapshot has it already.
    """
    if not snapshot or "\0" in snapshot:
        raise UsageError(f"'{snapshot}' cannot be a snapshot's name", image=os.fsdecode(name))
    with _changing(name, "td_snapshot_create", access) as dd:
        if any(snapshot in (found.id, found.name) for found in dd.drv.td_snapshots(dd)):
            raise UsageError(f"has a snapshot '{snapshot}' already")
        made: Snapshot = dd.drv.td_snapshot_create(dd, snapshot)
        return made


def apply_snapshot(
    name: ImageName,
    snapshot: str,
    *,
    access: Access | None = None,
) -> Snapshot:
    """Make an image's content that of a snapshot, by id or name, which stays.

    What the image held until then is gone. Arguments as `list_snapshots`.

    Raises:
        LostContentError: content of the snapshot is missing; the image is as it was.
    """
    _refuse_damaged(name, snapshot, access)
    with _changing(name, "td_snapshot_apply", access) as dd:
        found = find_snapshot(dd.drv.td_snapshots(dd), snapshot)
        dd.drv.td_snapshot_apply(dd, found.id)
        return found


def delete_snapshot(
    name: ImageName,
    snapshot: str,
    *,
    access: Access | None = None,
) -> Snapshot:
    """Forget a snapshot, by id or name; arguments as `list_snapshots`."""
    with _changing(name, "td_snapshot_delete", access) as dd:
        found = find_snapshot(dd.drv.td_snapshots(dd), snapshot)
        dd.drv.td_snapshot_delete(dd, found.id)
        return found


def find_snapshot(snapshots: Sequence[Snapshot], name: str) -> Snapshot:
    """The snapshot of an id, or where no id is so, of a name.

    Raises:
        UsageError: there is none.
    """
    for attribute in ("id", "name"):
        for snapshot in snapshots:
            if getattr(snapshot, attribute) == name:
                return snapshot
    raise UsageError(f"has no snapshot '{name}'")


def snapshot_as_dict(snapshot: Snapshot) -> dict[str, Any]:
    """The item of `snapshot list --json`."""
    return attrs.asdict(snapshot)


@contextlib.contextmanager
def _changing(
    name: ImageName,
    hook: str,
    access: Access | None,
) -> Iterator[DiskDriver]:
    """An image open for writing, alone; errors get its name."""
    with open_image(
        name,
        writing=True,
        access=access,
        with_parents=False,
    ) as disk:
        _require(disk, hook)
        with disk.driver() as dd:
            yield dd


def _refuse_damaged(
    name: ImageName,
    snapshot: str,
    access: Access | None,
) -> None:
    """A snapshot that has lost content does not take the place of what is whole."""
    with open_image(
        name,
        access=access,
        snapshot=snapshot,
        with_parents=False,
    ) as disk:
        refuse_missing(disk, "applied")


def _require(disk: Disk, hook: str) -> None:
    disk.state.disks.drv.require(hook, disk.state.image.name)
