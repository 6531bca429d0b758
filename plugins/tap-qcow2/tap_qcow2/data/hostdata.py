"""Content on its way to the host file and back: plain, or by way of the image's cipher.

A request whose content the page cache holds is answered at once, any other by the file. Where a
read ends past the end of the file, `missing` says what that means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from tap_qcow2.data.missing import read_past_end
from tapcore import SECTOR_SHIFT

if TYPE_CHECKING:
    from tap_qcow2.image import Image

Answer: TypeAlias = tuple[Any, ...]
"""(callback, dd, sector, nb_sectors, id, prv), of a request or a part of one."""


def read_plain(image: Image, host: int, buf: memoryview, answer: Answer) -> int:
    """Read at a host offset (bytes), now or later; returns what the callback returned."""
    data = image.data_file()
    res = data.read_now(host, buf)
    if res is None and host + len(buf) > data.size:
        res, buf = _what_is_there(image, host, buf, answer)
    if res is None:
        return data.queue_read(host, buf, image.in_flight.counted(answer))
    cb, dd, sector, nb_sectors, id, prv = answer
    done: int = cb(dd, res, sector, nb_sectors, id, prv)
    return done


def _what_is_there(
    image: Image, host: int, buf: memoryview, answer: Answer
) -> tuple[int | None, memoryview]:
    """Of a read that ends past the end of the file: an answer, or what is to be read."""
    inside = read_past_end(image, host, buf, answer)
    return (inside if inside <= 0 else None), buf[: max(inside, 0)]


def write_plain(image: Image, host: int, buf: memoryview, answer: Answer) -> int:
    """Write at a host offset (bytes), now or later; returns what the callback returned."""
    data = image.data_file()
    res = data.write_now(host, buf)
    if res is None:
        return data.queue_write(host, buf, image.in_flight.counted(answer))
    cb, dd, sector, nb_sectors, id, prv = answer
    done: int = cb(dd, res, sector, nb_sectors, id, prv)
    return done


def read_encrypted(image: Image, host: int, buf: memoryview, answer: Answer) -> int:
    """As `read_plain`, and decrypt it."""
    cipher = image.cipher
    assert cipher is not None
    cb, dd, sector, nb_sectors, id, prv = answer
    first = host >> SECTOR_SHIFT if image.cipher_by_host else sector
    res, there = None, buf
    if host + len(buf) > image.data_file().size:
        res, there = _what_is_there(image, host, buf, answer)
    if res is not None:
        missing: int = cb(dd, res, sector, nb_sectors, id, prv)
        return missing

    def decrypt(dd: Any, res: int, sector: int, nb_sectors: int, id: int, prv: Any) -> int:
        if res == 0:
            there[:] = cipher.decrypt(first, there)
        done: int = cb(dd, res, sector, nb_sectors, id, prv)
        return done

    return read_plain(image, host, there, (decrypt, dd, sector, nb_sectors, id, prv))


def write_encrypted(image: Image, host: int, buf: memoryview, answer: Answer) -> int:
    """As `write_plain`, of what is encrypted here."""
    assert image.cipher is not None
    sector = answer[2]
    first = host >> SECTOR_SHIFT if image.cipher_by_host else sector
    # a copy: the client's buffer must stay as it is
    return write_plain(image, host, memoryview(image.cipher.encrypt(first, buf)), answer)
