"""What an image is: the facts of `tapdisk info`. Takes no lock and changes nothing."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import ReferencePolicyError, TapError, open_error, printable
from tapcore.files.byname import open_host_fd
from tapcore.files.hostfile import occupied_bytes
from tapcore.files.locks import being_written, holder_of
from tapcore.interface.access import Access
from tapcore.interface.distrust import show_where
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId
from tapcore.interface.policy import ReferencePolicy
from tapcore.opening.facts import opened_for_facts
from tapcore.opening.names import ImageName, as_handles
from tapcore.opening.parents import recorded_parent

if TYPE_CHECKING:
    from tapcore.interface.results import Bitmap, Snapshot

log = logging.getLogger(__name__)

_NOTES = 3
"""Files that are missing, and named each in a note of its own."""


class ImageInfo(NamedTuple):
    """One image of a chain.

    Attributes:
        image: its path; with the handle where it is no file (`ram:64M`).
        handle: of its driver.
        virtual_size: bytes.
        sector_size: bytes.
        disk_size: bytes that the host files (its own, extents, a data file), or memory, really
            take.
        read_only: the format, or the file's permissions, do not allow writing.
        parent: path of the parent as resolved, or None.
        parent_handle: of the parent's driver as recorded (with a chain: as opened), or None.
        format: the format's own facts.
        notes: lines for a person: who writes to it, why its parent would not be opened.
        snapshots: internal ones; `format` has them too, where the driver says so.
        bitmaps: persistent ones, likewise.
    """

    image: str
    handle: str
    virtual_size: int
    sector_size: int
    disk_size: int
    read_only: bool
    parent: str | None
    parent_handle: str | None
    format: dict[str, Any]
    notes: tuple[str, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The object of `info --json`."""
        return {
            name: value
            for name, value in self._asdict().items()
            if name not in ("notes", "snapshots", "bitmaps")
        }


def image_info(
    name: ImageName,
    *,
    chain: bool = False,
    access: Access | None = None,
) -> list[ImageInfo]:
    """The facts of an image, and with `chain` of its parents, child first.

    Without `chain` no parent is opened: an image whose parent is missing, or of which nobody can
    tell where it is, can still be looked at. No content is read, so an encrypted
    image needs no passphrase.

    Raises:
        TapError: the image, or with `chain` a parent, cannot be opened.
    """
    access = access or Access()
    with opened_for_facts(name, access, with_parents=chain) as disk:
        return [_describe(dd, disk, access) for dd in disk.disks.chain()]


def _describe(dd: DiskDriver, disk: TdState, access: Access) -> ImageInfo:
    handle = dd.drv.disk_type
    notes: list[str] = []
    image = dd.name
    if access.registry.get(handle).file_backed and dd.options.bound is not None:
        disk_size, writable = _host_file(dd, notes)
        disk_size += _other_files(dd, disk.image.name, access.references, notes)
    else:
        image = f"{handle}:{image}"
        disk_size, writable = _stored_bytes(dd), True
    parent, parent_handle = _parent(dd, access, notes)
    return ImageInfo(
        image=image,
        handle=handle,
        virtual_size=dd.size << SECTOR_SHIFT,
        sector_size=dd.sector_size,
        disk_size=disk_size,
        read_only=not writable or "td_queue_write" not in dd.drv.implemented,
        parent=parent,
        parent_handle=parent_handle,
        format=dict(dd.drv.td_info(dd)),
        notes=tuple(notes),
        snapshots=tuple(dd.drv.td_snapshots(dd)),
        bitmaps=tuple(dd.drv.td_bitmaps(dd)),
    )


def _stored_bytes(dd: DiskDriver) -> int:
    """What the extents of an image say that is no file, with its parents."""
    from tapcore.engine import chain_extents

    size = dd.size << SECTOR_SHIFT
    try:
        runs = chain_extents(dd, 0, size) if size else ()
        return sum(run.length for run in runs if run.kind != "zero")
    except Exception as exc:
        raise open_error(exc, f"{dd.drv.disk_type}:{dd.name}") from exc


def _host_file(dd: DiskDriver, notes: list[str]) -> tuple[int, bool]:
    """Bytes occupied, and whether this user may write; a note where another process does."""
    fd = open_host_fd(dd.name, os.O_RDONLY, dd.options.bound)
    try:
        if being_written(fd):
            holder = holder_of(fd) or "another process"
            notes.append(f"in use: {holder} has it open for writing; this may be out of date")
        return occupied_bytes(fd), os.access(dd.name, os.W_OK)
    finally:
        os.close(fd)


def _other_files(dd: DiskDriver, root: str, references: ReferencePolicy, notes: list[str]) -> int:
    """Bytes that an image's other files occupy; a note where one is not there."""
    sizes: dict[str, int] = {}
    missing = 0
    for named in dd.drv.td_other_files(dd):
        try:
            path = references.resolve(named, image=dd.name, root=root)
            sizes[path] = os.stat(path).st_blocks * 512
        except ReferencePolicyError as exc:
            if missing < _NOTES:
                notes.append(f"would not open all its files: it {exc.message}")
            missing += 1
        except (OSError, ValueError):
            if missing < _NOTES:
                notes.append(
                    f"its file '{printable(named)}' does not exist, or cannot be looked at"
                )
            missing += 1
    if missing > _NOTES:
        notes.append(f"{missing} of its files in all cannot be looked at")
    return sum(sizes.values())


def _parent(dd: DiskDriver, access: Access, notes: list[str]) -> tuple[str | None, str | None]:
    if dd.next is not None:
        return dd.next.name, dd.next.drv.disk_type
    try:
        recorded = recorded_parent(dd)
    except TapError as exc:  # its content is not read here; what is wrong is a fact like others
        log.warning("%s: cannot be read: %s", dd.name, exc.message)
        show_where(exc)
        return None, None
    if recorded is None:
        return None, None
    recorded = as_handles(recorded, access.registry)
    return _resolved(recorded, dd, access.references, notes), recorded.drivertype or None


def _resolved(
    recorded: DiskId, dd: DiskDriver, references: ReferencePolicy, notes: list[str]
) -> str:
    """The parent's path; one that the policy refuses is shown all the same, with a note."""
    try:
        path = references.resolve(recorded.name, image=dd.name, root=dd.name)
    except ReferencePolicyError as exc:
        notes.append(f"its parent would not be opened: {exc.message}")
        return recorded.name
    if not os.path.exists(path):
        notes.append("its parent does not exist")
    return path
