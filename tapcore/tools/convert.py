"""Copying a disk's content into a new image of any format; sparse stays sparse."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import attrs

from tapcore.disk import Disk
from tapcore.errors import TapError, UsageError, open_error
from tapcore.files.byname import open_host_file
from tapcore.interface.access import Access
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.filters.filter import Filter
from tapcore.interface.identity import identity_of
from tapcore.interface.keys import KEY_FILE_OPTION, Keys, read_key_file
from tapcore.interface.options import DiskId
from tapcore.interface.policy import Parents
from tapcore.interface.registry import Registry
from tapcore.oldnames import renamed
from tapcore.opening.guard import guard_of
from tapcore.opening.names import RAW_HANDLES, STANDARD, ImageName, raw_handle, split_name
from tapcore.tools.create import NewImage, new_image, new_image_target, warn_of_device
from tapcore.tools.formatoptions import as_texts, check_options
from tapcore.tools.imagefiles import files_of
from tapcore.tools.openimage import open_image
from tapcore.tools.plaincopy import PlainCopier
from tapcore.tools.plan import Job, jobs_for_difference, jobs_for_fresh, jobs_for_used
from tapcore.tools.progress import Progress
from tapcore.tools.transfer import Transfer, write_unit

if TYPE_CHECKING:
    from tapcore.engine.salvage import Salvage

log = logging.getLogger(__name__)


class _Wish(NamedTuple):
    """What was asked for; see `convert_image`."""

    parent: str
    options: dict[str, str]
    compressed: bool
    force: bool
    keep_partial: bool
    sync: bool
    access: Access
    filters: tuple[str | Filter, ...]
    progress: Progress | None
    salvage: Salvage | None
    bitmaps: bool


@renamed(references="parents")
def convert_image(
    source: ImageName,
    target: ImageName,
    *,
    parent: ImageName = "",
    options: Mapping[str, str | os.PathLike[str]] | None = None,
    compressed: bool = False,
    snapshot: str = "",
    force: bool = False,
    keep_partial: bool = False,
    sync: bool = False,
    parents: Parents = (),
    keys: Keys | None = None,
    filters: Sequence[str | Filter] = (),
    metadata_cache: int | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
    salvage: Salvage | None = None,
    bitmaps: bool = False,
) -> tuple[DiskId, int]:
    """Make a new image with the content of another.

    Args:
        source: `[HANDLE:]PATH`; "-" reads a raw disk from standard input, and refuses what says
            that it is something else; "aio:-" takes anything for a raw disk.
        target: `[HANDLE:]PATH`; without a handle the suffix says the format. "-" writes a raw
            disk, and `HANDLE:-` an image, to standard output.
        parent: of the new image, which then holds only what differs from it.
        options: of the new format (`-o`).
        compressed: store the data compressed.
        snapshot: copy this internal snapshot of the source.
        force: replace what is there.
        keep_partial: leave what was copied as `NAME.partial` when the work is stopped.
        sync: return when the copy is on disk, not only with the kernel.
        parents: which files the source may name, as of `tapcore.open`.
        keys: passphrases of encrypted images, of the new one too.
        filters: around the drivers of the source, `NAME[:KEY=VALUE,...]`, the first outermost.
        metadata_cache: bytes for the tables of each image; None: the driver's default.
        registry: drivers to use instead of the installed ones.
        progress: told how far it is; what it raises stops the work.
        salvage: go on where the source is damaged: what cannot be read becomes zeroes, and is noted
            here.
        bitmaps: give the new image the source's persistent bitmaps, too; what one that is
            inconsistent would say nobody knows, so it is left out, with a warning.

    Returns:
        The new image, and the bytes of data written to it.

    Raises:
        TapError: with the name of the image concerned. Whatever stopped the work, what was at the
            target's place still is, and nothing else; of a block device what it held is lost.
    """
    wish = _Wish(
        parent=os.fsdecode(parent),
        options=as_texts(options),
        compressed=compressed,
        force=force,
        keep_partial=keep_partial,
        sync=sync,
        access=Access(parents, keys, metadata_cache, registry),
        filters=tuple(filters),
        progress=progress,
        salvage=salvage,
        bitmaps=bitmaps,
    )
    goal, info = _goal(os.fsdecode(target), wish)
    with _source(os.fsdecode(source), goal, snapshot, wish) as disk:
        if goal.name == STANDARD:
            from tapcore.tools.streams import stream_to_output  # most images are in files

            _refuse_standard_output(disk)
            return goal, stream_to_output(disk, info, wish.options, progress)
        return goal, _into_file(disk, goal, info, wish)


# ---- where from, where to --------------------------------------------------------------------


def _goal(target: str, wish: _Wish) -> tuple[DiskId, DiskInfo]:
    """The new image, and its driver, which can make it as it is wished."""
    if target == STANDARD:
        target = f"{raw_handle(wish.access.registry)}:{STANDARD}"
    goal, info = new_image_target(target, wish.access.registry)
    drv = wish.access.registry.operations(info.handle)
    if wish.compressed:
        drv.require("td_queue_write_compressed", goal.name, option="-c")
    if wish.bitmaps:
        drv.require("td_bitmap_add", goal.name, option="--bitmaps")
    if goal.name != STANDARD:
        return goal, info
    drv.require("td_stream", goal.name)
    if wish.parent:
        raise UsageError("an image that goes into a pipe has no parent (-b)", image=goal.name)
    if wish.bitmaps:
        raise UsageError("an image that goes into a pipe has no bitmaps", image=goal.name)
    check_options(goal.name, info.handle, info.create_options, wish.options)
    return goal, info


@contextlib.contextmanager
def _source(source: str, goal: DiskId, snapshot: str, wish: _Wish) -> Iterator[Disk]:
    with contextlib.ExitStack() as stack:
        named = _named(source, wish.access.registry)
        if named.name == STANDARD:
            from tapcore.tools.streams import refuse_image, standard_input

            unless_image = refuse_image(wish.access.registry) if not named.drivertype else None
            named.drivertype = _raw_input(named, wish.access.registry)
            named.name = stack.enter_context(
                standard_input(_room_for(goal), wish.progress, unless_image)
            )
        yield stack.enter_context(
            open_image(
                named,
                access=attrs.evolve(wish.access, filters=wish.filters),
                snapshot=snapshot,
                salvage=wish.salvage,
            )
        )


def _refuse_standard_output(disk: Disk) -> None:
    """A shell may have made it a file of the source, which would be overwritten, or grow."""
    from tapcore.tools.streams import STDOUT

    if identity_of(f"/dev/fd/{STDOUT}") in files_of(disk, ""):
        raise UsageError("standard output is the source, or one of its parents")


def _named(source: str, registry: Registry) -> DiskId:
    try:
        return split_name(source, registry)
    except TapError as exc:
        exc.image = exc.image or source
        raise


def _raw_input(named: DiskId, registry: Registry) -> str:
    handle = named.drivertype or raw_handle(registry)
    if handle not in RAW_HANDLES:
        raise UsageError("what comes from standard input is a raw disk", image=str(named))
    return handle


def _room_for(goal: DiskId) -> str:
    """Where what comes from standard input is kept: beside the target, else in TMPDIR."""
    if goal.name != STANDARD:
        return goal.name
    return os.path.join(os.environ.get("TMPDIR", "/var/tmp"), "x")


# ---- into a file -----------------------------------------------------------------------------


def _into_file(disk: Disk, goal: DiskId, info: DiskInfo, wish: _Wish) -> int:
    hooks = wish.access.registry.operations(info.handle).implemented
    streamed = "td_queue_write" not in hooks and "td_stream" in hooks
    with new_image(
        str(goal),
        0 if streamed else disk.size,  # what is streamed replaces what was made
        parent=wish.parent,
        options=wish.options,
        force=wish.force,
        access=wish.access,
        source=disk,
    ) as made:
        try:
            written = _stream(disk, made, info, wish) if streamed else _fill(disk, made, wish)
        except BaseException:
            if wish.keep_partial:
                for name in made.files.keep_partial():
                    log.warning("%s: holds what was copied so far", name)
            raise
        made.files.publish(durable=wish.sync)
        warn_of_device(made, disk.size)
    return written


def _stream(disk: Disk, made: NewImage, info: DiskInfo, wish: _Wish) -> int:
    """For a format that is written only front to back."""
    from tapcore.tools.streams import stream_disk

    name = made.target.name
    if made.files.overwrites_device:
        raise UsageError(f"a '{info.handle}' image goes into a file, not a device", image=name)
    fd = open_host_file(made.working.name, writing=True)
    try:
        os.ftruncate(fd, 0)
        written = stream_disk(disk, info, made.options, wish.progress, fd)
        if wish.sync:
            os.fdatasync(fd)
    except OSError as exc:
        raise open_error(exc, name) from exc
    finally:
        os.close(fd)
    return written


def _fill(disk: Disk, made: NewImage, wish: _Wish) -> int:
    """Copy the content; what asks to stop is listened to up to the end."""
    access = wish.access
    secret = access.keys.passphrase(made.target.name)
    if secret is None and KEY_FILE_OPTION in wish.options:
        secret = read_key_file(wish.options[KEY_FILE_OPTION])
    if secret is not None:
        access = attrs.evolve(access, keys=access.keys.having(made.working.name, secret))
    with open_image(
        made.working,
        writing=True,
        access=access,
        durable=wish.sync,
    ) as new:
        written = _copy(disk, new, made.files.overwrites_device, wish)
        if wish.bitmaps:
            from tapcore.tools.bitmaps import copy_bitmaps

            for name in copy_bitmaps(disk, new):
                log.warning("%s: its bitmap '%s' is inconsistent, and left out", disk.name, name)
        new.sync()
        if new.handle in RAW_HANDLES:
            _warn_of_content(new, made.target, wish.access.registry)
    if wish.progress is not None:
        wish.progress(disk.size, disk.size)
    return written


def _warn_of_content(new: Disk, target: DiskId, registry: Registry) -> None:
    """A raw disk can hold what makes it look like something else; the copy is right even so."""
    guard = guard_of(target.name, registry)
    tail = min(guard.tail, new.size)
    head = new.pread(0, length=min(guard.head, new.size))
    seen = guard.looks_like(head, new.pread(new.size - tail, length=tail), new.size)
    if seen:
        log.warning(
            "%s: its content looks like %s; always name it with its handle (%s), "
            "or it is taken for that",
            target.name,
            seen,
            target,
        )


def _copy(source: Disk, target: Disk, on_device: bool, wish: _Wish) -> int:
    """Make a new image, of the source's size, read as the source; returns the bytes written."""
    unit = write_unit(target)
    path = target.state.image.name
    fresh = not wish.parent and not on_device
    transfer = Transfer(
        source,
        target,
        against=target if wish.parent else None,
        fresh=fresh,
        compressed=wish.compressed,
        progress=wish.progress,
    )
    if wish.parent:
        return transfer.run(jobs_for_difference(source, target, unit))
    if not fresh:
        return transfer.run(jobs_for_used(source, unit))
    jobs = jobs_for_fresh(source, unit)
    if target.handle not in RAW_HANDLES:
        return transfer.run(jobs)
    return _plainly(source, path, jobs, transfer, wish.progress)


def _plainly(
    source: Disk, path: str, jobs: Iterator[Job], transfer: Transfer, progress: Progress | None
) -> int:
    """Into a plain file: what lies plain in files goes from file to file."""
    try:
        copier = PlainCopier(source.state.image.name, path, progress, source.size)
    except OSError as exc:
        raise open_error(exc, path) from None
    with contextlib.closing(copier):
        return transfer.run(copier.filter(jobs)) + copier.written
