"""The kinds of disks, by what a descriptor says in `createType`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from tap_vmdk.descriptor.text import Descriptor
from tap_vmdk.options import MONOLITHIC_FLAT, MONOLITHIC_SPARSE, SPLIT_FLAT, SPLIT_SPARSE, STREAM
from tapcore import ImageFormatError, NotSupportedError

FLAT_KINDS: Final = ("FLAT", "VMFS")
SPARSE_KINDS: Final = ("SPARSE", "VMFSSPARSE", "SESPARSE")
"""Kinds of extents."""

_DEVICE_TYPES: Final = {
    kind.lower(): "a raw device of its host"
    for kind in (
        "vmfsRaw",
        "vmfsRawDeviceMap",
        "vmfsPassthroughRawDeviceMap",
        "vmfsRDM",
        "vmfsRDMP",
    )
}
"""Disks that only an ESX host can reach."""
_DISK_TYPES: Final = {
    kind.lower(): kind
    for kind in (
        MONOLITHIC_SPARSE,
        MONOLITHIC_FLAT,
        SPLIT_SPARSE,
        SPLIT_FLAT,
        STREAM,
        "vmfs",
        "vmfsSparse",
        "vmfsThin",
        "vmfsPreallocated",
        "vmfsEagerZeroedThick",
        "seSparse",
        "vmfsSESparse",
        "custom",
        "fullDevice",
        "partitionedDevice",
    )
} | {"2gbmaxextentsparse": SPLIT_SPARSE, "2gbmaxextentflat": SPLIT_FLAT}
"""All others, of which what counts are their extents; those of a device are often plain files."""
_VERSION = re.compile(r"\s*[1-4](?!\d)")
"""Whatever follows the number: VMware does not mind."""
_PART: Final = r"(?i)(.+)-(?:[sf]\d+|flat|delta|sesparse)"


def kind_of_disk(descriptor: Descriptor, otherwise: str) -> str:
    """The kind that a descriptor names, spelled as VMware spells it most.

    Args:
        descriptor: of the disk.
        otherwise: where it names none.

    Raises:
        NotSupportedError: an encrypted or device-backed disk, or one of an unknown kind.
    """
    descriptor.refuse_encrypted()
    version = descriptor.get("version")
    if version is not None and not _VERSION.match(version):
        raise NotSupportedError(f"has a descriptor of version {version[:20]!r}, not 1 to 4")
    kind = descriptor.create_type
    if kind.lower() in _DEVICE_TYPES:
        raise NotSupportedError(
            f"is of the kind {kind}: it stands for {_DEVICE_TYPES[kind.lower()]}, "
            "which is not supported"
        )
    if kind and kind.lower() not in _DISK_TYPES:
        raise NotSupportedError(f"is of the kind '{kind}', which is not supported")
    return _DISK_TYPES.get(kind.lower(), otherwise)


def own_sectors(descriptor: Descriptor | None, capacity: int, grain: int) -> int:
    """How long the disk in a sparse file is.

    VirtualBox keeps the true size in the descriptor, and rounds that in the header up to whole
    grains.

    Args:
        descriptor: in the same file, where there is one.
        capacity: as the header says, sectors.
        grain: sectors.
    """
    if descriptor is None or any(conflicting_size(descriptor, capacity, grain)):
        return capacity
    return sum(line.sectors for line in descriptor.extents())


def conflicting_size(descriptor: Descriptor, capacity: int, grain: int) -> Iterator[str]:
    """What is to be said where a descriptor does not describe the sparse file that it lies in.

    The header's size counts then, as it does for QEMU.

    Args:
        descriptor: in the file.
        capacity: as the header says, sectors.
        grain: sectors.
    """
    try:
        lines = [line for line in descriptor.extents() if line.sectors]
    except ImageFormatError as exc:
        yield exc.message
        return
    sectors = sum(line.sectors for line in lines)
    if len(lines) != 1 or not 0 <= capacity - sectors < grain:
        yield (
            f"the descriptor says {sectors} sectors in {len(lines)} extents, "
            f"and the header {capacity}"
        )


def lone_extent(name: str) -> str:
    """What is to be said of a sparse file that has no descriptor.

    Args:
        name: of the file.
    """
    stem = os.path.basename(name).removesuffix(".vmdk")
    found = re.fullmatch(_PART, stem)
    whole = f"'{found[1]}.vmdk'" if found else "'disk.vmdk'"
    return (
        "has no descriptor: it seems to be one extent of a disk, whose descriptor is another "
        f"file (such as {whole}); what is read is this extent alone"
    )
