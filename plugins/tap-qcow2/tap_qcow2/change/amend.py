"""Changing an image in place: its version, lazy refcounts, the width of refcounts.

Each step leaves a whole image. What has to be written first lies where nothing points to yet, and
one write of the header's first sector makes it valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from tap_qcow2.change.refcountwidth import change_width
from tap_qcow2.change.zeroclusters import expand_zeroes
from tap_qcow2.create.newimage import refcount_order
from tap_qcow2.ondisk import bitmapdirectory, layout
from tap_qcow2.ondisk.snapshottable import read_snapshots
from tap_qcow2.snapshots.transaction import rewrite_snapshots
from tapcore import SECTOR_SHIFT, UsageError

if TYPE_CHECKING:
    from tap_qcow2.image import Image

_AMENDABLE: Final = ("compat", "lazy_refcounts", "refcount_bits")
_VERSIONS: Final = {"0.10": 2, "1.1": 3}
_SWITCH: Final = {"on": True, "off": False}


@attrs.frozen
class Target:
    """What an image is to be like; `order` is log2 of the refcounts' width in bits."""

    version: int
    order: int
    lazy: bool


def amend(image: Image, options: Mapping[str, str]) -> None:
    """Change options of an image; its content and its snapshots stay.

    Args:
        image: open for writing, with nothing in flight.
        options: `compat`, `lazy_refcounts`, `refcount_bits`; what is not named stays.

    Raises:
        UsageError: an option, or a value, that this image cannot have.
        TapError, OSError: it failed; what was done until then is whole.
    """
    target = _target(image, options)
    if target.version < image.header.version:
        _check_downgrade(image)
    if image.header.dirty and not image.stages.lazy:  # so far it was opened for its metadata only
        from tap_qcow2.check.check import repair_dirty

        repair_dirty(image)
    image.begin_change()
    image.clean()
    if target.version > image.header.version:
        _upgrade(image)
    if target.order != image.header.refcount_order:
        change_width(image, target.order)
    if target.lazy != image.header.lazy_refcounts and target.version >= 3:
        image.header.compatible ^= layout.COMPAT_LAZY_REFCOUNTS
        image.header_writer.write_fields()
    if target.version < image.header.version:
        _downgrade(image)


def _target(image: Image, options: Mapping[str, str]) -> Target:
    header = image.header
    wrong = ", ".join(sorted(set(options) - set(_AMENDABLE)))
    if wrong:
        raise UsageError(f"{wrong} cannot be amended; what can: {', '.join(_AMENDABLE)}")
    version, order, lazy = header.version, header.refcount_order, header.lazy_refcounts
    if "compat" in options:
        if options["compat"] not in _VERSIONS:
            raise UsageError(f"compat must be {' or '.join(_VERSIONS)}")
        version = _VERSIONS[options["compat"]]
    if "refcount_bits" in options:
        order = refcount_order(options["refcount_bits"])
    if "lazy_refcounts" in options:
        if options["lazy_refcounts"] not in _SWITCH:
            raise UsageError("lazy_refcounts must be on or off")
        lazy = _SWITCH[options["lazy_refcounts"]]
    if version < 3 and order != 4:
        raise UsageError("compat=0.10 and refcounts of other than 16 bits exclude each other")
    if version < 3 and lazy and "lazy_refcounts" in options:
        raise UsageError("lazy_refcounts needs compat=1.1")
    return Target(version, order, lazy)


# ---- to version 3 ----------------------------------------------------------------------------


def _upgrade(image: Image) -> None:
    """The header grows; snapshots have to say which size the disk had."""
    snapshots = read_snapshots(image.file, image.header)
    if any(snapshot.disk_size is None for snapshot in snapshots):
        rewrite_snapshots(image, snapshots)
        image.clean()
    _switch_version(image, 3)


# ---- to version 2 ----------------------------------------------------------------------------


def _check_downgrade(image: Image) -> None:
    """Raise UsageError for what version 2 cannot say."""
    header = image.header
    listed = header.extension(layout.EXT_BITMAPS) is not None and bitmapdirectory.valid(header)
    features = (
        ("an external data file", header.has_data_file),
        ("extended L2 entries", header.extended_l2),
        ("another compression than zlib", header.compression_type),
        ("persistent bitmaps", listed),
        ("snapshots of another size, or with much VM state", _has_large_snapshots(image)),
    )
    found = ", ".join(name for name, has in features if has)
    if found:
        raise UsageError(f"cannot have compat=0.10, since it has {found}")


def _has_large_snapshots(image: Image) -> bool:
    size = image.header.size >> SECTOR_SHIFT << SECTOR_SHIFT
    return any(
        each.vm_state_size > 0xFFFF_FFFF or each.disk_size not in (None, size)
        for each in read_snapshots(image.file, image.header)
    )


def _downgrade(image: Image) -> None:
    image.begin_change()
    expand_zeroes(image)
    image.clean()
    header = image.header
    before = header.compatible, header.autoclear
    header.compatible = header.autoclear = 0
    try:
        _switch_version(image, 2)
    except BaseException:
        header.compatible, header.autoclear = before
        raise


def _switch_version(image: Image, version: int) -> None:
    before = image.header.version
    image.header.version = version
    try:
        image.header_writer.write()
    except BaseException:
        image.header.version = before
        raise
    image.metadata.decoder.set_version(version)
