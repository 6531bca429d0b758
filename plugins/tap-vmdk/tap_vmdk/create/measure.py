"""How large the files of a new disk would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tap_vmdk.create.content import sparse_geometry, stream_header
from tap_vmdk.create.newdisk import SPLIT_SECTORS, NewDisk, new_disk
from tap_vmdk.options import MONOLITHIC_FLAT, SPLIT_FLAT, SPLIT_SPARSE, STREAM
from tap_vmdk.sparse.header import DEFAULT_GRAIN
from tapcore import Measurement

_GRAIN = DEFAULT_GRAIN * 512
_WORST_GRAIN = -(-(_GRAIN + 64 + 12) // 512) * 512
"""Bytes of a grain that cannot be compressed: deflate's blocks, zlib's frame, and the marker."""
_DESCRIPTOR = 1024


def measure(size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]) -> Measurement:
    """As `td_measure`; what cannot be known is rounded up."""
    disk = new_disk(size, options)
    if disk.subformat in (MONOLITHIC_FLAT, SPLIT_FLAT):
        return Measurement(size + _DESCRIPTOR, size + _DESCRIPTOR)
    total, used = -(-size // _GRAIN), _grains(data)
    if disk.subformat == STREAM:
        return Measurement(_stream(disk, used), _stream(disk, total))
    head = _heads(disk)
    return Measurement(head + used * _GRAIN, head + total * _GRAIN)


def _grains(data: Iterable[tuple[int, int]]) -> int:
    """How many grains hold data."""
    count, last = 0, -1
    for start, length in data:
        if not length:
            continue
        first, end = max(start // _GRAIN, last + 1), (start + length - 1) // _GRAIN
        count += max(end - first + 1, 0)
        last = max(last, end)
    return count


def _heads(disk: NewDisk) -> int:
    """What lies before the grains of sparse files."""
    if disk.subformat != SPLIT_SPARSE:
        return sparse_geometry(disk, embedded=True).overhead * 512
    whole, rest = divmod(disk.sectors, SPLIT_SECTORS)
    size = _DESCRIPTOR + 128 * whole
    for sectors, count in ((SPLIT_SECTORS, whole), (rest, 1 if rest else 0)):
        if count:
            size += sparse_geometry(disk, sectors=sectors).overhead * 512 * count
    return size


def _stream(disk: NewDisk, grains: int) -> int:
    header = stream_header(disk)
    tables = min(header.tables, grains)
    metadata = tables * (1 + header.table_sectors) + 1 + header.directory_sectors + 3
    return (header.overhead + metadata) * 512 + grains * _WORST_GRAIN
