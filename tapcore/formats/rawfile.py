"""Hooks of every driver whose disk is simply a file, byte for byte; public, for plugins.

A driver takes them over by importing them: `from tapcore.rawfile import td_create, td_extents`.
They expect `dd.private` to be the open `ImageFile`. How the bytes are moved is the driver's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from tapcore.constants import DEFAULT_SECTOR_SIZE, SECTOR_SHIFT
from tapcore.errors import UsageError
from tapcore.files import ImageFile, create_host_file, describe_host_file
from tapcore.interface.diskinfo import FormatOption
from tapcore.interface.hooks import implements
from tapcore.interface.models import DiskDriver, Hooks
from tapcore.interface.options import DiskId
from tapcore.interface.places import Places

if TYPE_CHECKING:
    from tapcore.interface.extent import Extent
    from tapcore.interface.inspection import Inspection
    from tapcore.interface.results import Measurement

CREATE_OPTIONS: Final = (
    FormatOption("preallocation", "how space is reserved", ("off", "falloc", "full"), "off"),
)
"""For `DiskInfo.create_options`."""


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """A plain file, sparse unless `preallocation` says otherwise; a device that is written full."""
    if parent is not None or size is None:
        raise UsageError("a raw image stands alone and needs a size", image=name)
    how = options.get("preallocation", "off")
    create_host_file(name, size, how, zeroed=how == "full")


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver[ImageFile], sector: int, nb_sectors: int) -> Iterable[Extent]:
    """Data and holes as the file system knows them."""
    return dd.private.extents(sector, nb_sectors)


class _FilePlaces:
    """Every sector lies where it lies on the disk."""

    __slots__ = ("busy", "data")

    uses = None
    whole = True

    def __init__(self, file: ImageFile) -> None:
        self.data = file
        self.busy = False

    def place(self, sector: int, nb_sectors: int, /) -> int:
        return sector << SECTOR_SHIFT

    place_to_write = place


@implements(Hooks.td_places)
def td_places(dd: DiskDriver[ImageFile]) -> Places | None:
    """The whole file."""
    return _FilePlaces(dd.private)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver[ImageFile], size: int) -> None:
    """Change the file's length."""
    file = dd.private
    file.resize(size)
    dd.size = file.sectors


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[ImageFile]) -> dict[str, Any]:
    """The kind of file and its length."""
    return describe_host_file(dd.private.fd)


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """Any file is a raw image; nothing in it is looked at."""
    from tapcore.interface.inspection import Inspection

    return Inspection(virtual_size=-(-size // DEFAULT_SECTOR_SIZE) * DEFAULT_SECTOR_SIZE)


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """The disk itself: what is sparse on this file system need not be on another."""
    from tapcore.interface.results import Measurement

    return Measurement(required=size, fully_allocated=size)


@implements(Hooks.td_stream)
def td_stream(
    out: Callable[[Any], object],
    size: int,
    options: Mapping[str, str],
    pieces: Iterable[tuple[int, memoryview]],
) -> None:
    """The disk, byte for byte; what lies between the pieces as zeroes."""
    if options.get("preallocation", "off") != "off":
        raise UsageError("what goes into a pipe has no preallocation")
    done = 0
    for offset, content in pieces:
        _zeroes(out, offset - done)
        out(content)
        done = offset + len(content)
    _zeroes(out, size - done)


def _zeroes(out: Callable[[Any], object], length: int) -> None:
    from tapcore.buffers import ZEROES

    for start in range(0, length, len(ZEROES)):
        out(ZEROES[: min(len(ZEROES), length - start)])


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[ImageFile]) -> None:
    """Finish what is under way, flush and close the file."""
    dd.private.close()


__all__ = [
    "CREATE_OPTIONS",
    "td_close",
    "td_create",
    "td_extents",
    "td_info",
    "td_inspect",
    "td_measure",
    "td_places",
    "td_resize",
    "td_stream",
]
