"""Reading compressed clusters: inflated at once or in a thread, the last ones kept."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from tap_qcow.layout import Geometry
from tapcore import ImageFile, ImageFormatError
from tapcore.deflate import inflate

KEPT_BYTES: Final = 1 << 20
"""Inflated clusters to keep: a client that reads on in small steps inflates each only once."""

AT_ONCE_BYTES: Final = 8 << 10
"""Clusters up to this size are inflated at once if the page cache holds them: that takes less time
than to hand them to a thread."""

Taker = Callable[[int, bytes], int]
"""`take(res, content)`: 0 and a cluster, or -errno and nothing; returns requests finished."""


class Inflater:
    """The compressed clusters of one image, each told by its L2 entry.

    What an entry says never changes: space in the file is not used twice while an image is open,
    but for `forget`.

    Args:
        file: the image file.
        geometry: of the image.
    """

    def __init__(self, file: ImageFile, geometry: Geometry) -> None:
        self._file = file
        self._geometry = geometry
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._most = max(KEPT_BYTES >> geometry.cluster_bits, 2)
        self._wanted: dict[int, list[Taker]] = {}
        self._reasons: dict[int, str] = {}  # of what was found damaged, the last ones

    def fetch(self, entry: int, take: Taker) -> int:
        """Call `take` with the content of a cluster, now or later.

        Args:
            entry: the cluster's L2 entry.
            take: gets the whole cluster.

        Returns:
            What `take` returned, if it was called already.
        """
        content = self._kept.get(entry)
        if content is None:
            content = self._at_once(entry)
        if content is not None:
            self._keep(entry, content)
            return take(0, content)
        wanted = self._wanted.setdefault(entry, [])
        wanted.append(take)
        if len(wanted) == 1:
            self._start(entry)
        return 0

    def reason(self, entry: int) -> str:
        """Why a cluster that was asked for is damaged; empty where that is not known."""
        return self._reasons.get(entry, "")

    def _at_once(self, entry: int) -> bytes | None:
        geometry, file = self._geometry, self._file
        if geometry.cluster_size > AT_ONCE_BYTES:
            return None
        offset, length = geometry.compressed(entry)
        there = min(length, file.size - offset)  # zeroes behind it could pass for a stream
        stream = file.metadata_now(offset, there) if there > 0 else None
        if stream is None:
            return None
        try:
            return self._inflate(stream)
        except ImageFormatError:
            return None  # the thread comes to the same result, and reports it

    def _start(self, entry: int) -> None:
        found: list[bytes] = []

        def work() -> int:
            try:
                found.append(self.content(entry))
            except ImageFormatError as exc:
                self._reasons[entry] = exc.message
                raise
            return 0

        def inflated(res: int) -> int:
            content = b"" if res else found[0]
            if not res:
                self._keep(entry, content)
            finished = sum(take(res, content) for take in self._wanted.pop(entry))
            self._reasons.pop(entry, None)
            return finished

        self._file.queue_work(work, inflated)

    def _keep(self, entry: int, content: bytes) -> None:
        self._kept[entry] = content
        self._kept.move_to_end(entry)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def content(self, entry: int) -> bytes:
        """Read and inflate one cluster, waiting for the disk; any thread may.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        offset, length = self._geometry.compressed(entry)
        there = min(length, self._file.size - offset)
        if there <= 0:
            text = f"its compressed cluster, at offset {offset:#x}, lies past the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)
        try:
            return self._inflate(self._file.read_metadata(offset, there))
        except ImageFormatError as exc:
            exc.message = f"{exc.message}, at offset {offset:#x} of the file"
            raise

    def _inflate(self, stream: bytes) -> bytes:
        size = self._geometry.cluster_size
        try:
            content = inflate(stream, size)
        except ImageFormatError as exc:
            exc.errno = errno.EIO
            raise
        if len(content) != size:
            raise ImageFormatError("its compressed cluster is too short", errno=errno.EIO)
        return content

    def forget(self) -> None:
        """Space in the file may be used again."""
        self._kept.clear()
