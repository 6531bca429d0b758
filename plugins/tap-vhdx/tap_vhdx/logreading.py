"""Finding out which entries of a log have to be replayed, and replaying them.

The entries follow each other in a ring; those of one sequence have numbers that follow each other.
The last one of a sequence says where the first one is that is not safely in its place. The sequence
with the largest number counts (the active one).

Source: MS-VHDX 2.3.3 (Log Sequence), 2.3.4 (Log Replay).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from tap_vhdx.headers import MIB, Header, ReadAt
from tap_vhdx.logentries import SECTOR, Change, Entry, read_entry, read_head
from tap_vhdx.overlay import Overlay
from tap_vhdx.regions import TABLES_AT
from tapcore import ImageFile, ImageFormatError, NotSupportedError

LARGEST: Final = 64 * MIB
"""Bytes of a log that is looked at; Hyper-V and QEMU make logs of 1 MiB."""
_MOST_LOOKED_AT: Final = 3
"""How many times the log's length of entries is looked at: a sound one's do not overlap."""
_LARGEST_FILE: Final = 1 << 47
"""Bytes: of more than a disk of 64 TiB takes."""


@attrs.frozen
class Replay:
    """What a log has to say.

    Attributes:
        entries: to be replayed, in this order.
    """

    entries: tuple[Entry, ...]

    @property
    def changes(self) -> Iterator[Change]:
        """All of them, in their order."""
        for entry in self.entries:
            yield from entry.changes

    @property
    def end(self) -> int:
        """How long the file must be at least, bytes."""
        return max(entry.last for entry in self.entries)

    def overlay(self) -> Overlay:
        """The same for whoever only reads."""
        overlay = Overlay()
        for offset, length, content in self.changes:
            if length:
                overlay.put(offset, offset + length, content)
        return overlay

    def write(self, file: ImageFile) -> None:
        """Bring it to its places, on disk when this returns; the log may be forgotten then.

        Raises:
            OSError: as the system says; it can be done again.
        """
        file.truncate_up(self.end)
        for offset, length, content in self.changes:
            if content is not None:
                file.write_metadata(offset, content)
            elif length and (res := file.zero_blocking(offset, length, True)):
                raise OSError(-res, "the log cannot be replayed")
        file.make_safe()


def find_replay(read: ReadAt, size: int, header: Header) -> Replay | None:
    """What a file's log has to say; None: nothing.

    Args:
        read: reads the file.
        size: of the file, bytes.
        header: of it, which says that there is a log.

    Raises:
        ImageFormatError: it says what cannot be.
        NotSupportedError: it is too large.
    """
    if header.log_length > LARGEST:
        raise NotSupportedError(
            f"has a log of {header.log_length >> 20} MiB to be replayed, more than "
            f"{LARGEST >> 20} MiB"
        )
    entries = _active(_valid_entries(read, header), header.log_length)
    if not entries:
        return None
    for entry in entries:
        _check(entry, size, header)
    return Replay(tuple(entries))


def _valid_entries(read: ReadAt, header: Header) -> dict[int, Entry]:
    """All entries that are whole, by where they begin in the log."""
    start, length = header.log_offset, header.log_length
    left = _MOST_LOOKED_AT * length
    found = {}
    for at in range(0, length, SECTOR):
        head = read_head(read(start + at, SECTOR), at, header.log, length)
        if head is None:
            continue
        left -= head.length
        if left < 0:
            raise ImageFormatError("has a damaged log: its entries overlap")
        content = read(start + at, min(head.length, length - at))
        if len(content) < head.length:
            content += read(start, head.length - len(content))
        entry = read_entry(head, content)
        if entry is not None:
            found[at] = entry
    return found


def _active(found: dict[int, Entry], length: int) -> list[Entry]:
    """The entries of the active sequence that have to be replayed.

    Args:
        found: all entries, by where they begin in the log.
        length: of the log, bytes.
    """
    following = dict[int, Entry]()
    last = dict[int, int]()  # of the sequence that begins with an entry, where its last one is
    for entry in sorted(found.values(), key=lambda each: -each.sequence):
        after = found.get((entry.at + entry.length) % length)
        if after is not None and after.sequence == entry.sequence + 1:
            following[entry.at], last[entry.at] = after, last[after.at]
        else:
            last[entry.at] = entry.at
    for entry in sorted(found.values(), key=lambda each: -each.sequence):
        if last[entry.at] == entry.at and last.get(entry.tail) == entry.at:
            sequence = [found[entry.tail]]
            while sequence[-1] is not entry:
                sequence.append(following[sequence[-1].at])
            return sequence
    return []


def _check(entry: Entry, size: int, header: Header) -> None:
    """Whether what an entry says can be.

    Raises:
        ImageFormatError: it cannot.
    """
    if entry.flushed > size:
        raise ImageFormatError(
            f"was cut: its log knows a file of {entry.flushed} bytes, and it has {size}"
        )
    if entry.last > _LARGEST_FILE:
        raise ImageFormatError(f"has a log for a file of {entry.last} bytes, which cannot be")
    log_end = header.log_offset + header.log_length
    for offset, length, _ in entry.changes:
        inside = TABLES_AT[0] <= offset and offset + length <= max(entry.last, size)
        if not inside or (offset < log_end and offset + length > header.log_offset):
            raise ImageFormatError(f"has a log that changes what it must not ({offset:#x})")
