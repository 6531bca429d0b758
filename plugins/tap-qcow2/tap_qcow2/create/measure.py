"""How many bytes an image of some content would take.

The figures are those of `qemu-img measure`: all tables of a full image, and the clusters of data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from tap_qcow2.create.newimage import plan_image
from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import Header
from tapcore import Measurement

LUKS_HEADER: Final = 2_068_480
"""Bytes that a LUKS header takes, with eight key slots of a 256-bit XTS key."""


def measure(size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]) -> Measurement:
    """Measure.

    Args:
        size: virtual size in bytes.
        options: as for `create`.
        data: (start, length) in bytes of what holds data, in order.

    Raises:
        UsageError: the options are not possible.
    """
    options = {key: value for key, value in options.items() if not key.startswith("encrypt.")} | (
        {"encrypt.format": "luks", "encrypt.key-file": "-"}
        if options.get("encrypt.format") == "luks"
        else {}
    )
    header = plan_image(size, None, options).header
    cluster = header.geometry.cluster_size
    full = -(-size // cluster) * cluster
    tables = _table_bytes(header, size)
    if header.crypt_method == layout.CRYPT_LUKS:
        tables += -(-LUKS_HEADER // cluster) * cluster
    needed = full if options.get("preallocation", "off") in ("falloc", "full") else 0
    if not needed:
        needed = _data_bytes(data, cluster)
    if header.has_data_file:
        full = needed = 0
    return Measurement(required=tables + needed, fully_allocated=tables + full)


def _data_bytes(data: Iterable[tuple[int, int]], cluster: int) -> int:
    """Whole clusters that hold some of it; each counted once."""
    total = done = 0
    for start, length in data:
        first, last = max(start // cluster, done), -(-(start + length) // cluster)
        total += max(last - first, 0)
        done = max(done, last)
    return total * cluster


def _table_bytes(header: Header, size: int) -> int:
    """Header, L1, L2, refcount table and blocks of a full image, whole clusters each."""
    geometry = header.geometry
    cluster = geometry.cluster_size
    clusters = -(-size // cluster)
    tables = (clusters + (1 << geometry.l2_bits) - 1) >> geometry.l2_bits
    l1 = -(-tables * 8 // cluster)
    counted = 1 + l1 + tables + (0 if header.has_data_file else clusters)
    per_block = cluster * 8 >> header.refcount_order
    blocks = table = 0
    while True:
        before = blocks, table
        blocks = -(-(counted + blocks + table) // per_block)
        table = -(-blocks * 8 // cluster)
        if before == (blocks, table):
            return (1 + l1 + tables + blocks + table) * cluster
