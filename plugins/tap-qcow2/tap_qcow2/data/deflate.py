"""Writing compressed clusters: compressed in threads, packed one behind the other."""

from __future__ import annotations

from typing import Any

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.data.codecs import codec
from tap_qcow2.data.write import Writer
from tap_qcow2.tables.links import own_table, release
from tapcore import SECTOR_SHIFT, Answer, NotSupportedError, TapError


def write_compressed(
    clusters: Clusters, answer: Answer, sector: int, nb_sectors: int, buf: memoryview
) -> int:
    """Take a write of whole clusters (the disk's last one may be cut), to be stored compressed.

    Args:
        clusters: of a disk that is prepared for writing.
        answer: of the request.
        sector: first sector, of a cluster.
        nb_sectors: how many.
        buf: their content.

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
        finished += _Cluster(clusters, answer).start(at, part)
    return finished


class _Cluster:
    """One cluster on its way."""

    __slots__ = ("_answer", "_buf", "_cluster", "_clusters", "_file", "_sector", "_stream")

    def __init__(self, clusters: Clusters, answer: Answer) -> None:
        self._clusters = clusters
        self._file = clusters.metadata.file
        self._answer = answer
        self._stream = b""

    def start(self, sector: int, buf: memoryview) -> int:
        busy = self._clusters.busy
        self._sector, self._buf = sector, buf
        self._cluster = cluster = sector >> self._clusters.geometry.cluster_shift
        if cluster in busy:
            busy.wait(cluster, lambda: self.start(sector, buf))
            return 0
        busy.begin(cluster)
        self._file.queue_work(self._compress, self._compressed)
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

    def _compressed(self, res: int) -> int:
        clusters = self._clusters
        if res:
            return self._finish(res)
        if len(self._stream) >= clusters.geometry.cluster_size:
            return self._store_plain()
        try:
            offset = clusters.metadata.allocator.allocate_bytes(len(self._stream))
        except (TapError, OSError) as exc:
            return self._finish(clusters.failure(exc))

        def written(res: int) -> int:
            return self._finish(res or self._link(offset), offset)

        res_now = self._file.write_now(offset, memoryview(self._stream))
        if res_now is not None:
            return written(res_now)
        # neighbours share pages, so under O_DIRECT, too, it goes through the page cache
        self._file.queue_work(lambda: self._write(offset), written)
        return 0

    def _write(self, offset: int) -> int:
        """In a thread."""
        self._file.write_metadata(offset, self._stream)
        return 0

    def _store_plain(self) -> int:
        """It does not become smaller."""
        clusters = self._clusters
        waiting = clusters.busy.pop(self._cluster)
        finished = Writer(clusters).write(self._answer, self._sector, self._buf)
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
        finished = self._answer(res, self._sector, len(self._buf) >> SECTOR_SHIFT)
        return finished + clusters.busy.end(self._cluster)
