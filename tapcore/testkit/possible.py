"""What a disk may hold of which some writes have failed: sector by sector."""

from __future__ import annotations

from collections.abc import Sequence

from tapcore.testkit.asked import Asked
from tapcore.testkit.failing import broken

SECTOR = 512


class Possible:
    """What may be read from each sector.

    A write that failed may be there or not, of each of its sectors; so may, after closing, what was
    not flushed.

    Args:
        content: of the whole disk.
        below: what shows through a sector that is given up: a parent's content.
    """

    def __init__(self, content: bytes, below: bytes = b"") -> None:
        self.below = below.ljust(len(content), b"\0")
        self._now = [{content[at : at + SECTOR]} for at in range(0, len(content), SECTOR)]
        self._flushed: dict[int, set[bytes]] = {}

    def learn(self, answered: Sequence[Asked]) -> None:
        """Some requests were answered, one way or the other."""
        for asked in answered:
            if asked.op in ("write", "zero", "discard"):
                self._changed(asked)
        for asked in answered:
            if asked.op == "flush" and not asked.error and len(answered) == 1:
                self._flushed.clear()

    def _changed(self, asked: Asked) -> None:
        failed = {n for first, count in asked.failed for n in range(first, first + count)}
        for sector in range(asked.sector, asked.sector + asked.nb_sectors):
            self._flushed.setdefault(sector, self._now[sector])
            self._flushed[sector] = self._flushed[sector] | self._now[sector]
            at = (sector - asked.sector) * SECTOR
            after = {asked.content[at : at + SECTOR] if asked.op == "write" else bytes(SECTOR)}
            if sector in failed or asked.op == "discard":
                after |= self._now[sector]
            if asked.op == "discard":
                after.add(self.below[sector * SECTOR : (sector + 1) * SECTOR])
            self._now[sector] = after

    def check(self, content: bytes, what: str, *, reopened: bool = False) -> None:
        """Fail where something else was read.

        Args:
            content: of the whole disk, as read.
            what: begins the message.
            reopened: what was not flushed may be lost.
        """
        for sector, allowed in enumerate(self._now):
            got = content[sector * SECTOR : (sector + 1) * SECTOR]
            if got in allowed or (reopened and got in self._flushed.get(sector, ())):
                continue
            wanted = " or ".join(sorted(each[:8].hex() for each in allowed))
            broken(f"{what}: sector {sector} reads {got[:8].hex()} where {wanted} was expected")
