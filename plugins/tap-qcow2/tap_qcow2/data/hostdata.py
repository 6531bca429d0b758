"""Content on its way to the host file and back: plain, or by way of the image's cipher.

A request whose content the page cache holds is answered at once, any other by the file. Where a
read ends past the end of the file, what is missing there is noted, or reads as zeroes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tap_qcow2.tables.inflight import InFlight
from tapcore import SECTOR_SHIFT, DiskDriver, ImageFile, ImageOpenError, Then, content_missing

if TYPE_CHECKING:
    from tapcore.sectorcipher import SectorCipher

Reply: TypeAlias = Callable[[int, int, int], int]
"""The answer of a request, or of a part of one: called with 0 or -errno, the first sector, and how
many; returns how many requests that completed."""


class HostData:
    """The file that holds plain clusters: the image file, or an external data file.

    Args:
        dd: the image in its chain.
        image_file: the image file.
        cluster_bits: log2 of the cluster size.
        encrypted: content is, whether the key is known or not.
        in_flight: counts the I/O that waits for the disk.

    Attributes:
        file: of the clusters; None where that was not opened, because only metadata is wanted.
        cipher: of an encrypted image, once its key is known.
        read: reads at a host offset (bytes) into a buffer, now or later, what lies at a sector of
            the disk; returns what the answer returned.
        write: the same for writing.
    """

    def __init__(
        self,
        dd: DiskDriver,
        image_file: ImageFile,
        cluster_bits: int,
        encrypted: bool,
        in_flight: InFlight,
    ) -> None:
        self._dd = dd
        self._image_file = image_file
        self._bits = cluster_bits
        self._encrypted = encrypted
        self._in_flight = in_flight
        self.file: ImageFile | None = image_file
        self.cipher: SectorCipher | None = None
        self._by_host = True
        self.read: Callable[[int, memoryview, int, Reply], int] = self._read
        self.write: Callable[[int, memoryview, int, Reply], int] = self._write

    def use_cipher(self, cipher: SectorCipher, *, by_host: bool) -> None:
        """From now on data is decrypted and encrypted on its way.

        Args:
            cipher: with the image's key.
            by_host: sector numbers are those of the host file, as in LUKS, not of the disk.
        """
        self.cipher = cipher
        self._by_host = by_host
        self.read, self.write = self._read_encrypted, self._write_encrypted

    @property
    def elsewhere(self) -> bool:
        """It is not the image file."""
        return self.file is not self._image_file

    @property
    def name(self) -> str:
        """What to call the file in a message."""
        return f"data file {self.opened().path}" if self.elsewhere else "file"

    def opened(self) -> ImageFile:
        """The file.

        Raises:
            ImageOpenError: it was not opened.
        """
        if self.file is None:
            raise ImageOpenError("its data file was not opened", errno=errno.EBADF)
        return self.file

    def flush_blocking(self) -> int:
        """Make what was written to a file of its own safe; 0 or -errno. Any thread may."""
        if self.file is None or not self.elsewhere:
            return 0
        return self.file.flush_blocking()

    def submit(self) -> None:
        """Hand queued direct I/O to the kernel."""
        self._image_file.submit()
        if self.file is not None and self.elsewhere:
            self.file.submit()

    # ---- plain ------------------------------------------------------------------------------

    def _read(self, host: int, buf: memoryview, sector: int, answer: Reply) -> int:
        data, nb_sectors = self.opened(), len(buf) >> SECTOR_SHIFT
        res = data.read_now(host, buf)
        if res is None and host + len(buf) > data.size:
            res, buf = self._what_is_there(host, buf, sector)
        if res is not None:
            return answer(res, sector, nb_sectors)
        then = self._in_flight.counted(_over(answer, sector, nb_sectors))
        return data.queue_read(host, buf, then)

    def _write(self, host: int, buf: memoryview, sector: int, answer: Reply) -> int:
        data, nb_sectors = self.opened(), len(buf) >> SECTOR_SHIFT
        res = data.write_now(host, buf)
        if res is not None:
            return answer(res, sector, nb_sectors)
        then = self._in_flight.counted(_over(answer, sector, nb_sectors))
        return data.queue_write(host, buf, then)

    # ---- encrypted --------------------------------------------------------------------------

    def _read_encrypted(self, host: int, buf: memoryview, sector: int, answer: Reply) -> int:
        cipher, nb_sectors = self.cipher, len(buf) >> SECTOR_SHIFT
        assert cipher is not None
        first = host >> SECTOR_SHIFT if self._by_host else sector
        res, there = None, buf
        if host + len(buf) > self.opened().size:
            res, there = self._what_is_there(host, buf, sector)
        if res is not None:
            return answer(res, sector, nb_sectors)

        def decrypt(res: int, *_: int) -> int:
            if res == 0:
                there[:] = cipher.decrypt(first, there)
            return answer(res, sector, nb_sectors)

        return self._read(host, there, sector, decrypt)

    def _write_encrypted(self, host: int, buf: memoryview, sector: int, answer: Reply) -> int:
        assert self.cipher is not None
        first = host >> SECTOR_SHIFT if self._by_host else sector
        # a copy: the client's buffer must stay as it is
        return self._write(host, memoryview(self.cipher.encrypt(first, buf)), sector, answer)

    # ---- past the end of the file -----------------------------------------------------------

    def bytes_inside(self, host: int, length: int) -> int:
        """How much of a run of plain clusters is there: in clusters that begin inside the file.

        What such a cluster lacks was never written, and reads as zeroes.

        Args:
            host: offset of the run, bytes.
            length: bytes.
        """
        file = self.opened()
        end = self.end_of_content(file.size)
        if host + length > end:  # or did somebody else, who may, make it longer since?
            end = self.end_of_content(file.look_again())
        return min(max(end - host, 0), length)

    def end_of_content(self, file_size: int) -> int:
        """Of the last cluster of a file, with what it lacks, bytes.

        Of an encrypted one, which was written whole, of the last sector: what it lacks would be
        decrypted to noise.
        """
        if self._encrypted:
            return file_size >> SECTOR_SHIFT << SECTOR_SHIFT
        return -(-file_size >> self._bits) << self._bits

    def _what_is_there(
        self, host: int, buf: memoryview, sector: int
    ) -> tuple[int | None, memoryview]:
        """Of a read that ends past the end of the file: an answer, or what is to be read.

        What is to be zeroes is filled, and what is missing noted for its sectors of the disk.
        """
        inside = self.bytes_inside(host, len(buf))
        if inside == len(buf):
            return None, buf
        missing = buf[inside:]
        first, nb_sectors = sector + (inside >> SECTOR_SHIFT), len(missing) >> SECTOR_SHIFT
        reason = f"its cluster, at offset {host + inside:#x}, lies past the end of the {self.name}"
        res = content_missing(self._dd, first, nb_sectors, missing, reason)
        return (None, buf[:inside]) if inside and not res else (res, buf[:0])


def _over(answer: Reply, sector: int, nb_sectors: int) -> Then:
    """An answer for some sectors, as it is given later.

    Not a function inside of those that need it, which would cost them something at each call.
    """
    return lambda res: answer(res, sector, nb_sectors)
