"""Which compression a file has, and whether it says that a disk is in it."""

from __future__ import annotations

import os
from typing import Final, Literal, TypeAlias

from tap_zraw.gzip.members import MAGIC as GZIP_MAGIC
from tap_zraw.xz.blocks import MAGIC as XZ_MAGIC
from tap_zraw.zstd.frames import MAGIC as ZSTD_MAGIC
from tap_zraw.zstd.frames import SKIPPABLE
from tapcore import ImageFormatError

Kind: TypeAlias = Literal["zstd", "xz", "gzip"]

_DISKS: Final = (".raw", ".img", ".dd")
_SUFFIXES: Final[dict[Kind, tuple[str, ...]]] = {
    "zstd": (".zst", ".zstd"),
    "xz": (".xz",),
    "gzip": (".gz", ".bgz"),
}
OTHER_SUFFIXES: Final = _SUFFIXES["xz"] + _SUFFIXES["gzip"]
"""Of what can only be read."""


def kind_of(head: bytes) -> Kind | None:
    """The compression of a file that begins so."""
    if head.startswith(ZSTD_MAGIC):
        return "zstd"
    if len(head) >= 8 and int.from_bytes(head[:4], "little") & ~15 == SKIPPABLE:
        return "zstd"
    if head.startswith(XZ_MAGIC):
        return "xz"
    return "gzip" if head.startswith(GZIP_MAGIC) else None


def needed_kind(head: bytes) -> Kind:
    """The same; raises ImageFormatError where it has none that is known."""
    kind = kind_of(head)
    if kind is None:
        raise ImageFormatError("is not compressed with zstd, xz or gzip")
    return kind


def is_named_disk(name: str, kind: Kind) -> bool:
    """Whether a file's name says that a raw disk is in it: `NAME.raw.zst`, `NAME.img.xz`, ...

    A file that is only compressed may hold anything.
    """
    stem, suffix = os.path.splitext(name.lower())
    return suffix in _SUFFIXES[kind] and os.path.splitext(stem)[1] in _DISKS
