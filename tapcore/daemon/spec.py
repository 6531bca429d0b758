"""What a disk is attached with: kept, so that its process can be started again."""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

import attrs

from tapcore.daemon.rundir import check_name
from tapcore.daemon.verbs import parameters_of, taken
from tapcore.errors import UsageError, describe, printable
from tapcore.files.lent import open_or_borrow
from tapcore.interface.access import Access
from tapcore.interface.keys import Keys
from tapcore.interface.options import CacheMode
from tapcore.interface.policy import ReferencePolicy
from tapcore.nbd.listening import TcpAddress, UnixAddress

_LOCAL: Final = "127.0.0.1"
_CACHES: Final[Mapping[str, CacheMode]] = {"writeback": "writeback", "none": "none"}


@attrs.frozen
class DiskSpec:
    """One disk, as somebody wants it.

    Attributes:
        image: `[HANDLE:]PATH`.
        name: of it, and of its export; empty: the daemon makes one of the image's.
        directory: from which relative paths count.
        nbd: where it is served: a path, a port, or ADDRESS:PORT; empty: in the run directory.
        ring: path of a Unix socket for front ends of shared rings; empty: there is none.
        read_only: open it for reading.
        filters: around its drivers.
        cache: "writeback" or "none".
        metadata_cache: bytes for the tables of each image; None: the driver's default.
        parents: words of `--parents`.
        key_files: words of `--key-file`; the files are read when the disk is opened.
        fixed: no other image takes its place while it is served, and none is made.
        own: paths of the files that it may write, links resolved; None: those that it consists of
            when it is attached. A process that was taken over can change what its image names.
    """

    image: str
    name: str = ""
    directory: str = "/"
    nbd: str = ""
    ring: str = ""
    read_only: bool = False
    filters: tuple[str, ...] = ()
    cache: str = "writeback"
    metadata_cache: int | None = None
    parents: tuple[str, ...] = ()
    key_files: tuple[str, ...] = ()
    fixed: bool = False
    own: tuple[str, ...] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DiskSpec:
        """From what `as_dict` gave, perhaps of another version: what is unknown is left out.

        Raises:
            TapError: it cannot be meant.
        """
        takes = parameters_of(cls)
        known = {each.name for each in takes} & given.keys()
        return cls(**taken(takes, {name: given[name] for name in known}, "a disk")).checked()

    def checked(self) -> DiskSpec:
        """The same.

        Raises:
            UsageError: it cannot be meant.
        """
        check_name(self.name)
        if not self.image or "\0" in self.image:
            raise UsageError("an image needs a name")
        if not os.path.isabs(self.directory) or "\0" in self.directory:
            raise UsageError("'directory' has to be an absolute path")
        if self.cache not in _CACHES:
            raise UsageError("'cache' is writeback or none")
        if self.metadata_cache is not None and self.metadata_cache < 0:
            raise UsageError("'metadata_cache' is a number of bytes")
        return self

    @property
    def cache_mode(self) -> CacheMode:
        """`cache`, as opening wants it."""
        return _CACHES[self.cache]

    def address(self, default: str) -> UnixAddress | TcpAddress:
        """Where it is served.

        Args:
            default: path of a Unix socket, where nothing else is said.

        Raises:
            UsageError: that is no address.
        """
        if not self.nbd:
            return UnixAddress(default)
        host, _, port = self.nbd.rpartition(":")
        if port.isdecimal() and "/" not in self.nbd:
            if int(port) > 65535:
                raise UsageError(f"'{port}' is not a port")
            return TcpAddress(host.strip("[]") or _LOCAL, int(port))
        return UnixAddress(os.path.join(self.directory, self.nbd))

    @property
    def ring_address(self) -> UnixAddress | None:
        """Where front ends of shared rings come."""
        return UnixAddress(os.path.join(self.directory, self.ring)) if self.ring else None

    def access(self) -> Access:
        """With what it is opened. Paths count from the process's directory; key files are read.

        Raises:
            UsageError: a key file cannot be read.
        """
        keys = Keys.from_words(self.key_files, open_or_borrow) if self.key_files else None
        return Access(ReferencePolicy.from_words(self.parents), keys, self.metadata_cache)

    def check_own(self, written: Iterable[str]) -> None:
        """Before a disk is served that somebody else may have served before.

        Args:
            written: the files that it writes.

        Raises:
            UsageError: one is not its own.
        """
        others = [] if self.own is None else sorted({*written} - {*self.own})
        if others:
            text = f"would write {printable(others[0])}, which was no part of it: attach it anew"
            raise UsageError(text, image=self.image)

    def enter_directory(self) -> None:
        """Relative paths mean what they mean to who attached it; for the whole process.

        Raises:
            UsageError: the directory is not there, or not to be entered.
        """
        try:
            os.chdir(self.directory)
        except OSError as exc:
            raise UsageError(describe(exc), image=self.directory, errno=exc.errno) from None

    def as_dict(self) -> dict[str, Any]:
        """As parameters of `attach`, and in the state."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in attrs.asdict(self).items()
        }


class NoSuchDiskError(UsageError):
    """No disk of this name is attached."""

    default_errno = errno.ENOENT

    @classmethod
    def of(cls, name: str, attached: Container[str] = ()) -> NoSuchDiskError:
        """For a name; who wrote an image's name is told that of its disk.

        Args:
            name: that was asked for.
            attached: the names that there are.
        """
        meant = default_name(name)
        hint = f", but '{meant}' is" if meant in attached else ""
        return cls(f"no disk of this name is attached{hint}", image=name)


def default_name(image: str) -> str:
    """A name for a disk, from its image's."""
    stem = os.path.splitext(os.path.basename(image.rpartition(":")[2]))[0]
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem)
    return safe.lstrip("._-")[:56] or "disk"
