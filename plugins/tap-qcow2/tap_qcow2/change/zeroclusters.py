"""Doing without zero clusters, which version 2 does not have.

Where no parent would show they become unallocated; else zeroes are written into space of their own.
All tables stay in their places, so that snapshots that share them see the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tap_qcow2.ondisk.entries import flagged
from tap_qcow2.ondisk.snapshottable import read_snapshots, snapshot_l1
from tap_qcow2.tables.links import check_for_writing
from tapcore import SECTOR_SHIFT, UsageError

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tap_qcow2.tables.l2tables import L2Table

_PIECE: Final = 1 << 20


def expand_zeroes(image: Image) -> None:
    """Let no L2 table, of the disk or of a snapshot, have a zero cluster.

    Args:
        image: open for writing and prepared for it, with nothing in flight; without extended L2
            entries or an external data file.

    Raises:
        TapError, OSError: it failed; the content is what it was.
    """
    seen: set[int] = set()
    _expand_tables(image, seen, active=True)
    file, header = image.file, image.header
    for snapshot in read_snapshots(file, header):
        with image.tables.showing(snapshot_l1(file, header, snapshot), snapshot.l1_offset):
            _expand_tables(image, seen, active=False)


def _expand_tables(image: Image, seen: set[int], *, active: bool) -> None:
    tables = image.tables
    for index in range(len(tables.l1)):
        offset = tables.offset_of(index)
        if not offset or offset in seen:
            continue
        seen.add(offset)
        _expand_table(image, tables.wait(index), active=active)
        if image.must_write_back:
            image.writeback.all_now()
    image.writeback.all_now()


def _expand_table(image: Image, table: L2Table, *, active: bool) -> None:
    check_for_writing(image.metadata, table)
    bits, refcounts = image.cluster_bits, image.refcounts
    shares = refcounts.get(table.offset >> bits)
    single = active and shares == 1
    homeless: list[int] = []
    for at, host in image.metadata.decoder.zero_clusters(table.entries):
        if host and refcounts.get(host >> bits) == shares:  # nobody sees this space otherwise
            _write_zeroes(image, host, image.geometry.cluster_size)
            image.tables.set(table, at, (flagged(host, single),))
            continue
        if host:
            refcounts.released.extend([host >> bits] * shares)
        if image.header.backing_file:
            homeless.append(at)
        else:
            image.tables.set(table, at, (0,))
    for at, host in _new_places(image, homeless, shares):
        image.tables.set(table, at, (flagged(host, single),))


def _new_places(image: Image, homeless: list[int], shares: int) -> Iterator[tuple[int, int]]:
    """Clusters of zeroes for entries of a table that is shared so often: (entry, host offset)."""
    bits, allocator = image.cluster_bits, image.allocator
    done = 0
    while done < len(homeless):
        end = allocator.end
        first, count = allocator.allocate(len(homeless) - done)
        for cluster in range(first, first + count):
            if shares > 1:
                image.refcounts.add(cluster, shares - 1)
        if first << bits < end or image.header.crypt_method:  # else a hole, behind all there was
            _write_zeroes(image, first << bits, count << bits)
        for cluster in range(first, first + count):
            yield homeless[done], cluster << bits
            done += 1


def _write_zeroes(image: Image, host: int, length: int) -> None:
    """Let space in the file show zeroes, encrypted ones where the image is."""
    file, cipher = image.file, image.cipher
    if image.header.crypt_method and cipher is None:
        raise UsageError("its zero clusters cannot be written without its passphrase")
    if cipher is None and file.zero_blocking(host, length, False) == 0:
        return
    zeroes = memoryview(bytes(min(length, _PIECE)))
    for at in range(host, host + length, _PIECE):
        piece = zeroes[: host + length - at]
        file.write_metadata(
            at, piece if cipher is None else cipher.encrypt(at >> SECTOR_SHIFT, piece)
        )
