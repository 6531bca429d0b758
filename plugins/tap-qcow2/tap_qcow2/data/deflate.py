"""Writing compressed clusters: compressed in threads, packed one behind the other."""

from __future__ import annotations

from typing import Any

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.data.codecs import codec
from tap_qcow2.data.write import Write
from tap_qcow2.tables.links import own_table, release
from tapcore import SECTOR_SHIFT, DiskDriver, NotSupportedError, TapError, TdCallback


def write_compressed(
    clusters: Clusters,
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
        clusters: of a disk that is prepared for writing.
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
    if clusters.host.elsewhere:
        raise NotSupportedError("has an external data file, which cannot hold compressed clusters")
    if clusters.host.cipher is not None:
        raise NotSupportedError("is encrypted, and cannot hold compressed clusters besides")
    size = clusters.geometry.cluster_sectors
    finished = 0
    end = sector + nb_sectors
    for at in range(sector, end, size):
        stop = min(at + size, end)
        part = buf[(at - sector) << SECTOR_SHIFT : (stop - sector) << SECTOR_SHIFT]
        finished += _Cluster(clusters, dd, cb, id, prv).start(at, part)
    return finished


class _Cluster:
    """One cluster on its way."""

    __slots__ = ("_answer", "_buf", "_cluster", "_clusters", "_file", "_sector", "_stream")

    def __init__(
        self, clusters: Clusters, dd: DiskDriver, cb: TdCallback, id: int, prv: Any
    ) -> None:
        self._clusters = clusters
        self._file = clusters.metadata.file
        self._answer = (cb, dd, id, prv)
        self._stream = b""

    def start(self, sector: int, buf: memoryview) -> int:
        busy, dd = self._clusters.busy, self._clusters.dd
        self._sector, self._buf = sector, buf
        self._cluster = cluster = sector >> self._clusters.geometry.cluster_shift
        if cluster in busy:
            busy.wait(cluster, lambda: self.start(sector, buf))
            return 0
        busy.begin(cluster)
        nb_sectors = len(buf) >> SECTOR_SHIFT
        answer = (self._compressed, dd, sector, nb_sectors, 0, None)
        self._file.queue_work(self._compress, (), answer)
        return 0

    def _compress(self) -> int:
        """In a thread."""
        _, deflate = codec(self._clusters.metadata.header.compression_type)
        size = self._clusters.geometry.cluster_size
        content: Any = self._buf
        if len(content) < size:
            content = bytes(content).ljust(size, b"\0")
        self._stream = deflate(content)
        return 0

    def _compressed(self, dd: DiskDriver, res: int, *_: Any) -> int:
        clusters = self._clusters
        if res:
            return self._finish(res)
        if len(self._stream) >= clusters.geometry.cluster_size:
            return self._store_plain()
        try:
            offset = clusters.metadata.allocator.allocate_bytes(len(self._stream))
        except (TapError, OSError) as exc:
            return self._finish(clusters.failure(exc))

        def written(dd: DiskDriver, res: int, *_: Any) -> int:
            return self._finish(res or self._link(offset), offset)

        nb_sectors = len(self._buf) >> SECTOR_SHIFT
        answer = (written, clusters.dd, self._sector, nb_sectors, 0, None)
        res_now = self._file.write_now(offset, memoryview(self._stream))
        if res_now is not None:
            return written(clusters.dd, res_now)
        # neighbours share pages, so under O_DIRECT, too, it goes through the page cache
        self._file.queue_work(self._write, (offset,), answer)
        return 0

    def _write(self, offset: int) -> int:
        """In a thread."""
        self._file.write_metadata(offset, self._stream)
        return 0

    def _store_plain(self) -> int:
        """It does not become smaller."""
        clusters = self._clusters
        cb, dd, id, prv = self._answer
        waiting = clusters.busy.pop(self._cluster)
        finished = Write(clusters, dd, cb, id, prv).run(self._sector, self._buf)
        return finished + sum(go_on() for go_on in waiting)

    def _link(self, offset: int) -> int:
        metadata, geometry = self._clusters.metadata, self._clusters.geometry
        try:
            table = own_table(metadata, self._cluster >> geometry.l2_bits)
        except (TapError, OSError) as exc:
            return self._clusters.failure(exc)
        at = self._cluster & geometry.entry_mask
        release(metadata, table.entries[at * geometry.words])
        entry = metadata.decoder.compressed_at(offset, len(self._stream))
        self._clusters.inflater.forget(entry)
        metadata.tables.set(table, at, entry)
        return 0

    def _finish(self, res: int, offset: int = -1) -> int:
        clusters = self._clusters
        if res and offset >= 0:
            bits = clusters.geometry.cluster_bits
            last = (offset + len(self._stream) - 1) >> bits
            clusters.give_back(offset >> bits, last - (offset >> bits) + 1)
        cb, dd, id, prv = self._answer
        finished = cb(dd, res, self._sector, len(self._buf) >> SECTOR_SHIFT, id, prv)
        return finished + clusters.busy.end(self._cluster)
