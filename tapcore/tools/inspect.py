"""Looking at an image from a stranger: opens that one file for reading, and nothing else.

The format's driver says what the file says of itself. What is true of every format is judged here:
a raw image whose content claims to be another format, and names that lead out of the directory.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import Any

import attrs

from tapcore.errors import NotSupportedError, TapError, UsageError, open_error
from tapcore.imagefile.hostfile import host_file_size, occupied_bytes
from tapcore.imagefile.opening import open_host_fd
from tapcore.models import DiskId, Finding, Inspection
from tapcore.names import RAW_HANDLES, ImageName, raw_handle, split_name
from tapcore.probe import HEAD_BYTES, recognise
from tapcore.references import ReferencePolicy, printable
from tapcore.registry import Registry, default_registry

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""What other programs follow as a URL (`nbd://host`, `json:{...}`)."""


@attrs.frozen
class InspectedImage:
    """What `tapdisk inspect` tells.

    Attributes:
        image: path of the file.
        handle: of the driver that looked at it.
        file_size: length of the file, bytes.
        disk_size: bytes that it occupies on its file system.
        virtual_size: of the disk, bytes, as the image says.
        features: the format's features, names for people.
        references: every file that the image names, as (role, name).
        findings: what is suspicious, dangers first.
    """

    image: str
    handle: str
    file_size: int
    disk_size: int
    virtual_size: int
    features: tuple[str, ...]
    references: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]

    @property
    def dangerous(self) -> bool:
        """Whether there is something to be afraid of."""
        return any(finding.severity == "danger" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The object of `inspect --json`."""
        return {
            "image": self.image,
            "handle": self.handle,
            "file_size": self.file_size,
            "disk_size": self.disk_size,
            "virtual_size": self.virtual_size,
            "features": list(self.features),
            "references": [{"role": role, "name": name} for role, name in self.references],
            "findings": [{"severity": f.severity, "message": f.message} for f in self.findings],
            "dangerous": self.dangerous,
        }


def inspect_image(
    name: ImageName, *, references: ReferencePolicy | None = None, registry: Registry | None = None
) -> InspectedImage:
    """Look at one file.

    Args:
        name: `[HANDLE:]PATH`; without a handle the content decides.
        references: which files it may name without that being a danger.
        registry: drivers to use instead of the installed ones.

    Raises:
        TapError: not an image of the format, or unreadable.
    """
    registry = registry or default_registry()
    try:
        disk_id = split_name(name, registry)
        if disk_id.drivertype and not registry.get(disk_id.drivertype).file_backed:
            raise UsageError(f"a '{disk_id.drivertype}' disk is not a file to be inspected")
        fd = open_host_fd(disk_id.name, os.O_RDONLY)
    except (TapError, OSError) as exc:
        raise open_error(exc, os.fspath(name)) from None
    try:
        return _inspect(fd, disk_id, references or ReferencePolicy(), registry)
    except (TapError, OSError) as exc:
        raise open_error(exc, disk_id.name) from None
    finally:
        os.close(fd)


def _inspect(
    fd: int, disk_id: DiskId, policy: ReferencePolicy, registry: Registry
) -> InspectedImage:
    size = host_file_size(fd)
    seen_as = recognise(disk_id.name, os.pread(fd, HEAD_BYTES, 0), registry)
    handle = disk_id.drivertype or seen_as or raw_handle(registry)
    drv = registry.get(handle).drv
    assert drv is not None
    if "td_inspect" not in drv.implemented:
        raise NotSupportedError(f"the driver '{handle}' cannot inspect images")
    said: Inspection = drv.td_inspect(disk_id.name, fd, size)
    findings = [
        *said.findings,
        *_of_raw(handle, seen_as, size),
        *_of_references(disk_id.name, said.references, policy),
    ]
    return InspectedImage(
        image=disk_id.name,
        handle=handle,
        file_size=size,
        disk_size=occupied_bytes(fd),
        virtual_size=said.virtual_size,
        features=said.features,
        references=said.references,
        findings=tuple(sorted(findings, key=lambda finding: finding.severity)),
    )


def _of_raw(handle: str, seen_as: str, size: int) -> list[Finding]:
    """What is worth saying of a file that is taken as raw."""
    if handle not in RAW_HANDLES:
        return []
    found = []
    if seen_as:
        text = (
            f"as a raw disk, its content looks like {seen_as}: a program that guesses "
            f"formats would take it for that, and open what it names"
        )
        found.append(Finding("danger", text))
    if not size:
        found.append(Finding("note", "the file is empty"))
    elif size % 512:
        text = f"the last sector is not full: {size % 512} of 512 bytes, the rest reads as zeroes"
        found.append(Finding("note", text))
    return found


def _of_references(
    image: str, references: tuple[tuple[str, str], ...], policy: ReferencePolicy
) -> list[Finding]:
    return [
        Finding("danger", f"the {printable(role)} '{printable(name)}' {problem}")
        for role, name in references
        if (problem := _problem_of_reference(image, name, policy))
    ]


def _problem_of_reference(image: str, named: str, policy: ReferencePolicy) -> str:
    """Why a name is a danger, judged by its text alone: even looking for the file could mount
    something, or tell its owner that the image was looked at."""
    if not named or "\0" in named:
        return "is an impossible file name"
    if not named.isprintable():
        return "has control characters in it, which a terminal would obey"
    if _SCHEME.match(named):
        return "is not a plain file name: other programs would connect to it"
    if policy.none:
        return "is named, and --parents none allows no file"
    if policy.any:
        return ""
    if not _lies_inside(image, named, policy):
        return "lies outside the image's directory"
    if "\\" in named and not _lies_inside(image, named.replace("\\", "/"), policy):
        return "lies outside the image's directory for programs on Windows"
    return ""


def _lies_inside(image: str, named: str, policy: ReferencePolicy) -> bool:
    home = os.path.dirname(os.path.abspath(image))
    path = PurePath(os.path.normpath(os.path.join(home, named)))
    return any(path.is_relative_to(tree) for tree in (home, *policy.directories))
