"""Moving the content of plain clusters between buffers and the file, encrypted where that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tapcore import DiskDriver, ImageFile, TdCallback

if TYPE_CHECKING:
    from tapcore.sectorcipher import SectorCipher

Answer = tuple[TdCallback, DiskDriver, int, int, int, Any]
"""What a read is answered with: `cb, dd, sector, nb_sectors, id, prv` of its hook."""


class Content:
    """The plain clusters of one image.

    Args:
        file: the image file.
        dd: the image in its chain.
        cipher: of an encrypted image whose content is wanted.

    Attributes:
        cipher: as given.
    """

    def __init__(self, file: ImageFile, dd: DiskDriver, cipher: SectorCipher | None) -> None:
        self._file = file
        self._dd = dd
        self.cipher = cipher

    def read(self, offset: int, buf: memoryview, answer: Answer) -> int:
        """Read from the file, now or later.

        Args:
            offset: in the file, bytes.
            buf: takes the content.
            answer: names the sectors that lie there.

        Returns:
            How many requests that finished.
        """
        if self.cipher is not None:
            answer = _decrypting(self.cipher, buf, answer)
        res = self._file.read_now(offset, buf)
        if res is None:
            self._file.queue_read(offset, buf, answer)
            return 0
        cb, dd, sector, nb_sectors, id, prv = answer
        return cb(dd, res, sector, nb_sectors, id, prv)

    def write(
        self,
        offset: int,
        sector: int,
        content: bytes | bytearray | memoryview,
        done: Callable[[int], int],
        padding: int = 0,
    ) -> int:
        """Write to the file, now or later, and call `done(0 or -errno)`.

        Args:
            offset: in the file, bytes.
            sector: of the disk, that begins there.
            content: not encrypted.
            done: returns how many requests it finished.
            padding: bytes of zeroes to be written behind the content.

        Returns:
            What `done` returned, if it was called already.
        """
        if self.cipher is not None:
            content = self.cipher.encrypt(sector, content)
        if padding:
            content = bytes(content) + bytes(padding)
        return self.write_as_is(offset, memoryview(content), done)

    def write_as_is(self, offset: int, stored: memoryview, done: Callable[[int], int]) -> int:
        """The same with the bytes of the file."""
        res = self._file.write_now(offset, stored)
        if res is not None:
            return done(res)
        self._file.queue_write(offset, stored, (_written, self._dd, 0, 0, 0, done))
        return 0


def _decrypting(cipher: SectorCipher, buf: memoryview, answer: Answer) -> Answer:
    """An answer that decrypts what has been read before it is given."""
    cb = answer[0]

    def decrypted(dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, prv: Any) -> int:
        if not res:
            buf[:] = cipher.decrypt(sector, buf)
        return cb(dd, res, sector, nb_sectors, id, prv)

    return decrypted, *answer[1:]


def _written(
    dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, done: Callable[[int], int]
) -> int:
    return done(res)
