"""What an image says of itself: for `info`, and for `inspect` of one from a stranger."""

from __future__ import annotations

import itertools
import os
from typing import Any

import attrs

from tap_vmdk.descriptor import encoding
from tap_vmdk.descriptor.disktypes import SPARSE_KINDS, kind_of_disk, lone_extent, own_sectors
from tap_vmdk.descriptor.place import NOT_NAMED, descriptor_behind_header, embedded_descriptor
from tap_vmdk.descriptor.text import Descriptor, ExtentLine
from tap_vmdk.identity import (
    extent_lines,
    is_own_name,
    name_on_disk,
    refuse_other_content,
    stands_alone,
)
from tap_vmdk.image import Image
from tap_vmdk.openimage import open_extent
from tap_vmdk.parts.part import describe_line
from tap_vmdk.signature import HEAD_BYTES, kind_of
from tap_vmdk.sparse.cowd import CowdHeader
from tap_vmdk.sparse.header import (
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINE,
    FLAG_REDUNDANT,
    FLAG_ZEROED,
    NEWLINES,
    SparseHeader,
)
from tap_vmdk.sparse.losses import losses_of
from tap_vmdk.sparse.sesparse import SeSparseHeader
from tapcore import DiskDriver, Finding, Inspection, NotSupportedError, TapError

_QEMU_OFFSET, _QEMU_BYTES = 512, 20 * 512
"""Where QEMU looks for the parent of a sparse file."""
_TRIED = 8
"""Extents that are opened to learn how large the grains are."""
_DANGEROUS_KINDS = ("VMFSRDM", "VMFSRAW")


def describe(dd: DiskDriver) -> dict[str, Any]:
    """The `format` object of `info --json`."""
    image: Image = dd.private
    descriptor, header = image.descriptor, image.header
    found: dict[str, Any] = {
        "subformat": image.subformat,
        "grain_size": _grain_size(dd, image),
        "cid": None,
        "parent_cid": None,
        "extents": _extents(image),
    }
    if descriptor is not None:
        found["cid"] = f"{descriptor.cid:08x}" if descriptor.has_cid else None
        found["parent_cid"] = f"{descriptor.parent_cid:08x}"
        for key, entry in (
            ("adapter_type", "ddb.adapterType"),
            ("hwversion", "ddb.virtualHWVersion"),
        ):
            found[key] = _printable(descriptor.get(entry))
    if header is not None:
        found["version"] = header.version
        found["compressed"] = header.compressed
        found["zeroed_grain"] = bool(header.flags & FLAG_ZEROED)
        found["unclean_shutdown"] = bool(header.unclean)
    return found


def _grain_size(dd: DiskDriver, image: Image) -> int | None:
    """Bytes; None where nothing is stored in grains, or no extent is there to say it."""
    if image.parts:
        return max((part.cluster for part in image.parts if part.cluster), default=None)
    sparse_lines = (line for line in extent_lines(image) if line.kind in SPARSE_KINDS)
    for line in itertools.islice(sparse_lines, _TRIED):
        try:
            return open_extent(dd, image, line, 0).cluster
        except (TapError, OSError):  # what is wrong with it is not the question here
            continue
    return None


def _extents(image: Image) -> list[dict[str, Any]]:
    descriptor = image.descriptor
    found = [part.describe() for part in image.parts]
    if not found and descriptor is not None:
        found = [describe_line(line) for line in extent_lines(image)]
    for each in found:
        if descriptor is not None and "filename" in each:
            each["filename"] = _printable(descriptor.meant(each["filename"]))
    return found


def other_files(image: Image) -> list[str]:
    """As `td_other_files`."""
    if stands_alone(image):
        return []
    names = (name_on_disk(image, line.name) for line in extent_lines(image) if line.name)
    own = image.file.path if image.header is not None else ""
    return [name for name in dict.fromkeys(names) if not is_own_name(name, own)]


def _printable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


# ---- inspect ------------------------------------------------------------------------------------


def inspect(name: str, fd: int, size: int) -> Inspection:
    """As `td_inspect`."""
    head = os.pread(fd, HEAD_BYTES, 0)
    kind = kind_of(head)
    if kind == "hosted":
        return _with_hidden_hints(_inspect_hosted(name, fd, size, SparseHeader.unpack(head)), fd)
    if kind == "cowd":
        header = CowdHeader.unpack(head)
        said = _inspection_of_lone(name, header.capacity, ["vmfsSparse (COWD)"], [])
        return _with_hidden_hints(said, fd)
    if kind == "sesparse":
        return _inspection_of_lone(name, SeSparseHeader.unpack(head).capacity, ["seSparse"], [])
    refuse_other_content(head, size)
    descriptor = Descriptor.parse(os.pread(fd, size, 0))
    lines = descriptor.extents()
    sectors = sum(line.sectors for line in lines)
    return _inspection(descriptor, lines, sectors, [], [])


def _inspect_hosted(name: str, fd: int, size: int, header: SparseHeader) -> Inspection:
    if header.capacity:
        header.check()
    features = [f"version {header.version}"]
    for flag, text in (
        (FLAG_COMPRESSED, "compressed grains"),
        (FLAG_MARKERS, "markers"),
        (FLAG_ZEROED, "zeroed grains"),
        (FLAG_REDUNDANT, "redundant grain directory"),
    ):
        if header.flags & flag:
            features.append(text)
    findings = []
    if header.unclean:
        findings.append(Finding("note", "its last writer did not close it", "not-closed"))
    if header.flags & FLAG_NEWLINE and header.newlines != NEWLINES:
        text = "line ends were changed in it: it went through a transfer of text, and is damaged"
        findings.append(Finding("note", text, "line-ends"))

    def read(offset: int, count: int) -> bytes:
        return os.pread(fd, count, offset)

    if header.capacity:
        findings += losses_of(fd, size, header)
    descriptor = embedded_descriptor(header, size, read)
    if descriptor is None:
        descriptor = descriptor_behind_header(read)
        if descriptor is not None:
            findings.append(Finding("note", NOT_NAMED, "descriptor-not-named"))
    if descriptor is None:
        return _inspection_of_lone(name, header.capacity, features, findings)
    lines = descriptor.extents()
    sectors = sum(line.sectors for line in lines)
    if header.capacity:
        sectors = own_sectors(descriptor, header.capacity, header.grain)
        if len(lines) == 1 and _may_be_own_name(lines[0].name):
            lines = []  # the file itself, by whatever name it once had
    else:
        lines = [line for line in lines if not is_own_name(descriptor.meant(line.name), name)]
    return _inspection(descriptor, lines, sectors, features, findings)


def _with_hidden_hints(said: Inspection, fd: int) -> Inspection:
    """Add the parents that stand where QEMU looks for them, whatever the header says."""
    raw = os.pread(fd, _QEMU_BYTES, _QEMU_OFFSET).split(b"\0", 1)[0]
    text = Descriptor(encoding.from_bytes(raw).splitlines())
    hidden = [("parent", text.meant(hint)) for hint in text.hints()]
    references = (*said.references, *(each for each in hidden if each not in said.references))
    return attrs.evolve(said, references=references)


def _may_be_own_name(name: str) -> bool:
    """Whether a name can be that of the file that it stands in: it leads nowhere else."""
    return not any(c in name for c in "/\\:") and name not in ("", ".", "..")


def _inspection_of_lone(
    name: str, sectors: int, features: list[str], findings: list[Finding]
) -> Inspection:
    """Of a sparse file without a descriptor, which names nothing."""
    notes = (Finding("note", lone_extent(name), "lone-extent"), *findings)
    return Inspection(sectors * 512, tuple(features), (), notes)


def _inspection(
    descriptor: Descriptor,
    lines: list[ExtentLine],
    sectors: int,
    features: list[str],
    findings: list[Finding],
) -> Inspection:
    kind = descriptor.create_type or "custom"
    try:
        kind = kind_of_disk(descriptor, kind)
    except NotSupportedError as exc:
        findings.append(Finding("danger", exc.message, "not-supported"))
    if descriptor.has_parent and not descriptor.hints():
        text = "it has a parent, but does not say where that is"
        findings.append(Finding("note", text, "parent-not-recorded"))
    references = [("extent", line.name) for line in lines if line.name]
    references += [("parent", hint) for hint in descriptor.hints()]
    if tracking := descriptor.get("changeTrackPath"):
        references.append(("change tracking file", tracking))
    named = tuple((role, descriptor.meant(each)) for role, each in references)
    if any(line.kind in _DANGEROUS_KINDS for line in lines):
        text = "it stands for a raw device of its host"
        findings.append(Finding("danger", text, "host-device"))
    return Inspection(sectors * 512, (kind, *features), named, tuple(findings))
