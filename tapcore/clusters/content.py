"""Content on its way between buffers and the file: plain, or by way of the map's cipher."""

from __future__ import annotations

from collections.abc import Callable

from tapcore.clusters.map import ClusterMap
from tapcore.clusters.runs import Run
from tapcore.constants import SECTOR_SHIFT
from tapcore.interface.answer import Then


class InFlight:
    """Content in flight: so that no place is given out again while something old uses it.

    A read or write that waits for the disk may outlive the cluster that it is about: discarded,
    given up, given out anew. What must wait for that gets behind a barrier, which opens when all
    that had begun before it has finished.
    """

    __slots__ = ("_barriers", "_counts", "_epoch")

    def __init__(self) -> None:
        self._epoch = 0
        self._counts: dict[int, int] = {}
        self._barriers: list[tuple[int, Callable[[], object]]] = []

    def counted(self, then: Then) -> Then:
        """For an operation that begins now; what this returns must be called once."""
        epoch = self.begin()

        def finished(res: int) -> int:
            self.end(epoch)
            return then(res)

        return finished

    def begin(self) -> int:
        """An operation begins now; `end` must be told once what this returns."""
        epoch, counts = self._epoch, self._counts
        counts[epoch] = counts.get(epoch, 0) + 1
        return epoch

    def end(self, begun: int) -> None:
        """It is over."""
        counts = self._counts
        counts[begun] -= 1
        if not counts[begun]:
            del counts[begun]
            if self._barriers:
                self._open()

    def barrier(self, then: Callable[[], object]) -> None:
        """Call `then` when all that is in flight now has finished; at once if nothing is."""
        if not self._counts:
            then()
            return
        self._barriers.append((self._epoch, then))
        self._epoch += 1

    def _open(self) -> None:
        oldest = min(self._counts, default=self._epoch)
        while self._barriers and self._barriers[0][0] < oldest:
            _, then = self._barriers.pop(0)
            then()


class Content:
    """The content of an image.

    Args:
        map: of the image.

    Attributes:
        in_flight: what waits for the disk.
        counted: counts it there, where that matters for the map.
    """

    __slots__ = ("_map", "counted", "in_flight")

    def __init__(self, map: ClusterMap) -> None:
        self._map = map
        self.in_flight = InFlight()
        self.counted = self.in_flight.counted if map.reuses_space else _itself

    def read(self, where: int, sector: int, buf: memoryview, then: Then) -> int:
        """Read at a host offset (bytes), now or later.

        Args:
            where: host offset.
            sector: of the disk.
            buf: all of it is filled.
            then: called when that is done.

        Returns:
            What `then` returned, if it was called already.
        """
        data, cipher = self._map.data, self._map.cipher
        if cipher is not None:
            first = where >> SECTOR_SHIFT if self._map.cipher_by_place else sector
            then = _decrypting(cipher.decrypt, first, buf, then)
        res = data.read_now(where, buf)
        if res is not None:
            return then(res)
        data.queue_read(where, buf, self.counted(then))
        return 0

    def write(self, where: int, sector: int, buf: memoryview, then: Then) -> int:
        """The same for writing."""
        data, cipher = self._map.data, self._map.cipher
        if cipher is not None:  # a copy: the client's buffer must stay as it is
            first = where >> SECTOR_SHIFT if self._map.cipher_by_place else sector
            buf = memoryview(cipher.encrypt(first, buf))
        res = data.write_now(where, buf)
        return self.queue_write(where, buf, then) if res is None else then(res)

    def queue_write(self, where: int, buf: memoryview, then: Then) -> int:
        """Write what is plain, or encrypted already, later; returns 0."""
        self._map.data.queue_write(where, buf, self.counted(then))
        return 0

    def bytes_there(self, run: Run) -> int:
        """How much of a run of DATA is there: in clusters that begin inside their file.

        What the last of these lacks was never written, and reads as zeroes. Not where the format's
        clusters are written whole, and of encrypted content, where that would be noise: there only
        what is there is.
        """
        map, length = self._map, run.nb_sectors << SECTOR_SHIFT
        if run.where + length <= map.data.size:
            return length
        size = map.data.look_again()
        if map.encrypted or map.whole_clusters:
            end = size >> SECTOR_SHIFT << SECTOR_SHIFT
        else:
            start = run.where - ((run.sector & ((1 << map.cluster_shift) - 1)) << SECTOR_SHIFT)
            cluster = map.cluster_shift + SECTOR_SHIFT
            end = start + (-((start - size) >> cluster) << cluster)
        return min(max(end - run.where, 0), length)


def _itself(then: Then) -> Then:
    return then


def _decrypting(
    decrypt: Callable[[int, memoryview], bytes], first: int, buf: memoryview, then: Then
) -> Then:
    def decrypted(res: int) -> int:
        if not res:
            buf[:] = decrypt(first, buf)
        return then(res)

    return decrypted
