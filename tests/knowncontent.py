"""What a disk holds, as far as one can know who has written all of it.

What was discarded reads as it was, or as zeroes; what it is at the next look it is from then on.
"""

from collections.abc import Iterator

SECTOR = 512


class KnownContent:
    """The content of a disk, or of a part of one.

    Args:
        size: bytes, a multiple of 512; all zeroes.
    """

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self._discarded: dict[int, list[bytearray]] = {}

    def write(self, start: int, content: bytes) -> None:
        """It holds this there now."""
        self.data[start : start + len(content)] = content
        for sector, at, part in _sectors(start, content):
            if len(part) == SECTOR:
                self._discarded.pop(sector, None)
            for each in self._discarded.get(sector, ()):
                each[at : at + len(part)] = part

    def zero(self, start: int, end: int) -> None:
        """It reads as zeroes there now."""
        self.write(start, bytes(end - start))

    def discard(self, start: int, end: int) -> None:
        """Whole sectors of that may read as zeroes now."""
        for sector in range(-(-start // SECTOR), end // SECTOR):
            self._discarded.setdefault(sector, []).append(bytearray(SECTOR))

    def resize(self, size: int) -> None:
        """Cut its end off, or add zeroes."""
        del self.data[size:]
        for sector in [each for each in self._discarded if each >= size // SECTOR]:
            del self._discarded[sector]
        self.data += bytes(size - len(self.data))

    def compare(self, start: int, content: bytes) -> None:
        """What was read there; AssertionError where it cannot be."""
        for sector, at, part in _sectors(start, content):
            first = sector * SECTOR
            now = self.data[first : first + SECTOR]
            may_be = [now, *self._discarded.pop(sector, ())]
            left = [each for each in may_be if each[at : at + len(part)] == part]
            assert left, f"sector {sector} is none of {len(may_be)}"
            self.data[first : first + SECTOR] = left[0]
            if left[1:]:
                self._discarded[sector] = left[1:]


def _sectors(start: int, content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Sector by sector: its number, where in it a part begins, and that."""
    at = 0
    while at < len(content):
        sector, inside = divmod(start + at, SECTOR)
        part = content[at : at + SECTOR - inside]
        yield sector, inside, part
        at += len(part)
