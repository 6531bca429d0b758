"""Reading compressed clusters: inflated in threads, several at a time, the last ones kept.

To hand work to a thread and to hear of its end costs as much as to inflate a cluster, so those that
are asked for together go together.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

from tap_qcow2.data.hostdata import Reply
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.tables.inflight import InFlight
from tap_qcow2.tables.mapping import Run
from tapcore import (
    SECTOR_SHIFT,
    DiskDriver,
    ImageFile,
    ImageFormatError,
    TapError,
    Then,
    content_damaged,
)

KEPT_BYTES: Final = 4 << 20
"""Inflated clusters to keep: a client that reads on in small steps inflates each only once."""

TOGETHER: Final = 8
"""Clusters that one thread inflates in one go."""

_Wanted: TypeAlias = tuple[memoryview, Run, Reply]
"""Where the content goes, which sectors that are, and the answer for them."""


class Inflater:
    """The compressed clusters of one image.

    Args:
        dd: the image in its chain.
        file: the image file.
        decoder: of its entries.
        compression_type: how clusters are compressed.
        in_flight: counts what waits for a thread.
    """

    def __init__(
        self,
        dd: DiskDriver,
        file: ImageFile,
        decoder: Decoder,
        compression_type: int,
        in_flight: InFlight,
    ) -> None:
        self._dd = dd
        self._file = file
        self._decoder = decoder
        self._in_flight = in_flight
        self._compression_type = compression_type
        self._inflate: Callable[[bytes, int], bytes] | None = None
        self._size = decoder.geometry.cluster_size
        self._sector_mask = decoder.geometry.sector_mask
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._most = max(KEPT_BYTES // self._size, 2)
        self._wanted: dict[int, list[_Wanted]] = {}
        self._collected: list[int] = []
        self._task: tuple[Callable[[], int], Then] | None = None

    def read(self, run: Run, buf: memoryview, answer: Reply) -> int:
        """Read a part of one compressed cluster.

        Args:
            run: of kind COMPRESSED.
            buf: its content's place.
            answer: for its sectors.

        Returns:
            What the answer returned, 0 if it is answered later.

        Raises:
            NotSupportedError: inflating needs a package.
        """
        if self._inflate is None:
            from tap_qcow2.data.codecs import codec

            self._inflate, _ = codec(self._compression_type)
        entry = run.where
        content = self._kept.get(entry)
        if content is not None:
            self._kept.move_to_end(entry)
            return self._give(content, (buf, run, answer))
        wanted = self._wanted.setdefault(entry, [])
        wanted.append((buf, run, answer))
        if len(wanted) == 1:
            if self._task is None:
                self._task = self._begin()
            self._collected.append(entry)
            if len(self._collected) == TOGETHER:
                self.submit()
        return 0

    def submit(self) -> None:
        """Hand what was collected to a thread."""
        if self._task is None:
            return
        (work, then), self._task = self._task, None
        self._file.queue_work(work, then)

    def _begin(self) -> tuple[Callable[[], int], Then]:
        """A task for clusters that are still to be collected, and what follows it.

        It counts as under way from now on: what is collected may be given up before it is read.
        """
        entries: list[int] = []
        self._collected = entries
        found: list[bytes | Exception] = []

        def work() -> int:
            found.extend(map(self._content_or_error, entries))
            return 0

        def inflated(res: int) -> int:
            contents = found if not res else [OSError(-res, "")] * len(entries)
            return sum(map(self._arrived, entries, contents))

        return work, self._in_flight.counted(inflated)

    def _content_or_error(self, entry: int) -> bytes | Exception:
        """In a thread: the content, or why there is none."""
        try:
            return self.content(entry)
        except (TapError, OSError) as exc:
            return exc

    def _arrived(self, entry: int, content: bytes | Exception) -> int:
        wanted = self._wanted.pop(entry)
        if isinstance(content, Exception):
            return sum(self._fail(content, each) for each in wanted)
        if any(len(buf) < len(content) for buf, _, _ in wanted):
            self._keep(entry, content)  # the rest of it may be wanted next
        return sum(self._give(content, each) for each in wanted)

    def _give(self, content: bytes, wanted: _Wanted) -> int:
        buf, run, answer = wanted
        at = (run.sector & self._sector_mask) << SECTOR_SHIFT
        buf[:] = memoryview(content)[at : at + len(buf)]
        return answer(0, run.sector, run.nb_sectors)

    def _fail(self, exc: Exception, wanted: _Wanted) -> int:
        _, run, answer = wanted
        res = -(getattr(exc, "errno", 0) or errno.EIO)
        if isinstance(exc, TapError):
            res = content_damaged(self._dd, run.sector, run.nb_sectors, exc.message)
        return answer(res, run.sector, run.nb_sectors)

    def _keep(self, entry: int, content: bytes) -> None:
        self._kept[entry] = content
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def content(self, entry: int) -> bytes:
        """Read and inflate one cluster, waiting for the disk; any thread may.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        file, size, inflate = self._file, self._size, self._inflate
        assert inflate is not None
        offset, length = self._decoder.compressed_range(entry)
        there = min(length, file.size - offset)  # zeroes behind it could pass for a stream
        if there < length:
            there = min(length, file.look_again() - offset)
        if there <= 0:
            text = f"its compressed cluster, at offset {offset:#x}, lies past the end of the file"
            raise ImageFormatError(text, errno=errno.EIO)
        stream = file.read_metadata(offset, there)
        try:
            content = inflate(stream, size)
        except ImageFormatError as exc:
            text = f"{exc.message}, at offset {offset:#x} of the file"
            raise ImageFormatError(text, errno=errno.EIO) from None
        if len(content) != size:
            text = f"its compressed cluster at offset {offset:#x} of the file is too short"
            raise ImageFormatError(text, errno=errno.EIO)
        return content

    def forget(self, entry: int) -> None:
        """A new cluster has been written where another one was, which had the same entry."""
        self._kept.pop(entry, None)
