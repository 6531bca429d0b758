"""What a simple driver says of its format, and its methods, each of which may be left out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

from tapcore.errors import ImageFormatError, NotSupportedError
from tapcore.files import ImageFile
from tapcore.interface.diskinfo import DiskInfo, FormatOption
from tapcore.interface.magic import Magic
from tapcore.interface.models import DiskDriver
from tapcore.interface.results import CheckResult

Content: TypeAlias = bytes | bytearray | memoryview


class SimpleMethods:
    """A driver's methods, which may block: they are called in a thread, one at a time for a disk.

    Offsets and lengths are bytes, and lie inside the disk. `open` and `pread` are all that a format
    needs that is only read. A method that is not there leaves the format without what it is for,
    as `tapdisk formats` says. Each may raise OSError, or a TapError that says what is wrong;
    anything else is a bug, which is logged and fails the request.

    A subclass says what it is by class attributes, `handle` and `api` at least.

    Attributes:
        handle: the prefix that users type, and the name of the entry point.
        title: text for people.
        api: the version of the interface that the driver was written for: 1.
        suffixes: of files that a new image of this format is recognised by.
        magic: an image begins with it; empty: it is never recognised without its handle.
        magic_offset: where it lies instead, in bytes: from the start, or (negative) from the end.
        block_size: bytes, a power of two from 512 to 1 MiB. From 1 KiB on each call is about one
            block, a whole one but for the disk's last; with 512 it is about any number of sectors.
        needs_file: `name` is the path of a file, which is opened before `open` is called.
        create_options: what `-o` takes for a new image.
        name: of the image that is open.
        read_only: it is not to be changed: no byte of its file either.
        file: open and locked, where the format needs one. See `read` and `write`.
        size: of the disk, bytes; that of the file until `open` sets another.
        dd: the image in its chain, for what is not here.
    """

    handle: ClassVar[str] = ""
    title: ClassVar[str] = ""
    api: ClassVar[int] = 0
    suffixes: ClassVar[tuple[str, ...]] = ()
    magic: ClassVar[bytes] = b""
    magic_offset: ClassVar[int] = 0
    block_size: ClassVar[int] = 512
    needs_file: ClassVar[bool] = True
    create_options: ClassVar[tuple[FormatOption, ...]] = ()
    disk_info: ClassVar[DiskInfo]

    name: str
    read_only: bool
    file: ImageFile
    size: int
    dd: DiskDriver[Any]

    # ---- an image ---------------------------------------------------------------------------

    def open(self) -> None:
        """Look at the image, and set `size`."""

    def pread(self, offset: int, length: int) -> Content | None:
        """Content of a range; None: the image holds none of it, which a parent may, or zeroes."""
        raise NotSupportedError("cannot be read")

    def pwrite(self, offset: int, data: memoryview) -> None:
        """Change content. `data` must not be kept."""
        raise NotSupportedError("cannot be written")

    def flush(self) -> None:
        """Make all that was written safe: content first, then what leads to it; see `sync`."""
        self.sync()

    def discard(self, offset: int, length: int) -> None:
        """The content of a range, of any length, is not needed: it stays, or reads as zeroes."""
        raise NotSupportedError("cannot be discarded")

    def zero(self, offset: int, length: int) -> None:
        """Make a range, of any length, read as zeroes, quicker than by writing them.

        NotSupportedError lets zeroes be written.
        """
        raise NotSupportedError("cannot be zeroed")

    def extents(self, offset: int, length: int) -> Iterable[tuple[int, str]]:
        """What a range holds, in order, without reading it.

        Yields:
            (length, kind): "data", "zero" (also where a parent holds something) or "hole" (what
            `pread` has None for). Whole sectors, all of the range.
        """
        raise NotSupportedError("has no extents")

    def resize(self, size: int) -> None:
        """Let the disk have another size (a multiple of 512); what is new reads as zeroes."""
        raise NotSupportedError("cannot be resized")

    def info(self) -> dict[str, Any]:
        """What is worth telling of the image."""
        return {}

    def check(self, repair: str) -> CheckResult:
        """Look for what is wrong, and mend it where `repair` is "leaks" or "all"."""
        raise NotSupportedError("cannot be checked")

    def close(self) -> None:
        """Let go what `open` took; what was written was flushed, and the file is closed later."""

    # ---- parents ----------------------------------------------------------------------------

    def parent(self) -> str:
        """What the image records of its parent: `[HANDLE:]NAME`; empty: it has none."""
        return ""

    def check_parent(self, parent: DiskDriver[Any]) -> None:
        """Raise ImageFormatError where this is not the parent that the image was made on."""

    # ---- images that are not open -----------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, tail: bytes = b"") -> bool:
        """Whether a file with these ends is an image of this format.

        A format that has this method is recognised by it, and not by `magic`. It may as well take
        `head` alone.

        Args:
            head: the file's first 64 KiB, or all of it.
            tail: its last 4 KiB, or all of it.
        """
        return bool(cls.magic) and Magic(cls.magic, cls.magic_offset).shown_by(head, tail)

    @classmethod
    def create(cls, name: str, size: int | None, parent: str, options: Mapping[str, str]) -> None:
        """Make an image, or replace it; on an error nothing is left of it.

        Args:
            name: path of its file.
            size: bytes, a multiple of 512; None: the parent's.
            parent: to be recorded, `HANDLE:NAME`; empty: none.
            options: all that were given.
        """
        raise NotSupportedError("cannot be made")

    # ---- the file ---------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """A range of the file.

        Raises:
            ImageFormatError: it does not lie inside the file.
            OSError: as the system says.
        """
        end = offset + length
        outside = end > self.file.size and end > self.file.look_again()
        if offset < 0 or length < 0 or outside:
            raise ImageFormatError(f"is cut short: nothing is at offset {offset:#x} of its file")
        return self.file.read_metadata(offset, length)

    def write(self, offset: int, data: Content) -> None:
        """Change a range of the file, which grows where need be.

        Raises:
            OSError: as the system says.
        """
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self.file.write_metadata(offset, data)

    def sync(self) -> None:
        """Wait until all that was written to the file is on disk.

        Raises:
            OSError: it is not.
        """
        if self.needs_file and (res := self.file.flush_blocking()):
            raise OSError(-res, os.strerror(-res))
