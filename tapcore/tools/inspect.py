"""Looking at an image from a stranger: opens that one file for reading, and nothing else.

The format's driver says what the file says of itself. What is true of every format is judged here:
content that other programs would take for another format, and files that it names. What no driver
has looked at is never called harmless.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import Any, Final, Literal

import attrs

from tapcore.errors import TapError, UsageError, open_error, printable
from tapcore.files.byname import open_host_fd
from tapcore.files.hostfile import occupied_bytes
from tapcore.formats.foreign import SIGNATURES, Sample, Signature, read_sample, what_it_says_it_is
from tapcore.interface.inspection import Finding
from tapcore.interface.options import DiskId
from tapcore.interface.policy import Parents, ReferencePolicy, has_protocol
from tapcore.interface.registry import Registry, default_registry
from tapcore.oldnames import renamed
from tapcore.opening.names import RAW_HANDLES, ImageName, raw_handle, split_name
from tapcore.opening.probe import odd_name, recognise, refusal

_UNDECODED: Final = re.compile("[\\udc80-\\udcff]")
"""Bytes of a name that is not UTF-8, which no terminal obeys: they are shown as `\\xff`."""

_ORDER: Final = ("danger", "unknown", "note")


@attrs.frozen
class InspectedImage:
    """What `tapdisk inspect` tells.

    Attributes:
        image: path of the file.
        handle: of the driver that looked at it; "" where there is none.
        format: the handle, or what the file says it is: a `Signature.code`.
        file_size: length of the file, bytes.
        disk_size: bytes that it occupies on its file system.
        virtual_size: of the disk, bytes, as the image says; None where nobody looked.
        features: the format's features, names for people.
        references: every file that the image names, as (role, name).
        findings: what is suspicious, dangers first.
    """

    image: str
    handle: str
    format: str
    file_size: int
    disk_size: int
    virtual_size: int | None
    features: tuple[str, ...]
    references: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Literal["harmless", "unknown", "danger"]:
        """What it comes to."""
        severities = {finding.severity for finding in self.findings}
        if "danger" in severities:
            return "danger"
        return "unknown" if "unknown" in severities else "harmless"

    @property
    def dangerous(self) -> bool:
        """Whether there is something to be afraid of; what is not need not be harmless."""
        return self.verdict == "danger"

    def as_dict(self) -> dict[str, Any]:
        """The object of `inspect --json`."""
        return {
            "image": self.image,
            "handle": self.handle or None,
            "format": self.format,
            "file_size": self.file_size,
            "disk_size": self.disk_size,
            "virtual_size": self.virtual_size,
            "features": list(self.features),
            "references": [{"role": role, "name": name} for role, name in self.references],
            "findings": [
                {"severity": f.severity, "code": f.code, "message": f.message}
                for f in self.findings
            ],
            "verdict": self.verdict,
            "dangerous": self.dangerous,
        }


@renamed(references="parents")
def inspect_image(
    name: ImageName, *, parents: Parents = (), registry: Registry | None = None
) -> InspectedImage:
    """Look at one file.

    Args:
        name: `[HANDLE:]PATH`; without a handle the content decides.
        parents: which directories it may name files in without that being a danger, as of
            `tapcore.open`; its own is not among them: beside it lie other strangers' images.
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
        raise open_error(exc, os.fsdecode(name)) from None
    try:
        return _inspect(fd, disk_id, ReferencePolicy.of(parents or "none"), registry)
    except (TapError, OSError) as exc:
        raise open_error(exc, disk_id.name) from None
    finally:
        os.close(fd)


def _inspect(
    fd: int, disk_id: DiskId, policy: ReferencePolicy, registry: Registry
) -> InspectedImage:
    sample = read_sample(fd)
    seen_as = recognise(disk_id.name, sample, registry)
    handle = disk_id.drivertype or seen_as
    if not handle:
        found = what_it_says_it_is(sample)
        if found is not None and not found.raw:
            return _not_looked_at(fd, disk_id, sample, found, registry)
        handle = raw_handle(registry)
    drv = registry.get(handle).drv
    assert drv is not None
    drv.require("td_inspect", disk_id.name)
    said = drv.td_inspect(disk_id.name, fd, sample.size)
    findings = [
        *said.findings,
        *_of_other_formats(handle, seen_as, sample),
        *(_of_raw(sample) if handle in RAW_HANDLES else ()),
        *_of_name(disk_id, sample, handle, registry),
        *_of_references(said.references, policy, disk_id.name),
    ]
    return InspectedImage(
        image=disk_id.name,
        handle=handle,
        format=handle,
        file_size=sample.size,
        disk_size=occupied_bytes(fd),
        virtual_size=said.virtual_size,
        features=said.features,
        references=said.references,
        findings=tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity))),
    )


def _not_looked_at(
    fd: int, disk_id: DiskId, sample: Sample, found: Signature, registry: Registry
) -> InspectedImage:
    """No driver knows the format; the table may know that such a file leads to another."""
    findings = []
    if found.names_file is not None and found.names_file(sample):
        text = "names another file as its parent, which other programs would open"
        findings.append(Finding("danger", text, "names-file"))
    findings.append(Finding("unknown", refusal(found, registry), "not-looked-at"))
    return InspectedImage(
        image=disk_id.name,
        handle="",
        format=found.code,
        file_size=sample.size,
        disk_size=occupied_bytes(fd),
        virtual_size=None,
        features=(),
        references=(),
        findings=tuple(findings),
    )


# ---- what is found -------------------------------------------------------------------------------


def _of_other_formats(handle: str, seen_as: str, sample: Sample) -> list[Finding]:
    """What other programs might take the file for."""
    if handle in RAW_HANDLES:
        return _of_a_disguise(seen_as, sample)
    if seen_as and seen_as != handle:
        text = f"looks like {seen_as}, too: another program may take it for that"
        return [Finding("danger", text, "two-formats")]
    return [
        Finding(
            "danger",
            f"looks like {other.name}, too: another program may take it for that",
            "two-formats",
        )
        for other in SIGNATURES
        if handle not in (other.code, other.handle) and _elsewhere(other) and other.matches(sample)
    ]


def _elsewhere(other: Signature) -> bool:
    """Only one magic can be at the start, and the driver has seen that."""
    return any(offset for offset, _ in other.magics)


def _of_a_disguise(seen_as: str, sample: Sample) -> list[Finding]:
    """As a raw disk; LUKS is one as well."""
    other = None if seen_as else what_it_says_it_is(sample)
    if other is not None and other.raw:
        return [Finding("note", f"is {other.name}", other.code)]
    if other is None and not seen_as:
        return []
    text = f"as a raw disk, its content looks like {seen_as or (other and other.name)}"
    if other is not None and not other.image:
        return [Finding("note", text, "looks-like-another-format")]
    text += ": a program that guesses formats would take it for that, and open what it names"
    return [Finding("danger", text, "looks-like-another-format")]


def _of_raw(sample: Sample) -> list[Finding]:
    """What is worth saying of a file that is taken as raw."""
    rest = sample.size % 512
    if not sample.size:
        return [Finding("note", "the file is empty", "empty")]
    if rest:
        text = f"the last sector is not full: {rest} of 512 bytes, the rest reads as zeroes"
        return [Finding("note", text, "short-last-sector")]
    return []


def _of_name(disk_id: DiskId, sample: Sample, handle: str, registry: Registry) -> list[Finding]:
    if disk_id.drivertype:
        return []
    text = odd_name(disk_id.name, sample, handle, registry)
    return [Finding("note", text, "odd-name")] if text else []


def _of_references(
    references: tuple[tuple[str, str], ...], policy: ReferencePolicy, image: str
) -> list[Finding]:
    found = []
    for role, name in references:
        code, problem = _problem_of_reference(image, name, policy)
        if code:
            text = f"the {printable(role)} '{printable(name)}' {problem}"
            found.append(Finding("danger", text, code))
    return found


def _problem_of_reference(image: str, named: str, policy: ReferencePolicy) -> tuple[str, str]:
    """Why a name is a danger (code, text), judged by its text alone: even looking for the file
    could mount something, or tell its owner that the image was looked at."""
    if not named or "\0" in named:
        return "impossible-name", "is an impossible file name"
    if not _UNDECODED.sub("", named).isprintable():
        return "control-characters", "has control characters in it, which a terminal would obey"
    if has_protocol(named):
        return "protocol", "is not a plain file name: other programs would connect to it"
    if policy.any and not policy.none:
        return "", ""
    if policy.none or not policy.directories:
        return "names-file", "is named; only --parents DIR allows that"
    if not _lies_inside(image, named, policy):
        return "names-file", "lies outside the directories that --parents allows"
    if "\\" in named and not _lies_inside(image, named.replace("\\", "/"), policy):
        return "names-file", "lies outside those directories for programs on Windows"
    return "", ""


def _lies_inside(image: str, named: str, policy: ReferencePolicy) -> bool:
    # a link to the image may lie elsewhere than the image, and programs differ in which they go by
    homes = {os.path.realpath(os.path.dirname(image)), os.path.dirname(os.path.realpath(image))}
    paths = [PurePath(os.path.normpath(os.path.join(home, named))) for home in homes]
    return all(any(path.is_relative_to(tree) for tree in policy.directories) for path in paths)
