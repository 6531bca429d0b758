"""The hooks about images as such: made, recognised, looked at, and what they record of parents."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from tapcore.constants import TD_NO_PARENT
from tapcore.interface.hooks.table import D, hook, not_supported

if TYPE_CHECKING:
    from tapcore.interface.extent import Extent
    from tapcore.interface.inspection import Inspection
    from tapcore.interface.options import DiskId
    from tapcore.interface.results import Measurement


class ImageHooks(Generic[D]):
    """Which image it is, what it holds, how it is made."""

    __slots__ = ()

    @staticmethod
    @hook("recognised by `disk_info.magic`, else never without its handle")
    def td_probe(name: str, head: bytes, tail: bytes) -> bool:
        """Does this file hold the driver's format?

        Args:
            name: path of the file, for its suffix; not to be opened.
            head: its first bytes, up to 64 KiB.
            tail: its last bytes, up to 4 KiB: some formats have their header there. Empty where the
                end is not known (yet).
        """
        return False

    @staticmethod
    @hook("not supported", capability="create", lack="images of {format} cannot be made")
    def td_create(
        name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
    ) -> None:
        """Make a new image, replacing what is at `name`.

        Args:
            name: path of the new file.
            size: virtual size in bytes, a multiple of 512; None: the parent's.
            parent: the parent to be recorded, or None.
            options: from `-o`, only names that the driver's `create_options` has.

        Raises:
            OSError, TapError: nothing is left behind.
        """
        raise not_supported("td_create")

    @staticmethod
    @hook(
        "`TD_NO_PARENT`: the image stands alone",
        capability="parents",
        lack="{format} has no parents",
    )
    def td_get_parent_id(dd: D, id: DiskId) -> int:
        """Which image holds what this one does not.

        Args:
            dd: the open image.
            id: to be filled in: `name` as recorded, `drivertype` as recorded (empty: none was).

        Returns:
            0 with `id` filled in, `TD_NO_PARENT`, or a negative errno.
        """
        return TD_NO_PARENT

    @staticmethod
    @hook("`-EINVAL`: a format with parents must have it")
    def td_validate_parent(dd: D, p: D, flags: int) -> int:
        """Is `p` still the parent that `dd` was made on?

        Args:
            dd: the child.
            p: the parent, open read-only.
            flags: 0.

        Returns:
            0, or a negative errno; a TapError raised instead can say why.
        """
        return -errno.EINVAL

    @staticmethod
    @hook("all is content of a kind that only the driver can read", capability="extents")
    def td_extents(dd: D, sector: int, nb_sectors: int) -> Iterable[Extent]:
        """What lies where, without reading the data.

        Yields:
            Extents in order, without gaps, that cover exactly the range asked for.
        """
        from tapcore.interface.extent import Extent

        return iter((Extent(sector, nb_sectors, "compressed"),))

    @staticmethod
    @hook("`{}`")
    def td_info(dd: D) -> dict[str, Any]:
        """What is worth knowing of the open image: the `format` object of `info --json`."""
        return {}

    @staticmethod
    @hook("the image lies in one file")
    def td_other_files(dd: D) -> Sequence[str]:
        """The files that hold the image besides the one that it is named by; no parents.

        Extents, or a data file: names as the image records them, in order. Opens nothing.
        """
        return ()

    @staticmethod
    @hook("not supported", lack="images of {format} cannot be inspected")
    def td_inspect(name: str, fd: int, size: int) -> Inspection:
        """What the file says of itself, for an image from a stranger.

        Opens nothing, reads only `fd`, in bounded memory and time.

        Args:
            name: the file's name, for messages.
            fd: the file, open for reading.
            size: its size in bytes.

        Raises:
            ImageFormatError: not an image of this format.
        """
        raise not_supported("td_inspect")

    @staticmethod
    @hook(
        "not supported",
        capability="measure",
        lack="the size of images of {format} cannot be told beforehand",
    )
    def td_measure(
        size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
    ) -> Measurement:
        """How large a new image would be; makes nothing.

        Args:
            size: virtual size in bytes, a multiple of 512.
            options: as for `td_create`.
            data: (start, length) in bytes of the ranges that hold data, in order, not overlapping,
                inside the disk; neighbours need not be joined. To be taken once.
        """
        raise not_supported("td_measure")

    @staticmethod
    @hook(
        "not supported",
        capability="stream",
        lack="an image of {format} cannot be written to a pipe",
    )
    def td_stream(
        out: Callable[[Any], object],
        size: int,
        options: Mapping[str, str],
        pieces: Iterable[tuple[int, memoryview]],
    ) -> None:
        """Write a whole new image strictly from front to back, so that it can go into a pipe.

        A format without `td_queue_write` gets its files so, too: `td_create` has made one of no
        size, whose content this replaces.

        Args:
            out: takes the next bytes of the image (any buffer, which may be used again afterwards);
                raises what writing raises.
            size: virtual size in bytes, a multiple of 512.
            options: as for `td_create`.
            pieces: (offset, content) in order, not overlapping, inside the disk; what lies between
                them is zeroes. Pieces begin and end at multiples of 64 KiB, but for the disk's end.
                A piece's memory is valid until the next one is taken.
        """
        raise not_supported("td_stream")
