"""What moves the disk's content works with: the tables, the files, and what is being changed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from tap_qcow2.data.busy import BusyClusters
from tap_qcow2.data.hostdata import HostData
from tap_qcow2.data.inflate import Inflater
from tap_qcow2.tables.inflight import InFlight
from tap_qcow2.tables.metadata import Metadata
from tap_qcow2.tables.placement import Placement
from tapcore import DiskDriver, ImageFormatError, TapError, content_damaged

log = logging.getLogger(__name__)


class Clusters:
    """The clusters of one disk.

    Args:
        dd: the image in its chain.
        metadata: of it.
        on_damage: called with what is wrong when damage is found, and whether it was noted for the
            requests that it concerns.

    Attributes:
        dd: the image in its chain.
        metadata: its tables.
        geometry: sizes and shifts.
        decoder: of L2 entries.
        placement: says where a write can go.
        host: the file that holds plain clusters.
        inflater: reads compressed clusters.
        busy: clusters that are being allocated, and what waits for each.
        in_flight: data I/O that waits for the disk.
        on_damage: see there.
    """

    def __init__(
        self, dd: DiskDriver, metadata: Metadata, on_damage: Callable[[str, bool], None]
    ) -> None:
        header, geometry, file = metadata.header, metadata.geometry, metadata.file
        self.dd = dd
        self.metadata = metadata
        self.geometry = geometry
        self.decoder = metadata.decoder
        self.placement = Placement(metadata.decoder)
        self.in_flight = InFlight()
        encrypted = bool(header.crypt_method)
        self.host = HostData(dd, file, geometry.cluster_bits, encrypted, self.in_flight)
        self.inflater = Inflater(dd, file, self.decoder, header.compression_type, self.in_flight)
        self.busy = BusyClusters()
        self.on_damage = on_damage

    def submit(self) -> None:
        """Hand queued direct I/O to the kernel, and compressed clusters to a thread."""
        self.inflater.submit()
        self.host.submit()

    def drain(self) -> None:
        """Wait until all I/O has finished; what finishes in one file may begin some in another."""
        files = [self.metadata.file]
        if self.host.elsewhere and self.host.file is not None:
            files.append(self.host.file)
        self.submit()
        while any(file.in_flight for file in files):
            for file in files:
                file.drain()
            self.submit()

    def failure(self, exc: TapError | OSError) -> int:
        """-errno of what went wrong; damage is told."""
        if isinstance(exc, ImageFormatError):
            self.on_damage(exc.message, False)
        return -(exc.errno or errno.EIO)

    def failure_of(self, exc: TapError | OSError, sector: int, nb_sectors: int) -> int:
        """The same of some sectors of the disk, for which damage is noted."""
        if not isinstance(exc, ImageFormatError):
            return -(exc.errno or errno.EIO)
        res = content_damaged(self.dd, sector, nb_sectors, exc.message)
        self.on_damage(exc.message, True)
        return res

    def give_back(self, cluster: int, count: int) -> None:
        """Host clusters that were given out, and that nothing ever pointed to, are free again."""
        try:
            self.metadata.allocator.take_back(cluster, count)
        except ImageFormatError as exc:
            self.on_damage(exc.message, False)
        except OSError as exc:  # a reason to fail was there before
            log.warning("%s: clusters are leaked: %s", self.dd.name, exc.strerror)
