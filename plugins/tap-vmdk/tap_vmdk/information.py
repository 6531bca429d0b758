"""What an image says of itself: for `info`, and for `inspect` of one from a stranger."""

from __future__ import annotations

import os
from typing import Any

from tap_vmdk import sparse
from tap_vmdk.cowd import CowdHeader
from tap_vmdk.descriptor import MAX_DESCRIPTOR, NO_PARENT, Descriptor, ExtentLine
from tap_vmdk.image import Image
from tap_vmdk.opening import refuse_kind
from tap_vmdk.sesparse import SeSparseHeader
from tap_vmdk.signature import kind_of
from tap_vmdk.sparse import SparseHeader
from tapcore import Finding, ImageFormatError, Inspection, NotSupportedError

_DANGEROUS_KINDS = ("VMFSRDM", "VMFSRAW")


def describe(image: Image) -> dict[str, Any]:
    """The `format` object of `info --json`."""
    descriptor, header = image.descriptor, image.header
    clusters = [part.cluster for part in image.parts if part.cluster]
    found: dict[str, Any] = {
        "subformat": image.subformat,
        "grain_size": max(clusters, default=header.grain * 512 if header else None),
        "cid": None,
        "parent_cid": None,
        "extents": _extents(image),
    }
    if descriptor is not None:
        found["cid"] = f"{descriptor.cid:08x}"
        found["parent_cid"] = f"{descriptor.parent_cid:08x}"
        for key, entry in (
            ("adapter_type", "ddb.adapterType"),
            ("hwversion", "ddb.virtualHWVersion"),
        ):
            found[key] = _printable(descriptor.get(entry))
    if header is not None:
        found["version"] = header.version
        found["compressed"] = header.compressed
        found["zeroed_grain"] = bool(header.flags & sparse.FLAG_ZEROED)
        found["unclean_shutdown"] = bool(header.unclean)
    return found


def _extents(image: Image) -> list[dict[str, Any]]:
    if image.parts:
        return [part.describe() for part in image.parts]
    lines = image.descriptor.extents() if image.descriptor is not None else []
    return [
        {
            "type": line.kind,
            "access": line.access,
            "size": line.sectors * 512,
            "filename": _printable(line.name),
        }
        for line in lines
    ]


def _printable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()


# ---- inspect ------------------------------------------------------------------------------------


def inspect(name: str, fd: int, size: int) -> Inspection:
    """As `td_inspect`."""
    head = os.pread(fd, 4096, 0)
    kind = kind_of(head)
    if kind == "hosted":
        return _inspect_hosted(name, fd, size, SparseHeader.unpack(head))
    if kind == "cowd":
        header = CowdHeader.unpack(head)
        return Inspection(header.capacity * 512, ("vmfsSparse (COWD)",))
    if kind == "sesparse":
        return Inspection(SeSparseHeader.unpack(head).capacity * 512, ("seSparse",))
    if kind != "descriptor" and b"createType" not in head:
        raise ImageFormatError("is not a VMDK")
    if size > MAX_DESCRIPTOR:
        raise ImageFormatError(f"is longer than a descriptor may be ({MAX_DESCRIPTOR} bytes)")
    descriptor = Descriptor.parse(os.pread(fd, size, 0))
    lines = descriptor.extents()
    sectors = sum(line.sectors for line in lines)
    return _inspection(descriptor, lines, sectors, [descriptor.create_type or "custom"], [])


def _inspect_hosted(name: str, fd: int, size: int, header: SparseHeader) -> Inspection:
    if header.capacity:
        header.check()
    features = [f"version {header.version}"]
    for flag, text in (
        (sparse.FLAG_COMPRESSED, "compressed grains"),
        (sparse.FLAG_MARKERS, "markers"),
        (sparse.FLAG_ZEROED, "zeroed grains"),
        (sparse.FLAG_REDUNDANT, "redundant grain directory"),
    ):
        if header.flags & flag:
            features.append(text)
    findings = []
    if header.unclean:
        findings.append(Finding("note", "its last writer did not close it"))
    if header.flags & sparse.FLAG_NEWLINE and header.newlines != sparse.NEWLINES:
        text = "line ends were changed in it: it went through a transfer of text, and is damaged"
        findings.append(Finding("note", text))
    if not header.descriptor_offset:
        return Inspection(header.capacity * 512, tuple(features), (), tuple(findings))
    offset, length = header.descriptor_offset * 512, header.descriptor_size * 512
    if not 0 < length <= MAX_DESCRIPTOR or offset + length > size:
        raise ImageFormatError("has a descriptor that lies outside the file, or is too long")
    descriptor = Descriptor.parse(os.pread(fd, length, offset))
    lines = descriptor.extents()
    sectors = header.capacity or sum(line.sectors for line in lines)
    if header.capacity and len(lines) == 1 and _is_own_name(lines[0].name):
        lines = []  # the file itself, by whatever name it once had
    return _inspection(
        descriptor, lines, sectors, [descriptor.create_type or "custom", *features], findings
    )


def _is_own_name(name: str) -> bool:
    """Whether a name can be that of the file that it stands in: it leads nowhere else."""
    return not any(c in name for c in "/\\:") and name not in ("", ".", "..")


def _inspection(
    descriptor: Descriptor,
    lines: list[ExtentLine],
    sectors: int,
    features: list[str],
    findings: list[Finding],
) -> Inspection:
    references = [("extent", line.name) for line in lines if line.name]
    if descriptor.parent_cid != NO_PARENT and descriptor.parent_hint:
        references.append(("parent", descriptor.parent_hint))
    if tracking := descriptor.get("changeTrackPath"):
        references.append(("change tracking file", tracking))
    try:
        refuse_kind(descriptor)
    except NotSupportedError as exc:
        findings.append(Finding("danger", exc.message))
    if any(line.kind in _DANGEROUS_KINDS for line in lines):
        findings.append(Finding("danger", "it stands for a raw device of its host"))
    return Inspection(sectors * 512, tuple(features), tuple(references), tuple(findings))
