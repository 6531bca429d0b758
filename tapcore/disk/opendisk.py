"""`tapcore.open`: a disk by its name, as a program wants it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from tapcore.disk.disk import Disk
from tapcore.engine import (
    engine_of,
)
from tapcore.errors import (
    NotWritableError,
    UsageError,
)
from tapcore.interface.access import Access
from tapcore.interface.filters.filter import Filter
from tapcore.interface.keys import Keys
from tapcore.interface.options import CacheMode, DiskId
from tapcore.interface.policy import Parents, ReferencePolicy
from tapcore.interface.registry import Registry
from tapcore.opening.chain import abandon_disk
from tapcore.opening.door import open_with
from tapcore.opening.names import ImageName

if TYPE_CHECKING:
    from tapcore.engine.salvage import Salvage

Mode: TypeAlias = Literal["rb", "r+b", "rb+"]

_CACHE_MODES = get_args(CacheMode)


def open(
    name: ImageName,
    mode: Mode | None = None,
    *,
    readonly: bool | None = None,
    probe: bool = False,
    parents: Parents = (),
    cache: CacheMode = "writeback",
    lock: bool = True,
    filters: Sequence[str | Filter] = (),
    copy_on_read: bool = False,
    snapshot: str = "",
    keys: bytes | Mapping[str, bytes] | Mapping[os.PathLike[str], bytes] | Keys | None = None,
    metadata_cache: int | None = None,
    salvage: bool = False,
    registry: Registry | None = None,
    private: Mapping[str, Any] | None = None,
) -> Disk:
    """Open a virtual disk, for reading unless `mode` or `readonly` says otherwise.

    Args:
        name: `HANDLE:PATH`; the handle may be left out for reading. A format that was guessed is
            not written, unless `probe` says so.
        mode: as of Python's `open`: "rb" reads (the default), "r+b" (or "rb+") reads and writes.
        readonly: the same, as a truth; False to write.
        probe: let the drivers recognise the format of a name without a handle for writing too; what
            is then taken for a raw disk refuses writes that would make it look like another format.
        parents: directories (or "any", "none", or a `ReferencePolicy`) in which files named by the
            image may lie, besides its own directory tree.
        cache: "writeback" through the page cache, "none" with O_DIRECT.
        lock: take QEMU-compatible locks; may be False only with `readonly`.
        filters: to wrap the drivers in, the first outermost: of each `NAME[:KEY=VALUE,...]`, for an
            installed one, or the filter itself.
        copy_on_read: write into the child what is read from its parents; only with
            `readonly=False`.
        snapshot: open this internal snapshot, by id or name; only with `readonly`.
        keys: the passphrase of encrypted images, or the path of each and its own.
        metadata_cache: bytes that a driver may spend on the tables of each image; None: its own
            default.
        salvage: read what is left of a damaged disk; what cannot be read is zeroes, and noted in
            the disk's `salvage`. Only with `readonly`.
        registry: drivers to use instead of the installed ones.
        private: passed to drivers as `dd.options.private`.

    Returns:
        A context manager and `io.RawIOBase`.

    Raises:
        TapError: with the image's name, an errno, and one line saying what is wrong.
    """
    # As long as it is by its keywords, each of which goes on as it came.
    name = os.fsdecode(name)
    readonly = _readonly(mode, readonly, name)
    _check_words(cache, filters, name)
    if metadata_cache is not None and index(metadata_cache) < 0:
        raise UsageError("a cache cannot have less than 0 bytes", image=name)
    for wrong, text in (
        (not lock and not readonly, "a disk can be opened without a lock only for reading"),
        (snapshot and not readonly, "a snapshot can be opened only for reading"),
        (salvage and not readonly, "a disk can be salvaged only by reading"),
        (copy_on_read and readonly, "what is read is copied only with readonly=False"),
    ):
        if wrong:
            raise UsageError(text, image=name)
    access = Access(
        parents,
        keys if isinstance(keys, Keys) else Keys.of(keys),
        metadata_cache,
        registry,
        tuple(filters),
    )
    try:
        disk = open_with(
            access,
            name,
            writing=not readonly,
            may_probe=readonly or probe,
            cache=cache,
            locking=lock,
            snapshot=snapshot,
            salvage=salvage,
            private=private or {},
        )
    except NotWritableError as exc:
        exc.message += " (readonly=True would open it)"
        raise
    try:
        if copy_on_read:
            engine_of(disk).enable_copy_on_read()
        opened = Disk(disk, _new_salvage() if salvage else None)
        if readonly and registry is None and not (keys or private or filters):
            how = {"cache": cache, "lock": lock, "snapshot": snapshot, "salvage": salvage}
            again = _absolute(disk.image), access.references, metadata_cache
            opened.opened_again_by(partial(_open_again, *again, how))
        return opened
    except BaseException:  # Ctrl-C, while nobody has it yet
        abandon_disk(disk)
        raise


def _readonly(mode: Mode | None, readonly: bool | None, name: str) -> bool:
    if mode is None:
        return readonly is None or readonly
    if mode not in get_args(Mode):
        raise UsageError(f"there is no mode {mode!r} ('rb', 'r+b')", image=name)
    if readonly is not None and readonly != (mode == "rb"):
        raise UsageError(f"mode {mode!r} and readonly={readonly} contradict each other", image=name)
    return mode == "rb"


def _new_salvage() -> Salvage:
    from tapcore.engine.salvage import Salvage

    return Salvage()


# ---- in another process ----------------------------------------------------------------------


def _absolute(image: DiskId) -> str:
    """A name that means the same in every directory; one of no file is as it is."""
    name = image.name
    return f"{image.drivertype}:{os.path.abspath(name) if os.path.lexists(name) else name}"


def _open_again(
    name: str, parents: ReferencePolicy, metadata_cache: int | None, how: dict[str, Any]
) -> Disk:
    return open(name, "rb", parents=parents, metadata_cache=metadata_cache, **how)


def _check_words(cache: object, filters: object, name: str) -> None:
    if cache not in _CACHE_MODES:
        known = ", ".join(map(repr, _CACHE_MODES))
        raise UsageError(f"there is no cache mode {cache!r} ({known})", image=name)
    if isinstance(filters, str):
        raise TypeError("filters: a tuple of names, not a text")
