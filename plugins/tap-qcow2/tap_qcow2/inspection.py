"""What an image from a stranger says of itself: its header, and whether its file is whole.

Nothing else is opened.
"""

from __future__ import annotations

import os

from tap_qcow2.ondisk import bigendian, layout
from tap_qcow2.ondisk.decoder import Decoder
from tap_qcow2.ondisk.entries import offsets_of
from tap_qcow2.ondisk.header import Header
from tap_qcow2.ondisk.headerparser import parse_header
from tapcore import Finding, ImageFormatError, Inspection, lost_content

_MOST_TABLES = 16 << 20
"""Bytes of L2 tables that are looked at."""

_HUGE = 1 << 50  # a petabyte in a file that is not large is meant to make somebody write it


def inspect(fd: int, size: int) -> Inspection:
    """Look at the header.

    Args:
        fd: the file, open for reading.
        size: its size, bytes.

    Raises:
        TapError: not a qcow2 image, or one that cannot be opened.
    """
    head = os.pread(fd, 4096, 0)
    bits = int.from_bytes(head[20:24], "big")
    if 12 < bits <= layout.MAX_CLUSTER_BITS:
        head = os.pread(fd, 1 << bits, 0)
    header = parse_header(head, file_size=size)
    if not header.size % 512 == 0:
        raise ImageFormatError("has a size that is not a multiple of 512 bytes")
    return Inspection(
        virtual_size=header.size,
        features=tuple(_features(header)),
        references=tuple(_references(header)),
        findings=(*_findings(header, size), *_losses(fd, header, size)),
    )


def _features(header: Header) -> list[str]:
    found = [f"version {header.version}", f"clusters of {1 << header.cluster_bits} bytes"]
    for wanted, name in (
        (header.refcount_order != 4, f"refcounts of {1 << header.refcount_order} bits"),
        (header.compression_type, layout.COMPRESSION_NAMES[header.compression_type]),
        (header.extended_l2, "extended L2 entries"),
        (header.lazy_refcounts, "lazy refcounts"),
        (header.has_data_file, "external data file"),
        (header.data_file_raw, "raw external data"),
        (header.crypt_method, f"encrypted ({layout.CRYPT_NAMES[header.crypt_method]})"),
        (header.nb_snapshots == 1, "1 snapshot"),
        (header.nb_snapshots > 1, f"{header.nb_snapshots} snapshots"),
        (header.extension(layout.EXT_BITMAPS) is not None, "bitmaps"),
        (header.dirty, "not closed"),
        (header.corrupt, "marked as corrupt"),
    ):
        if wanted:
            found.append(name)
    return found


def _references(header: Header) -> list[tuple[str, str]]:
    found = []
    if header.backing_file:
        found.append(("parent", header.backing_file))
    if header.has_data_file:
        found.append(("data file", header.data_file))
    return found


def _findings(header: Header, size: int) -> list[Finding]:
    found = []
    if header.has_data_file:
        text = (
            "keeps its data in another file, which was not looked at (check does that): "
            "whoever opens it reads and writes that one"
        )
        found.append(Finding("note", text, "data-file"))
    if header.backing_file and not header.backing_format:
        text = "does not record its parent's format, so that it would be guessed"
        found.append(Finding("note", text, "parent-format-guessed"))
    if header.size > _HUGE:
        found.append(Finding("danger", f"claims a size of {header.size} bytes", "huge"))
    if header.corrupt:
        found.append(Finding("note", "is marked as corrupt: check it", "corrupt"))
    if header.dirty:
        text = "was not closed: its refcounts may be wrong"
        found.append(Finding("note", text, "not-closed"))
    if header.crypt_method == layout.CRYPT_AES:
        text = "has the legacy AES encryption, which is not safe"
        found.append(Finding("note", text, "weak-encryption"))
    if header.l1_size * 8 > max(size, 1 << 20):
        text = "has an L1 table that is larger than the file"
        found.append(Finding("danger", text, "impossible-table"))
    return found


def _losses(fd: int, header: Header, size: int) -> list[Finding]:
    """What the tables lead to, and the file is too short for."""
    lost = tables = 0
    left = _MOST_TABLES
    decoder = Decoder(header.geometry, header.version, header.has_data_file)
    cluster = 1 << header.cluster_bits
    for offset in _l2_tables(fd, header):
        if offset + cluster > size:
            tables += 1
        elif left >= cluster and not header.has_data_file:
            left -= cluster
            entries = bigendian.from_bytes(os.pread(fd, cluster, offset))
            lost += decoder.begin_behind(entries, size)
    return lost_content("L2 table", tables, "what they map is lost") + lost_content(
        "cluster", lost, "their content is lost", least=left < cluster
    )


def _l2_tables(fd: int, header: Header) -> list[int]:
    """Where they lie, as an L1 table of a bounded length says; each once."""
    length = min(header.l1_size * 8, 1 << 20)
    content = os.pread(fd, length, header.l1_table_offset)
    entries = bigendian.from_bytes(content[: len(content) & ~7])
    return sorted(set(offsets_of(entries)))
