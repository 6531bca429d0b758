"""What the format says of an open image, for `tapdisk info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tap_qcow2.ondisk import layout

if TYPE_CHECKING:
    from tap_qcow2.facts import Facts
    from tap_qcow2.image import Image


def info(image: Image | Facts) -> dict[str, Any]:
    """The `format` object of `info --json`."""
    header = image.header
    found: dict[str, Any] = {
        "version": header.version,
        "compat": "0.10" if header.version == 2 else "1.1",
        "cluster_size": image.geometry.cluster_size,
        "refcount_bits": 1 << header.refcount_order,
        "compression": layout.COMPRESSION_NAMES[header.compression_type],
        "lazy_refcounts": header.lazy_refcounts,
        "extended_l2": header.extended_l2,
        "data_file": header.data_file or None,
        "data_file_raw": header.data_file_raw,
        "encryption": layout.CRYPT_NAMES[header.crypt_method],
        "dirty": header.dirty,
        "corrupt": header.corrupt,
        "snapshots": _snapshots(image),
        "bitmaps": _bitmaps(image),
    }
    return found


def _snapshots(image: Image | Facts) -> list[dict[str, Any]]:
    if not image.header.nb_snapshots:
        return []
    from tap_qcow2.ondisk.snapshottable import each_snapshot

    return [_snapshot(entry.public()) for entry in each_snapshot(image.file, image.header)]


def _snapshot(snapshot: Any) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "date": snapshot.date_sec,
        "vm_state_size": snapshot.vm_state_size,
        "vm_clock_nsec": snapshot.vm_clock_nsec,
        "disk_size": snapshot.disk_size,
    }


def _bitmaps(image: Image | Facts) -> list[dict[str, Any]]:
    if image.header.extension(layout.EXT_BITMAPS) is None:
        return []
    from tap_qcow2.bitmaps.listing import bitmaps

    return [
        {
            "name": bitmap.name,
            "granularity": bitmap.granularity,
            "enabled": bitmap.enabled,
            "inconsistent": bitmap.inconsistent,
        }
        for bitmap in bitmaps(image)
    ]
