"""Disks that can only be unpacked from front to back: large frames and blocks, gzip.

What is passed over need not be unpacked again: either the state of the decoder is kept now and
then, in memory, or what came out goes into a temporary file without a name.
"""

from __future__ import annotations

import errno
import threading
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from tap_zraw.kept import KeptParts
from tap_zraw.pieces import Pieces
from tapcore import ImageFormatError, NotSupportedError

PART: Final = 1 << 20
"""Bytes of a disk in a part."""

_MOST_STATES: Final = 512
"""That are kept: of gzip 40 KiB each."""
_MOST_CURSORS: Final = 2

MOST_UNTOLD: Final = 256 << 30
"""Bytes that are unpacked to learn how many there are."""


class Forward(Protocol):
    """Unpacks one piece from front to back."""

    def read(self, most: int) -> bytes:
        """The next bytes, at least one; empty at the end.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """

    def copy(self) -> Forward | None:
        """Another one that goes on from here; None where that cannot be had."""


class Closing(Protocol):
    """What has to be closed."""

    def close(self) -> None: ...


Begin: TypeAlias = Callable[[int], Forward]
"""`begin(index)`: at the start of a piece."""


class _Cursor:
    """A decoder, and where on the disk it is."""

    __slots__ = ("at", "decoder", "piece")

    def __init__(self, piece: int, at: int, decoder: Forward) -> None:
        self.piece = piece
        self.at = at
        self.decoder = decoder


class ForwardOnly:
    """A layout in parts of 1 MiB.

    Args:
        pieces: of the disk; a decoder goes on up to the end of one.
        begin: a decoder for each.
        kept: where parts go that were passed over.
    """

    def __init__(self, pieces: Pieces, begin: Begin, kept: KeptParts) -> None:
        self.pieces = pieces
        self.size = pieces.size
        self.largest = min(PART, self.size)
        self._begin = begin
        self._kept = kept
        self._alone = threading.Lock()
        self._cursors: list[_Cursor] = []
        self._states: list[_Cursor] = []  # in the order of the disk
        self._every = PART
        self._checks: array[int] = array("I")
        self._index: Closing | None = None

    def find(self, offset: int) -> int:
        """See `Layout`."""
        return offset // PART

    def bounds(self, index: int) -> tuple[int, int]:
        """See `Layout`."""
        return index * PART, min((index + 1) * PART, self.size)

    def is_zero(self, index: int) -> bool:
        """Of what was passed over."""
        return self._kept.is_zero(index)

    def zeroes_until(self, index: int, end: int) -> int:
        """No more than that."""
        return self._kept.zeroes_until(index, end)

    def unpack(self, index: int) -> bytes:
        """See `Layout`; one thread at a time."""
        start, stop = self.bounds(index)
        with self._alone:
            found = self._kept.get(index, stop - start)
            return self._produce(index, start, stop) if found is None else found

    @classmethod
    def of_one_piece(cls, begin: Begin, length: int, content: int, kept: KeptParts) -> ForwardOnly:
        """Of a piece of so many bytes in the file, and on the disk."""
        return cls(_one_piece(length, content), begin, kept)

    @classmethod
    def measured(
        cls, begin: Begin, file_size: int, kept: KeptParts, checks: array[int] | None = None
    ) -> ForwardOnly:
        """Of one piece that does not say how large it is: all of it is unpacked once.

        Args:
            begin: a decoder for it.
            file_size: bytes.
            kept: as of the class.
            checks: gets a checksum of each part.

        Raises:
            NotSupportedError: that would take too long.
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        made = cls(_one_piece(file_size, MOST_UNTOLD), begin, kept)
        cursor = made._cursor(0, 0)
        while content := made._up_to(cursor, PART):
            kept.put((cursor.at - 1) // PART, content)
            if checks is not None:
                checks.append(zlib.crc32(content))
            if cursor.at >= MOST_UNTOLD:
                raise NotSupportedError(
                    f"does not say how large its disk is, and that is more than "
                    f"{MOST_UNTOLD >> 30} GiB: unpack it into a file first"
                )
        made.pieces = _one_piece(file_size, cursor.at)
        made.size = cursor.at
        made.largest = min(PART, made.size)
        return made

    def go_by(
        self, states: list[tuple[int, Forward]], checks: array[int], index: Closing | None
    ) -> None:
        """Take over what an index says, which is not believed beyond its checksums.

        Args:
            states: where a decoder can begin on the disk (bytes), and one, to be copied.
            checks: a checksum (CRC-32) of each part.
            index: to be closed with the layout.

        Raises:
            ImageFormatError: it is of another disk.
        """
        if len(checks) != -(-self.size // PART):
            raise ImageFormatError("has an index of another disk beside it")
        self._states = [_Cursor(0, at, decoder) for at, decoder in states]
        self._checks, self._index = checks, index

    def begin_with(self, begin: Begin) -> None:
        """Take other decoders from now on."""
        self._begin = begin
        self._cursors.clear()

    def close(self) -> None:
        """The temporary file, and the index."""
        self._kept.close()
        if self._index is not None:
            self._index.close()

    # ---- cursors ----------------------------------------------------------------------------

    def _produce(self, index: int, start: int, stop: int) -> bytes:
        """What lies in a part; of what lies before it whole parts are kept."""
        parts = []
        at = start
        while at < stop:
            piece = self.pieces.find(at)
            cursor = self._cursor(piece, at)
            until = self.pieces.bounds(piece)[1]
            while cursor.at < at:
                self._step(cursor, until)
            parts.append(self._take(cursor, min(stop, until) - at))
            at = cursor.at
        content = b"".join(parts)
        if self._checks and self._checks[index] != zlib.crc32(content):
            self._cursors.clear()
            raise ImageFormatError("is not what the index beside it was made for", errno=errno.EIO)
        self._kept.put(index, content)
        return self._kept.zeroes_of(index, stop - start) or content

    def _step(self, cursor: _Cursor, until: int) -> None:
        """To the next part, or to the end of the piece."""
        first = cursor.at
        stop = min((first // PART + 1) * PART, until)
        content = self._take(cursor, stop - first)
        if not first % PART and (not stop % PART or stop == self.size):
            self._kept.put(first // PART, content)

    def _take(self, cursor: _Cursor, length: int) -> bytes:
        content = self._up_to(cursor, length)
        if len(content) < length:
            self._cursors.remove(cursor)
            raise ImageFormatError("has less content than it says", errno=errno.EIO)
        return content

    def _up_to(self, cursor: _Cursor, length: int) -> bytes:
        """So many bytes, or those up to the end."""
        parts = []
        try:
            while length and (part := cursor.decoder.read(length)):
                parts.append(part)
                length -= len(part)
                cursor.at += len(part)
        except BaseException:  # it cannot go on
            self._cursors.remove(cursor)
            raise
        self._keep_state(cursor)
        return b"".join(parts)

    def _cursor(self, piece: int, at: int) -> _Cursor:
        """The one that has the least to pass over; it becomes the first."""
        cursors = self._cursors
        near = [each for each in cursors if each.piece == piece and each.at <= at]
        best = max(near, key=lambda each: each.at, default=None)
        state = self._state(piece, at)
        if state is not None and (best is None or best.at + PART < state.at):
            decoder = state.decoder.copy()
            assert decoder is not None
            best = _Cursor(piece, state.at, decoder)
        elif best is None:
            best = _Cursor(piece, self.pieces.starts[piece], self._begin(piece))
        if best in cursors:
            cursors.remove(best)
        cursors.insert(0, best)
        del cursors[_MOST_CURSORS:]
        return best

    def _state(self, piece: int, at: int) -> _Cursor | None:
        found = bisect_right(self._states, at, key=lambda each: each.at)
        state = self._states[found - 1] if found else None
        return state if state is not None and state.piece == piece else None

    def _keep_state(self, cursor: _Cursor) -> None:
        """If it is far enough from the last one; of too many every second is dropped."""
        states = self._states
        if cursor.at - (states[-1].at if states else 0) < self._every:
            return
        decoder = cursor.decoder.copy()
        if decoder is None:
            return
        states.append(_Cursor(cursor.piece, cursor.at, decoder))
        if len(states) > _MOST_STATES:
            del states[::2]
            self._every *= 2


def _one_piece(length: int, content: int) -> Pieces:
    pieces = Pieces()
    pieces.add(0, length, content)
    return pieces
