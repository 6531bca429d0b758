"""The log of a file that is written: every change of metadata is safe in it before it is made.

Each entry stands alone, since what it says is in its place, and safe, before the next one is
written. It never lies over the entry before it, which so stays the last one until the new one is
whole: an entry takes a quarter of the log at most, and begins behind the one before it, or at the
start where there is not enough room. An entry that could not be written is written again in its
place.

Source: MS-VHDX 2.3 (Log).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID, uuid4

import attrs

from tap_vhdx.headers import MIB, NOTHING, Headers
from tap_vhdx.logentries import MOST_PAGES, SECTOR, pack_entry
from tapcore import ImageFile, NotSupportedError
from tapcore.clusters import Write

_PARTS: Final = 4
"""Of the log: an entry takes one at most."""


@attrs.define
class Round:
    """Changes that go through the log together.

    Attributes:
        entry: what is written to the log.
        end: where the next entry begins in it, bytes.
        pages: what is written then.
    """

    entry: Write
    end: int
    pages: list[Write]


class Log:
    """The log of one open file.

    Args:
        file: it.
        headers: of it, which say where the log is.

    Attributes:
        id: which entries are valid; `NOTHING`: none has been written.
    """

    def __init__(self, file: ImageFile, headers: Headers) -> None:
        self._file = file
        self._headers = headers
        self._next = 0
        self._sequence = 0
        self._told = False
        self.id: UUID = NOTHING

    @property
    def told(self) -> bool:
        """Whether children know that what the disk holds is not what it was."""
        return self._told

    def begin(self, *, content: bool = True, data_write: UUID | None = None) -> None:
        """Something in the file is about to change.

        Args:
            content: what the disk holds, too; children do not take the file any more then.
            data_write: the id of that change; None: a new one.

        Raises:
            NotSupportedError: there is no log to be used.
            OSError: as the system says.
        """
        current = self._headers.current
        if not current.log_offset or current.log_length < MIB:
            raise NotSupportedError("has no log, and so can only be read")
        changes = dict[str, UUID]()
        if self.id == NOTHING:
            changes |= {"file_write": uuid4(), "log": uuid4()}
        if content and not self._told:
            changes["data_write"] = data_write or uuid4()
        if changes:
            self._headers.change(self._file, **changes)
            self._told = self._told or content
        if self.id == NOTHING:
            self._next, self._sequence, self.id = 0, 0, changes["log"]

    def end(self) -> None:
        """All that is in it is in its place, and safe: it is empty.

        Raises:
            OSError: as the system says.
        """
        if self.id != NOTHING:
            self._headers.change(self._file, log=NOTHING)
            self.id = NOTHING

    # ---- what goes through it ---------------------------------------------------------------

    def rounds(self, writes: Iterable[Write], file_size: int) -> list[Round]:
        """Changes of the file as rounds through the log, each of which has to be safe before it is
        made, and made safely before the next one.

        Args:
            writes: changes; a later one goes over an earlier one.
            file_size: of the file, bytes: nothing that is linked lies behind it.
        """
        pages = sorted(self._pages(writes).items())
        header = self._headers.current
        most = min(header.log_length // SECTOR // _PARTS - 1, MOST_PAGES)
        rounds, begin = [], self._next
        for first in range(0, len(pages), most):
            part = [(offset, bytes(page)) for offset, page in pages[first : first + most]]
            size = SECTOR * (1 + len(part))
            if begin + size > header.log_length:
                begin = 0
            self._sequence += 1
            entry = pack_entry(self.id, begin, self._sequence, file_size, part)
            rounds.append(Round((header.log_offset + begin, entry), begin + size, part))
            begin += size
        return rounds

    def _pages(self, writes: Iterable[Write]) -> dict[int, bytearray]:
        """The pages that change, with what they are to hold."""
        pages: dict[int, bytearray] = {}
        for offset, content in writes:
            at = 0
            while at < len(content):
                place = offset + at
                start = place & -SECTOR
                if start not in pages:
                    pages[start] = bytearray(self._page(start))
                part = content[at : at + SECTOR - (place - start)]
                pages[start][place - start : place - start + len(part)] = part
                at += len(part)
        return pages

    def _page(self, start: int) -> bytes:
        """What a page holds, which was read not long ago."""
        content = self._file.metadata_now(start, SECTOR)
        return self._file.read_metadata(start, SECTOR) if content is None else content

    def wrote(self, rounds: list[Round], whole: int) -> None:
        """Rounds are over.

        Args:
            rounds: the ones.
            whole: of how many the entry is safe; that of the next one may be there in part.
        """
        if whole:
            self._next = rounds[whole - 1].end

    def commit(self, writes: Iterable[Write], *, content: bool = True) -> None:
        """Change the file, through the log, on disk when this returns; nothing is in flight.

        Args:
            writes: changes of metadata; all that they lead to may be written, and not be safe.
            content: as of `begin`.

        Raises:
            OSError, TapError: as the system says, or as `begin`.
        """
        self.begin(content=content)
        self._file.make_safe()
        for each in self.rounds(writes, self._file.size // MIB * MIB):
            self._file.write_metadata(*each.entry)
            self._file.make_safe()
            for page in each.pages:
                self._file.write_metadata(*page)
            self._file.make_safe()
            self.wrote([each], 1)
