"""A small format that can only be read: what says so lies at the end of the file.

Blocks of 16 KiB, each packed with zlib, one after the other; then the index (offset and length of
each, 0 for zeroes), then a footer: magic, the disk's size, where the index is. Little-endian.
"""

import errno
import struct
import zlib

import tapcore
from tapcore import hookimpl

BLOCK = 16 << 10
SECTORS = BLOCK // 512
FOOTER = struct.Struct("<8sQQ")
ENTRY = struct.Struct("<QI")
MAGIC = b"TAPPACKD"

disk_info = tapcore.DiskInfo(handle="packed", name="packed image", api=1, suffixes=(".packed",))


def pack(content):
    """An image file's bytes."""
    out, index = bytearray(), []
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK].ljust(BLOCK, b"\0")
        packed = zlib.compress(block) if any(block) else b""
        index.append(ENTRY.pack(len(out) if packed else 0, len(packed)))
        out += packed
    return bytes(out) + b"".join(index) + FOOTER.pack(MAGIC, len(content), len(out))


class Image:
    """An open image."""

    def __init__(self, file):
        self.file = file
        if file.size < FOOTER.size:
            raise tapcore.ImageFormatError("is not a packed image")
        footer = file.read_metadata(file.size - FOOTER.size, FOOTER.size)
        magic, self.size, start = FOOTER.unpack(footer)
        if magic != MAGIC:
            raise tapcore.ImageFormatError("is not a packed image")
        count = -(-self.size // BLOCK)
        if self.size % 512 or start + count * ENTRY.size + FOOTER.size != file.size:
            raise tapcore.ImageFormatError("has an impossible size in its footer")
        found = file.read_metadata(start, count * ENTRY.size)
        self.index = list(ENTRY.iter_unpack(found))
        for offset, length in self.index:
            if offset + length > start or length > 2 * BLOCK:
                raise tapcore.ImageFormatError("has an impossible index")

    def block(self, number):
        """Unpacked; None for zeroes."""
        offset, length = self.index[number]
        if not length:
            return None
        packed = self.file.read_metadata(offset, length)
        unpacker = zlib.decompressobj()
        block = unpacker.decompress(packed, BLOCK)
        if len(block) != BLOCK:
            raise tapcore.ImageFormatError(f"has a damaged block {number}")
        return block


@hookimpl
def td_probe(tail):
    return tail[-FOOTER.size :].startswith(MAGIC)


@hookimpl
def td_open(dd, name, flags):
    file = tapcore.open_image_file(name, flags, dd.options)
    try:
        dd.private = Image(file)
    except BaseException:
        file.close()
        raise
    dd.size = dd.private.size // 512
    dd.sector_size = BLOCK


@hookimpl
def td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv):
    image, finished, end = dd.private, 0, sector + nb_sectors
    for at in range(sector, end, SECTORS):
        count = min(SECTORS, end - at)
        res = 0
        try:
            block = image.block(at // SECTORS)
        except OSError as exc:
            res = -(exc.errno or errno.EIO)
        except (zlib.error, tapcore.ImageFormatError) as exc:
            res = tapcore.content_damaged(dd, at, count, str(exc))
        else:
            if block is None:
                res = tapcore.BLK_NOT_ALLOCATED
            else:
                buf[(at - sector) * 512 : (at - sector + count) * 512] = block[: count * 512]
        finished += cb(dd, res, at, count, id, prv)
    return finished


@hookimpl
def td_extents(dd, sector, nb_sectors):
    end = sector + nb_sectors
    while sector < end:
        count = min(SECTORS - sector % SECTORS, end - sector)
        packed = dd.private.index[sector // SECTORS][1]
        yield tapcore.Extent(sector, count, "compressed" if packed else "unallocated")
        sector += count


@hookimpl
def td_close(dd):
    dd.private.file.close()
