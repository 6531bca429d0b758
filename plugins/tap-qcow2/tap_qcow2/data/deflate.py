"""Writing compressed clusters: compressed in threads, packed one behind the other."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from tap_qcow2.data.codecs import codec
from tap_qcow2.data.write import Write
from tap_qcow2.tables.links import own_table, release_data
from tapcore import SECTOR_SHIFT, ImageFormatError, NotSupportedError, TapError

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tapcore import DiskDriver, TdCallback


def write_compressed(
    image: Image,
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Take a write of whole clusters (the disk's last one may be cut), to be stored compressed.

    Args:
        image: open for writing, prepared for it.
        dd: as the hook's.
        sector: first sector, of a cluster.
        nb_sectors: how many.
        buf: their content.
        cb: as the hook's.
        id: as the hook's.
        prv: as the hook's.

    Returns:
        How many requests were completed.

    Raises:
        NotSupportedError: this image cannot hold compressed clusters.
    """
    if image.data is not image.file:
        raise NotSupportedError("has an external data file, which cannot hold compressed clusters")
    if image.cipher is not None:
        raise NotSupportedError("is encrypted, and cannot hold compressed clusters besides")
    size = image.geometry.cluster_sectors
    finished = 0
    end = sector + nb_sectors
    for at in range(sector, end, size):
        stop = min(at + size, end)
        part = buf[(at - sector) << SECTOR_SHIFT : (stop - sector) << SECTOR_SHIFT]
        finished += _Cluster(image, dd, cb, id, prv).start(at, part)
    return finished


class _Cluster:
    """One cluster on its way."""

    __slots__ = ("_answer", "_buf", "_cluster", "_image", "_sector", "_stream")

    def __init__(self, image: Image, dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> None:
        self._image = image
        self._answer = (cb, dd, id, prv)
        self._stream = b""

    def start(self, sector: int, buf: memoryview) -> int:
        image = self._image
        self._sector, self._buf = sector, buf
        self._cluster = cluster = sector >> image.cluster_shift
        if cluster in image.busy:
            image.busy[cluster].append(lambda: self.start(sector, buf))
            return 0
        image.busy[cluster] = []
        nb_sectors = len(buf) >> SECTOR_SHIFT
        answer = (self._compressed, image.dd, sector, nb_sectors, 0, None)
        image.file.queue_work(self._compress, (), answer)
        return 0

    def _compress(self) -> int:
        """In a thread."""
        _, deflate = codec(self._image.header.compression_type)
        size = self._image.geometry.cluster_size
        content: Any = self._buf
        if len(content) < size:
            content = bytes(content).ljust(size, b"\0")
        self._stream = deflate(content)
        return 0

    def _compressed(self, dd: DiskDriver, res: int, *_: Any) -> int:
        image = self._image
        if res:
            return self._finish(res)
        if len(self._stream) >= image.geometry.cluster_size:
            return self._store_plain()
        try:
            offset = image.refcounts.allocate_bytes(len(self._stream))
        except (TapError, OSError) as exc:
            if isinstance(exc, ImageFormatError):
                image.mark_corrupt(exc.message)
            return self._finish(-(exc.errno or errno.EIO))

        def written(dd: DiskDriver, res: int, *_: Any) -> int:
            return self._finish(res or self._link(offset), offset)

        nb_sectors = len(self._buf) >> SECTOR_SHIFT
        answer = (written, image.dd, self._sector, nb_sectors, 0, None)
        res_now = image.file.write_now(offset, memoryview(self._stream))
        if res_now is not None:
            return written(image.dd, res_now)
        # neighbours share pages, so under O_DIRECT, too, it goes through the page cache
        image.file.queue_work(self._write, (offset,), answer)
        return 0

    def _write(self, offset: int) -> int:
        """In a thread."""
        self._image.file.write_metadata(offset, self._stream)
        return 0

    def _store_plain(self) -> int:
        """It does not become smaller."""
        image = self._image
        cb, dd, id, prv = self._answer
        waiting = image.busy.pop(self._cluster)
        finished = Write(image, dd, cb, id, prv).run(self._sector, self._buf)
        return finished + sum(go_on() for go_on in waiting)

    def _link(self, offset: int) -> int:
        image = self._image
        geometry = image.geometry
        try:
            table = own_table(image, self._cluster >> geometry.l2_bits)
        except (TapError, OSError) as exc:
            if isinstance(exc, ImageFormatError):
                image.mark_corrupt(exc.message)
            return -(exc.errno or errno.EIO)
        at = self._cluster & image.entry_mask
        release_data(image, table.entries[at * geometry.words])
        entry = geometry.compressed_entry(offset, len(self._stream))
        image.inflater.forget(entry)
        if image.extended:
            image.tables.set_extended(table, at, entry, 0)
        else:
            image.tables.set(table, at, entry)
        return 0

    def _finish(self, res: int, offset: int = -1) -> int:
        image = self._image
        if res and offset >= 0:
            bits = image.cluster_bits
            last = (offset + len(self._stream) - 1) >> bits
            image.give_back(offset >> bits, last - (offset >> bits) + 1)
        cb, dd, id, prv = self._answer
        finished = cb(dd, res, self._sector, len(self._buf) >> SECTOR_SHIFT, id, prv)
        return finished + image.wake(self._cluster)
