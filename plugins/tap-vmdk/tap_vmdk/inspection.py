"""What an image from a stranger says of itself, for `inspect`: its header and its descriptor."""

from __future__ import annotations

import os
from typing import Final

import attrs

from tap_vmdk.descriptor import encoding
from tap_vmdk.descriptor.disktypes import kind_of_disk, lone_extent, own_sectors
from tap_vmdk.descriptor.place import NOT_NAMED, descriptor_behind_header, embedded_descriptor
from tap_vmdk.descriptor.text import Descriptor, ExtentLine
from tap_vmdk.identity import is_own_name, refuse_other_content
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
from tapcore import Finding, Inspection, NotSupportedError

_QEMU_OFFSET, _QEMU_BYTES = 512, 20 * 512
"""Where QEMU looks for the parent of a sparse file."""
_DANGEROUS_KINDS: Final = ("VMFSRDM", "VMFSRAW")


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
