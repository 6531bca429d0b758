"""What a log says that is not in its place yet, laid over the file for whoever only reads."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import attrs


@attrs.define
class Overlay:
    """Ranges of a file that read as something else.

    Attributes:
        starts, ends: of the ranges, bytes, in order; none overlaps another.
        contents: of each; None: zeroes.
    """

    starts: list[int] = attrs.field(factory=list)
    ends: list[int] = attrs.field(factory=list)
    contents: list[bytes | None] = attrs.field(factory=list)

    def put(self, start: int, end: int, content: bytes | None) -> None:
        """Let a range, not an empty one, read so from now on; None: as zeroes."""
        first, last = bisect_right(self.ends, start), bisect_left(self.starts, end)
        pieces = [(start, end, content)]
        if first < last:
            before, after = self._cut(first, 0, start), self._cut(last - 1, end, 1 << 64)
            pieces = [*before, *pieces, *after]
        self.starts[first:last] = [each[0] for each in pieces]
        self.ends[first:last] = [each[1] for each in pieces]
        self.contents[first:last] = [each[2] for each in pieces]

    def _cut(self, at: int, start: int, end: int) -> list[tuple[int, int, bytes | None]]:
        """What a range has between two offsets: itself, or nothing."""
        first, content = self.starts[at], self.contents[at]
        start, end = max(start, first), min(end, self.ends[at])
        if start >= end:
            return []
        return [(start, end, None if content is None else content[start - first : end - first])]

    def over(self, start: int, end: int) -> Iterator[tuple[int, int, bytes | None]]:
        """The parts of ranges that lie between two offsets, in order."""
        at = bisect_right(self.ends, start)
        while at < len(self.starts) and self.starts[at] < end:
            yield from self._cut(at, start, end)
            at += 1

    def covers(self, start: int, end: int) -> bool:
        """Whether anything between two offsets reads as something else."""
        return next(self.over(start, end), None) is not None

    def patch(self, offset: int, content: bytes) -> bytes:
        """What was read at an offset of the file, as it is to be."""
        if not self.starts:
            return content
        patched = None
        for start, end, new in self.over(offset, offset + len(content)):
            patched = patched or bytearray(content)
            patched[start - offset : end - offset] = bytes(end - start) if new is None else new
        return content if patched is None else bytes(patched)
