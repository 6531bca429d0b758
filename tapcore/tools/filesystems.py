"""The files inside a disk: without root, without a mount, without a virtual machine.

The library fs-explorer (`tapcore[files]`) reads partitions and file systems from any open disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

import attrs

from tapcore.disk import Disk
from tapcore.errors import ImageFormatError, NotSupportedError, TapError, UsageError, describe
from tapcore.interface.access import Access
from tapcore.interface.registry import Registry
from tapcore.opening.names import RAW_FORMAT
from tapcore.tools.openimage import open_image
from tapcore.tools.progress import Progress

if TYPE_CHECKING:
    from fs_explorer import Entry, Source


T = TypeVar("T")

_CACHE_BYTES: Final = 32 << 20
_MAX_PARTITION_DIGITS: Final = 4
_CONFLICTS: Final = {False: "error", True: "overwrite"}


@attrs.frozen
class Volume:
    """A partition that a disk has.

    Attributes:
        number: from 1; what `IMAGE:NUMBER` means.
        size: bytes.
        format: of its file system, or empty where none is recognised.
        label: its name, or empty.
        folder: where its files are.
    """

    number: int
    size: int
    format: str
    label: str
    folder: str


@attrs.frozen
class Extracted:
    """What was written.

    Attributes:
        entries: files, folders and links.
        bytes: of files.
        skipped: what was left out: of each kind how many.
    """

    entries: int
    bytes: int
    skipped: dict[str, int]


class FileSystems:
    """The file systems of an open disk.

    A path begins with `/`. Where the disk has several partitions and none was chosen, its first
    part names one: `/p1/etc/hostname`.

    Args:
        disk: open for reading, and not closed here.
        partition: its number, from 1; None: the whole disk, or its only partition.

    Attributes:
        volumes: the disk's partitions; none where the whole of it is one file system.
        home: the folder of the partition that paths mean; empty: that of the whole disk.
    """

    def __init__(self, disk: Disk, partition: int | None = None) -> None:
        self._image = disk.name
        self._source = self._try(lambda: _open_source(disk))
        try:
            self.volumes = self._volumes()
            self.home = self._folder_of(partition)
        except BaseException:
            self._source.close()
            raise

    def close(self) -> None:
        """Let go what was read; the disk stays open."""
        self._source.close()

    def entry(self, path: str) -> Entry:
        """What is at a path; a link is not followed."""
        return self._try(lambda: self._source.stat(self._inside(path)))

    def entries(self, path: str = "/", *, depth: int = 0) -> Iterator[Entry]:
        """What a folder has, in the order of names; a file has only itself.

        Args:
            path: of the folder.
            depth: of folders below that are looked into as well; -1: all.
        """
        inside = self._inside(path)
        if inside != "/" and not self.entry(path).is_dir:
            target = self._try(lambda: self._source.stat(inside, follow_symlinks=True))
            if not target.is_dir:
                yield self.entry(path)
                return
        found = self._source.entries(inside, recursive=depth, errors="yield", sort=True)
        while (entry := self._try(lambda: next(found, None))) is not None:
            yield entry

    def open_file(self, path: str) -> BinaryIO:
        """A file, to be read and closed; links are followed."""
        opened = self._try(lambda: self._source.open_file(self._inside(path)))
        return cast("BinaryIO", opened)

    def copy_file(self, path: str, target: BinaryIO) -> int:
        """Write a file's content into another; returns the bytes."""
        total = 0
        with contextlib.closing(self.open_file(path)) as file:
            while content := self._try(lambda: file.read(1 << 20)):
                target.write(content)
                total += len(content)
        return total

    def extract(
        self,
        paths: Sequence[str],
        folder: str,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Extracted:
        """Write files, and folders with all that is in them, into a folder of this machine.

        Nothing is written outside of it: links that lead out are left out. Owners are this user's.

        Args:
            paths: what is to be written, each with its whole path.
            folder: made where it is not there.
            force: replace files that are there.
            progress: told how many bytes were written; what it raises stops the work.
        """
        os.makedirs(folder, exist_ok=True)
        wanted = [self._inside(path) for path in paths]

        def tell(event: Any) -> None:
            if progress is not None:
                progress(event.done, event.total or 0)

        result = self._try(
            lambda: self._source.extract(
                wanted,
                folder,
                base=self.home or "/",
                on_conflict=_CONFLICTS[force],
                progress=tell,
            )
        )
        skipped = {kind: count for kind, count in result.skipped.items() if count}
        return Extracted(result.count, result.bytes, skipped)

    # ---- inside -----------------------------------------------------------------------------

    def shown(self, entry: Entry) -> str:
        """An entry's path as it is named here."""
        return entry.path.removeprefix(self.home) or "/"

    def _inside(self, path: str) -> str:
        if "\0" in path:
            raise UsageError("a path must not contain a NUL", image=self._image)
        joined = f"{self.home}/{path.strip('/')}"
        return joined.rstrip("/") or "/"

    def _volumes(self) -> tuple[Volume, ...]:
        from fs_explorer import EntryType

        def found() -> list[Entry]:
            entries = self._source.entries("/", recursive=0, errors="yield")
            return [entry for entry in entries if entry.type == EntryType.VOLUME]

        return tuple(self._volume(entry) for entry in self._try(found))

    def _volume(self, entry: Entry) -> Volume:
        inside = (
            next(iter(self._source.entries(entry.path, recursive=0, errors="yield")), None)
            if not entry.error
            else None
        )
        return Volume(
            number=int("".join(filter(str.isdigit, entry.name)) or 0),
            size=entry.size or 0,
            format=inside.format if inside is not None else "",
            label=str(entry.extra.get("label") or ""),
            folder=f"/{entry.name}",
        )

    def _folder_of(self, partition: int | None) -> str:
        if partition is None:
            return self.volumes[0].folder if len(self.volumes) == 1 else ""
        for volume in self.volumes:
            if volume.number == partition:
                return volume.folder
        numbers = ", ".join(str(volume.number) for volume in self.volumes)
        what = f"its partitions: {numbers}" if numbers else "it has none"
        raise UsageError(f"has no partition {partition} ({what})", image=self._image)

    def _try(self, call: Callable[[], T]) -> T:
        """A call of the library; what it raises names the image."""
        from fs_explorer import FsExplorerError, UnsupportedFormatError

        try:
            return call()
        except (TapError, MemoryError):
            raise
        except UnsupportedFormatError as exc:
            text = f"has no partition or file system that is known ({exc.reason})"
            raise ImageFormatError(text, image=self._image) from exc
        except FsExplorerError as exc:
            raise ImageFormatError(str(exc), image=self._image) from exc
        except OSError:
            raise
        except Exception as exc:  # a hostile file system found a hole in a parser
            text = f"its file system cannot be read: {describe(exc)}"
            raise ImageFormatError(text, image=self._image) from exc


@contextlib.contextmanager
def open_file_systems(image: str, access: Access) -> Iterator[FileSystems]:
    """The file systems of an image, or of one of its partitions.

    Args:
        image: `[HANDLE:]PATH`, or `[HANDLE:]PATH:PARTITION`.
        access: with what it is opened.

    Raises:
        TapError: with the image's name.
    """
    name, partition = split_partition(image, access.registry)
    with open_image(name, access=access) as disk:
        _require_library(name)
        found = FileSystems(disk, partition)
        try:
            yield found
        finally:
            found.close()


def list_volumes(image: str, access: Access) -> tuple[Volume, ...]:
    """The partitions of a disk; none where it has none, or nothing that is known. Takes no lock.

    Args:
        image: `[HANDLE:]PATH`.
        access: with what it is opened.

    Raises:
        TapError: with the image's name.
    """
    with open_image(image, access=access, locking=False) as disk:
        _require_library(image)
        try:
            found = FileSystems(disk)
        except ImageFormatError:
            return ()
        try:
            return tuple(found.volumes)
        finally:
            found.close()


def split_partition(image: str, registry: Registry) -> tuple[str, int | None]:
    """`IMAGE:2` into the image and the partition's number; a file of that name comes first."""
    name, colon, number = image.rpartition(":")
    if not colon or not number.isdecimal() or not number.isascii():
        return image, None
    if os.path.lexists(_path_of(image, registry)) or not os.path.lexists(_path_of(name, registry)):
        return image, None
    if len(number) > _MAX_PARTITION_DIGITS:
        raise UsageError(f"'{number}' is not the number of a partition", image=name)
    return name, int(number)


def _path_of(image: str, registry: Registry) -> str:
    head, colon, rest = image.partition(":")
    has_handle = colon and rest and (head == RAW_FORMAT or registry.knows(head))
    return rest if has_handle else image


def _require_library(image: str) -> None:
    try:
        import fs_explorer  # noqa: F401
    except ImportError:
        text = "looking at files needs a library: pip install 'tapcore[files]'"
        raise NotSupportedError(text, image=image) from None


def _open_source(disk: Disk) -> Source:
    from fs_explorer import open_source

    # `flatten=False`: a partition is there even where it is the only one; no other file is opened
    return open_source(disk, cache_size=_CACHE_BYTES, flatten=False, threads=1, backend="pure")
