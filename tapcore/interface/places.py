"""Where the content of an open image lies plain: for whoever moves bytes without asking its driver.

Who sends a file's pages from its page cache, or receives into them, has no use for a driver's copy
of the bytes: it wants to know where they are. A driver that can say it at once does so by
`td_places`; one that cannot, or must see each request, has no such hook.
"""

from __future__ import annotations

from typing import Final, Protocol

NOWHERE: Final = -1
"""Of a place: the image holds nothing there, a hole: the parent has it, or it is zeroes."""

ASK: Final = -2
"""Of a place: only the driver can say it, or do it."""


class PlacedWindows(Protocol):
    """Parts of a file in memory; see `tapcore.files.windows`."""

    def to_read(self, offset: int, length: int, now: float) -> memoryview | None: ...

    def data_to_read(self, offset: int, length: int, now: float) -> memoryview | None: ...

    def to_write(self, offset: int, length: int, now: float) -> memoryview | None: ...

    def shrunk(self) -> bool: ...

    def distrust(self) -> None: ...


class PlacedFile(Protocol):
    """The file that a place lies in: an `ImageFile`."""

    @property
    def size(self) -> int: ...

    @property
    def windows(self) -> PlacedWindows | None: ...

    def read_now(self, offset: int, buf: memoryview, /) -> int | None: ...

    def write_now(self, offset: int, buf: memoryview, /) -> int | None: ...

    def write_mapped(self, offset: int, content: memoryview, now: float, /) -> bool: ...

    def fill(
        self, carrier: int, places: list[memoryview], start: int, length: int, /, *, end: int
    ) -> bool: ...


class UsesOfPlaces(Protocol):
    """Counts who uses places: see `Places`."""

    def begin(self) -> int:
        """Somebody reads or writes at a place from now on."""

    def end(self, begun: int, /) -> None:
        """He is done; `begun` is what `begin` said."""


class Places(Protocol):
    """What `td_places` returns. It is asked for each request, so nothing in it may take long.

    One whose disk is a file byte for byte, always the same, may say so by an attribute `whole` that
    is true: then it is not asked for places.

    With O_DIRECT whoever uses a place has to wait for the disk, while the driver goes on. So places
    are used then only where an attribute `uses` is there: a `UsesOfPlaces`, without whose last
    `end` no place is given to other content that was given up meanwhile; or None, where no place
    ever is.

    Attributes:
        busy: anything that is true while nothing may be written past the driver.
        data: the file that the last place lies in that one of the methods said.
    """

    @property
    def busy(self) -> object: ...

    @property
    def data(self) -> PlacedFile: ...

    def place(self, sector: int, nb_sectors: int, /) -> int:
        """Where a range can be read.

        Args:
            sector: first sector, of the disk.
            nb_sectors: how many, at least one; inside the image.

        Returns:
            The offset (bytes) in `data` at which all of it lies in one piece, plain; NOWHERE (-1)
            where the image holds none of it; ASK (-2). It need not lie inside the file.
        """

    def place_to_write(self, sector: int, nb_sectors: int, /) -> int:
        """Where a range can be overwritten: nobody else refers to it, nobody has to be told.

        Returns:
            As `place`, but never NOWHERE; ASK also where something has to be done before.
        """
