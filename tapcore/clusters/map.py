"""What a format says: where the sectors of its disk lie, and how that is changed.

A format implements `ClusterMap` to be read, `WritableMap` to be written, `PackingMap` to take
compressed writes. All sectors are the map's own (see `Clusters.start`), all places bytes. Except
where it is said, the methods are called by the loop's thread, and must not wait for the disk.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import attrs

from tapcore.clusters.cache import Loaded
from tapcore.clusters.runs import ASK, DATA, HOLE, NOWHERE, Run
from tapcore.clusters.tables import Write
from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import ImageFormatError
from tapcore.files import ImageFile

Buffer: TypeAlias = bytes | bytearray | memoryview
ShortWay: TypeAlias = Callable[[int, int], int]
"""`ClusterMap.place`, or what stands for it."""


class Cipher(Protocol):
    """Encrypts and decrypts whole sectors, as `tapcore.sectorcipher` does."""

    def encrypt(self, first_sector: int, data: Buffer) -> bytes: ...

    def decrypt(self, first_sector: int, data: Buffer) -> bytes: ...


class Unpacker(Protocol):
    """Reads compressed clusters; see `DeflatedClusters` for those with a place and a length.

    It may have `unpack_many(tokens)` besides, which yields for each token, in order, what `unpack`
    returns or raises: where that is quicker than one by one. And `unpack_into(tokens, views)`,
    which puts them there, and yields None, or what `unpack` raises.
    """

    def unpack(self, token: int) -> bytes:
        """The content of a whole cluster; waits for the disk, in a thread.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """

    def unpack_now(self, token: int) -> bytes | None:
        """The same where that takes less time than to hand it to a thread; else None."""

    def missing(self, token: int) -> bool:
        """Whether it lies past the end of the file."""


class ClusterMap(ABC):
    """Where the sectors of an image lie.

    Args:
        file: that holds the tables.
        sectors: of the disk.
        cluster_size: bytes, a power of two and at least a sector.
        data: the file that holds the content, where that is another one.

    Attributes:
        file: as given.
        data: the file that holds the content.
        sectors: as given.
        cluster_shift: log2 of a cluster's sectors.
        unit_shift: the same of the smallest part of a cluster that can be stored on its own.
        table_shift: the same of the sectors that one table maps.
        reuses_space: what is given up is given out again, once nothing in flight is about it.
        cipher: the content's; None where it is plain.
        cipher_by_place: the cipher counts the sectors of the file, not those of the disk.
        encrypted: the content is, even where no key is known.
        unpacker: reads compressed clusters, where there can be any.
        shows_holes: a hole of the file inside of content is told as zeroes.
        whole_clusters: everybody who writes the format writes clusters whole, so that what a file
            lacks of its last one is lost. Otherwise it was never written, and reads as zeroes.
    """

    reuses_space: ClassVar[bool] = False
    shows_holes: ClassVar[bool] = False
    whole_clusters: ClassVar[bool] = False

    cipher: Cipher | None = None
    cipher_by_place: bool = False
    encrypted: bool = False
    unpacker: Unpacker | None = None
    table_shift: int = 62

    def __init__(
        self, file: ImageFile, sectors: int, cluster_size: int, data: ImageFile | None = None
    ) -> None:
        self.file = file
        self.data = data or file
        self.sectors = sectors
        self.cluster_shift = self.unit_shift = cluster_size.bit_length() - 1 - SECTOR_SHIFT

    def place(self, sector: int, nb_sectors: int) -> int:
        """The short way to where a range lies, for nearly every small request.

        Worth a second, quicker version in a format for which speed matters: it need not look
        whether the place lies inside the file.

        Returns:
            The host offset (bytes) of a range that lies there in one piece, plain; NOWHERE where
            all of it is a hole; ASK where only `run` can say it.
        """
        try:
            run = self.run(sector, sector + nb_sectors)
        except ImageFormatError:
            return ASK
        if run is None or run.nb_sectors < nb_sectors:
            return ASK
        if run.kind == DATA:
            return run.where
        return NOWHERE if run.kind == HOLE else ASK

    @abstractmethod
    def run(self, sector: int, stop: int) -> Run | None:
        """The run that begins at a sector, or the first part of it.

        Args:
            sector: of the disk.
            stop: nothing from this sector on is of interest.

        Returns:
            The run; None: a table has to be read first, by `load`.

        Raises:
            DamagedTable: nothing is known of all that the table maps.
            ImageFormatError: nothing is known of the rest of this cluster.
        """

    def load(self, sector: int, then: Loaded) -> None:
        """Read the table that maps a sector, in a thread, and call `then`. See `TableMap`."""
        raise AssertionError("run() asked for a table, and there are none")

    def runs(self, sector: int, stop: int) -> Iterator[Run]:
        """The runs of a range, in order; waits for tables that are not in memory.

        Raises:
            ImageFormatError, OSError: as `run`, or as the system says.
        """
        while sector < stop:
            run = self.run(sector, stop)
            assert run is not None
            yield run
            sector = run.end

    def missing(self, run: Run) -> bool:
        """Whether a compressed cluster lies past the end of the file."""
        return self.unpacker is not None and self.unpacker.missing(run.where)

    def found_damage(self, reason: str) -> None:  # noqa: B027 -- may be ignored
        """Something cannot be true, which a request has met and which was noted for it."""

    def located(self, reason: str) -> str:
        """What is wrong, with the file's name where a disk has several."""
        return reason


class Place(NamedTuple):
    """Space for clusters.

    Attributes:
        where: host offset, bytes.
        clusters: how many, side by side; at least one.
        blank: it lies behind all that was given out so far, and so reads as zeroes.
    """

    where: int
    clusters: int
    blank: bool = False


@attrs.define
class Picture:
    """What one write-back brings to the disk: all that has changed in memory until now.

    Attributes:
        stages: of writes to `ClusterMap.file`, each safe on disk before the next begins. Content
            that was written is safe with the first; it may be empty, and the only one.
        conclude: called when it is over: with 0, all is on disk; or with the number of the stage
            (from 1) that had begun and failed: those before it are on disk, of this one perhaps
            something. Then all of the picture is to be written again.
        end: the file is made at least so long (bytes) before.
        holes: ranges (offset, length) that are given back to the file system when all is on disk
            and nothing under way uses them.
        free: called after that: what was given up can be given out again.
    """

    stages: list[list[Write]]
    conclude: Callable[[int], None]
    end: int = 0
    holes: list[tuple[int, int]] = attrs.field(factory=list)
    free: Callable[[], None] | None = None


class WritableMap(ClusterMap):
    """A map that is changed. What changes, changes in memory, until `picture` tells it.

    Attributes:
        zeroes_in_place: content may be turned into a hole of its file.
    """

    zeroes_in_place: ClassVar[bool] = True

    def place_to_write(self, sector: int, nb_sectors: int) -> int:
        """As `place`, of a range that may be overwritten there; never NOWHERE."""
        try:
            run = self.run_to_write(sector, sector + nb_sectors)
        except ImageFormatError:
            return ASK
        if run is None or run.kind != DATA or not run.own or run.nb_sectors < nb_sectors:
            return ASK
        return run.where

    def run_to_write(self, sector: int, stop: int) -> Run | None:
        """As `run`, before a change: what must not be written through is an error."""
        return self.run(sector, stop)

    def is_new(self, sector: int, stop: int) -> bool:
        """Whether clusters are holes without a place, which the next write gives them one.

        The short way to new clusters, worth having where they are written often.

        Args:
            sector: first sector of the first one.
            stop: first sector past the last one, perhaps behind the disk's end.

        Returns:
            True where one table, in memory, says so of all; else `run_to_write` is asked.
        """
        return False

    def run_to_clear(self, sector: int, stop: int) -> Run | None:
        """As `run_to_write`, before `clear`; of what that leaves as it is, all at once."""
        return self.run_to_write(sector, stop)

    def begin_writing(self) -> None:
        """Once, before the first change; may wait for the disk.

        Raises:
            TapError: the image must not be written.
            OSError: as the system says.
        """

    def about_to_change(self, sector: int, nb_sectors: int) -> None:
        """Before each change that does not take the short way; raises as `begin_writing`."""

    @abstractmethod
    def allocate(self, sector: int, count: int) -> Place:
        """Space for clusters of the disk that follow each other, or for the first ones of them.

        Args:
            sector: first sector of the first one.
            count: how many are wanted.

        Raises:
            TapError, OSError: there is none.
        """

    def give_back(self, where: int, count: int) -> None:
        """Space that was allocated, and to which nothing was ever linked."""

    @abstractmethod
    def link(self, sector: int, stop: int, where: int) -> None:
        """Content was written, and is to be found from now on; what was there before is given up.

        Args:
            sector: first sector, of a unit.
            stop: first sector past it, of a unit, perhaps behind the disk's end; in one table.
            where: host offset of the first sector, bytes: in place that was allocated, or kept.

        Raises:
            TapError, OSError: nothing was changed.
        """

    def clear(self, run: Run, *, discard: bool, may_unmap: bool) -> int:
        """Let whole units read as zeroes, without writing any.

        Args:
            run: what is there, perhaps of several clusters; in one table.
            discard: content may as well stay; else it must read as zeroes.
            may_unmap: space may be given back.

        Returns:
            0, or -EOPNOTSUPP: this format's tables have no way to say it.

        Raises:
            TapError, OSError: nothing was changed.
        """
        return -errno.EOPNOTSUPP

    def clear_now(self, sector: int, stop: int, discard: bool, may_unmap: bool) -> bool:
        """`clear` by the short way, of whole units that one table in memory maps.

        Worth having in a format whose `clear` need not be told what is there. No cluster is busy.

        Args:
            sector: first sector, of a unit.
            stop: first sector past it, of a unit, or the disk's end.
            discard, may_unmap: as there.

        Returns:
            Whether it is done; where it is not, and where this raises as `clear` does, nothing was
            changed, and what is there is looked at run by run.
        """
        return False

    @property
    def must_write_back(self) -> bool:
        """So much has changed that it should be written back, for memory to stay bounded."""
        return False

    @property
    def full(self) -> bool:
        """So much that nothing more may change before that is done."""
        return False

    @abstractmethod
    def picture(self) -> Picture:
        """All that has changed in memory since the last one was taken."""


class PackingMap(WritableMap):
    """A map that takes compressed clusters."""

    def check_packing(self) -> None:
        """Raise NotSupportedError where this image cannot hold compressed clusters."""

    @abstractmethod
    def pack(self, content: bytes | memoryview) -> bytes:
        """Compress a whole cluster, in a thread; what is no smaller is stored plain."""

    @abstractmethod
    def allocate_packed(self, sector: int, length: int) -> int:
        """Space for a compressed cluster (bytes), of any alignment: its host offset."""

    def give_back_packed(self, where: int, length: int) -> None:
        """The opposite."""

    @abstractmethod
    def link_packed(self, sector: int, where: int, length: int) -> int:
        """As `link`, of one compressed cluster; returns its token."""
