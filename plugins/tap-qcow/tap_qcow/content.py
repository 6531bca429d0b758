"""Moving the content of plain clusters between buffers and the file, encrypted where that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapcore import ImageFile, Then

if TYPE_CHECKING:
    from tapcore.sectorcipher import SectorCipher


class Content:
    """The plain clusters of one image.

    Args:
        file: the image file.
        cipher: of an encrypted image whose content is wanted.

    Attributes:
        cipher: as given.
    """

    def __init__(self, file: ImageFile, cipher: SectorCipher | None) -> None:
        self._file = file
        self.cipher = cipher

    def read(self, offset: int, sector: int, buf: memoryview, then: Then) -> int:
        """Read from the file, now or later, and call `then`.

        Args:
            offset: in the file, bytes.
            sector: of the disk, that begins there.
            buf: takes the content.
            then: is told how that went.

        Returns:
            What `then` returned, if it was called already.
        """
        if self.cipher is not None:
            then = _decrypted(self.cipher, sector, buf, then)
        res = self._file.read_now(offset, buf)
        if res is not None:
            return then(res)
        self._file.queue_read(offset, buf, then)
        return 0

    def write(
        self,
        offset: int,
        sector: int,
        content: bytes | bytearray | memoryview,
        then: Then,
        padding: int = 0,
    ) -> int:
        """Write to the file, now or later, and call `then`.

        Args:
            offset: in the file, bytes.
            sector: of the disk, that begins there.
            content: not encrypted.
            then: is told how that went.
            padding: bytes of zeroes to be written behind the content.

        Returns:
            What `then` returned, if it was called already.
        """
        if self.cipher is not None:
            content = self.cipher.encrypt(sector, content)
        if padding:
            content = bytes(content) + bytes(padding)
        return self.write_as_is(offset, memoryview(content), then)

    def write_as_is(self, offset: int, stored: memoryview, then: Then) -> int:
        """The same with the bytes of the file."""
        res = self._file.write_now(offset, stored)
        if res is not None:
            return then(res)
        self._file.queue_write(offset, stored, then)
        return 0


def _decrypted(cipher: SectorCipher, sector: int, buf: memoryview, then: Then) -> Then:
    """Decrypts what has been read, and then goes on."""

    def decrypt(res: int) -> int:
        if not res:
            buf[:] = cipher.decrypt(sector, buf)
        return then(res)

    return decrypt
