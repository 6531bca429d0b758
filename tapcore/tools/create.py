"""Making new images."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from tapcore.disk import Disk
from tapcore.errors import TapError, UsageError, open_error, printable
from tapcore.files.byname import open_host_fd
from tapcore.files.hostfile import host_file_size, refuse_read_only_device
from tapcore.files.locks import lock_image
from tapcore.files.newfiles import NewFiles, making
from tapcore.interface.access import Access
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.distrust import untrue
from tapcore.interface.identity import Identity, identity_of
from tapcore.interface.keys import KEY_FILE_OPTION, Keys, warn_of_line_end
from tapcore.interface.options import DiskId
from tapcore.interface.policy import Parents
from tapcore.interface.registry import Registry
from tapcore.oldnames import renamed
from tapcore.opening.names import (
    RAW_HANDLES,
    ImageName,
    handle_for_new,
    names_disk,
    recorded_name,
    split_name,
)
from tapcore.sizes import checked_size, format_size
from tapcore.tools.formatoptions import as_texts, check_options
from tapcore.tools.givennames import files_below, given_parent
from tapcore.tools.imagefiles import (
    file_names_of,
    files_of,
    identities_of,
    modes_of,
    warn_of_refused_files,
)
from tapcore.tools.openimage import open_image
from tapcore.tools.progress import Progress, watched

log = logging.getLogger(__name__)

TAKE_SPACE: Final = ("full", "falloc")
"""Values of `preallocation` with which a new image may take long."""


@renamed(references="parents")
def create_image(
    name: ImageName,
    size: int | str | None = None,
    *,
    parent: ImageName = "",
    options: Mapping[str, str | os.PathLike[str]] | None = None,
    force: bool = False,
    parents: Parents = (),
    keys: Keys | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> DiskId:
    """Make a new image.

    Args:
        name: `[HANDLE:]PATH`; without a handle the suffix says the format.
        size: virtual size in bytes, a multiple of 512, or as text (`10G`); None: the parent's.
        parent: `[HANDLE:]PATH` of the image that holds what the new one does not; a relative path
            counts from the new image's directory, since it is recorded as it is given.
        options: the format's own (`-o`).
        force: replace what is there.
        parents: which files the parent may name in turn, as of `tapcore.open`.
        keys: passphrases of encrypted images.
        registry: drivers to use instead of the installed ones.
        progress: told from another thread how much space is taken, while `preallocation=full` or
            `falloc` takes it; must not raise.

    Returns:
        The image that was made.

    Raises:
        TapError: with the image's name; nothing was made.
    """
    access = Access(parents, keys, registry=registry)
    parent = os.fsdecode(parent)
    count = None if size is None else checked_size(size, os.fsdecode(name))
    with new_image(
        name,
        count,
        parent=parent,
        options=as_texts(options),
        force=force,
        access=access,
        progress=progress,
    ) as made:
        made.files.publish()
        full = made.options.get("preallocation") == "full"
        warn_of_device(made, made.size if full else 0)
    warn_of_refused_files(
        made.target.name,
        access.registry.get(made.target.drivertype),
        access.references,
        files_below(parent, access.registry),
    )
    return made.target


class NewImage(NamedTuple):
    """An image that is being made.

    Attributes:
        target: which one.
        working: what it is to be opened as until it is published.
        files: its files; not published, they are gone.
        size: virtual size in bytes, as it is wanted.
        options: of its format.
    """

    target: DiskId
    working: DiskId
    files: NewFiles
    size: int
    options: Mapping[str, str]


@contextlib.contextmanager
def new_image(
    name: ImageName,
    size: int | None,
    *,
    parent: str,
    options: Mapping[str, str],
    force: bool,
    access: Access,
    source: Disk | None = None,
    progress: Progress | None = None,
) -> Iterator[NewImage]:
    """A new image that takes its place, and that of an old one, only when it is published.

    Args:
        name: as of `create_image`, and so on.
        size: as there; may be 0.
        parent: as there.
        options: as there.
        force: as there.
        access: with what the parent is opened, and the drivers.
        source: the disk that it is to be a copy of; none of its files may be replaced, and who may
            not read each of them may not read the copy.
        progress: as of `create_image`.
    """
    target, info = new_image_target(name, access.registry)
    options = dict(options)
    check_options(target.name, info.handle, info.create_options, options)
    if parent:
        drv = access.registry.operations(info.handle)
        drv.require("td_get_parent_id", target.name, option="-b")
    copied = [] if source is None else list(file_names_of(source))
    untouchable = identities_of(copied, "is the source, or one of its parents")
    recorded = None
    if parent:
        recorded, parent_size = _open_parent(parent, target, access, untouchable)
        size = parent_size if size is None else size
    if size is None:
        raise UsageError("a new image needs a size (for example 10G)", image=target.name)
    _refuse(target.name, untouchable)
    refuse_to_replace(target.name, force=force)
    assert info.drv is not None
    with making(
        target.name, replace=force, by_name=not info.makes_unnamed, untouchable=untouchable
    ) as files:
        files.limit_mode(modes_of(copied))
        if options.get(KEY_FILE_OPTION):
            files.limit_mode((0o600,))
            warn_of_line_end(options[KEY_FILE_OPTION])
        try:
            with _told(progress, files, size, options):
                info.drv.td_create(files.working, size, recorded, options)
            _check_made(info, files, target)
        except (TapError, OSError) as exc:
            raise open_error(exc, target.name) from exc
        yield NewImage(target, DiskId(files.working, info.handle), files, size, options)


def _check_made(info: DiskInfo, files: NewFiles, target: DiskId) -> None:
    if not info.makes_unnamed and not os.path.lexists(files.working):
        raise untrue(info.handle, "td_create", "has made no file", target.name)


def _told(
    progress: Progress | None, files: NewFiles, size: int, options: Mapping[str, str]
) -> contextlib.AbstractContextManager[None]:
    if progress is None or options.get("preallocation") not in TAKE_SPACE:
        return contextlib.nullcontext()
    return watched(progress, files.occupied, size)


def warn_of_device(made: NewImage, start: int) -> None:
    """A raw disk on a block device is as large as that, and keeps what nobody overwrote.

    Args:
        made: an image of any kind, in any place.
        start: first byte that was not overwritten.
    """
    if made.target.drivertype not in RAW_HANDLES or not made.files.overwrites_device:
        return
    fd = open_host_fd(made.target.name, os.O_RDONLY)
    try:
        size = host_file_size(fd)
    finally:
        os.close(fd)
    if start < size:
        log.warning(
            "%s: is a block device: the disk has its size (%s), and holds what it held from %s on",
            made.target.name,
            format_size(size),
            format_size(start),
        )


def new_image_target(name: ImageName, registry: Registry) -> tuple[DiskId, DiskInfo]:
    """Where a new image goes, and the driver that can make it.

    Raises:
        TapError: no such driver, or it does not make files.
    """
    try:
        disk_id = split_name(name, registry)
        info = handle_for_new(disk_id, registry)
        if names_disk(disk_id.name, registry):
            text = "a new image is made in a file; convert --into copies one onto another disk"
            raise UsageError(text, image=disk_id.name)
    except TapError as exc:
        exc.image = exc.image or os.fsdecode(name)
        raise
    if not info.file_backed:
        raise UsageError(
            f"a '{info.handle}' disk exists only while it is open; there is nothing to create",
            image=os.fsdecode(name),
        )
    registry.operations(info.handle).require("td_create", disk_id.name)
    return DiskId(disk_id.name, info.handle), info


def refuse_to_replace(path: str, *, force: bool) -> None:
    """Stop before something is overwritten that must not be.

    Args:
        path: of the new image.
        force: the user allows to replace it; not, however, while another process uses it.

    Raises:
        TapError: it exists and `force` is not set, or it is in use, or is no file at all.
    """
    if not os.path.lexists(path):
        return
    refuse_read_only_device(path, path)
    if not force:
        raise UsageError("exists already; --force replaces it", image=path, errno=errno.EEXIST)
    if not os.path.exists(path):
        raise UsageError("is a symbolic link to nothing", image=path)
    fd = open_host_fd(path, os.O_RDWR)
    try:
        lock_image(fd, writing=True)
    except TapError as exc:
        raise open_error(exc, path) from None
    finally:
        os.close(fd)


def _refuse(path: str, untouchable: Mapping[Identity, str]) -> None:
    what = untouchable.get(identity_of(path) or (-1, -1))
    if what:
        raise UsageError(what, image=path)


def _open_parent(
    parent: str,
    target: DiskId,
    access: Access,
    untouchable: dict[Identity, str],
) -> tuple[DiskId, int]:
    """The parent as it is to be recorded, and its size; it must be an image that can be opened.

    What it consists of is added to what is `untouchable`.
    """
    given, path = given_parent(parent, target.name, access.registry)
    with open_image(
        DiskId(path, given.drivertype),
        access=access.with_home_of(target.name),
        metadata_only=True,
    ) as disk:
        said = f"is needed by {printable(given.name)}, which is to be the parent"
        untouchable.update(files_of(disk, said))
        return DiskId(recorded_name(given, access.registry), disk.handle), disk.size
