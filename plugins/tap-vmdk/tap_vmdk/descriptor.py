"""The descriptor: the text that says what a disk is made of ("Virtual Disk Format 5.0", page 4).

It is a file of its own, or lies inside a sparse file behind its header. Lines are kept as they
are, so that what is not understood survives a change of the rest.
"""

from __future__ import annotations

import os
import re
from typing import Final

import attrs

from tapcore import ImageFormatError, NotSupportedError

MAX_DESCRIPTOR: Final = 1 << 20
"""Bytes; a disk of 62 TiB in extents of 2 GiB has a descriptor of about this size."""
MAX_EXTENTS: Final = 32768
NO_PARENT: Final = 0xFFFFFFFF
"""`parentCID` of a disk that stands alone."""

_ENTRY = re.compile(r'\s*([A-Za-z0-9_.]+)\s*=\s*(?:"([^"]*)"|([^"]*?))\s*$')
_EXTENT = re.compile(
    r'\s*(RW|RDONLY|NOACCESS)\s+(\d{1,20})\s+(\w+)(?:\s+"([^"]*)"(?:\s+(\d{1,20}))?)?',
    re.IGNORECASE,
)
_ACCESS = re.compile(r"\s*(RW|RDONLY|NOACCESS)\s", re.IGNORECASE)
_ENCODING = re.compile(rb'^[ \t]*encoding[ \t]*=[ \t]*"?([A-Za-z0-9_-]{1,32})', re.M | re.I)
_ENCODINGS: Final = {
    "utf-8": "utf-8",
    "windows-1252": "cp1252",
    "windows-1251": "cp1251",
    "iso-8859-1": "latin-1",
    "shift_jis": "shift_jis",
    "gbk": "gbk",
    "gb18030": "gb18030",
    "big5": "big5",
    "euc-kr": "euc_kr",
}
"""What VMware writes after `encoding=`, and Python's names for it."""


@attrs.frozen
class ExtentLine:
    """One line of the extent description.

    Attributes:
        access: "RW", "RDONLY" or "NOACCESS".
        sectors: length on the disk.
        kind: "FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "SESPARSE", "VMFSRDM", ...
        name: of the file; empty where the kind has none.
        offset: of the content in a flat file, in sectors.
    """

    access: str
    sectors: int
    kind: str
    name: str = ""
    offset: int = 0

    def __str__(self) -> str:
        text = f"{self.access} {self.sectors} {self.kind}"
        if self.name:
            text += f' "{self.name}"'
        if self.kind in ("FLAT", "VMFS"):
            text += f" {self.offset}"
        return text


class Descriptor:
    """A parsed descriptor.

    Args:
        lines: its text.
        encoding: of the file (Python's name).

    Attributes:
        lines: as given, and changed by `set`.
        encoding: as given.
    """

    __slots__ = ("encoding", "lines")

    def __init__(self, lines: list[str], encoding: str = "utf-8") -> None:
        self.lines = lines
        self.encoding = encoding

    @classmethod
    def parse(cls, raw: bytes) -> Descriptor:
        """From the bytes of a descriptor, padded with zeroes or not.

        Raises:
            ImageFormatError: no text of this kind.
        """
        raw = raw.split(b"\0", 1)[0]
        found = _ENCODING.search(raw)
        name = found[1].decode("ascii").lower() if found else "utf-8"
        encoding = _ENCODINGS.get(name, "utf-8")
        text = raw.decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")
        self = cls([line.rstrip("\r") for line in text.split("\n")], encoding)
        if self.get("createType") is None and self.get("CID") is None:
            raise ImageFormatError("has no descriptor that could be understood")
        return self

    def serialise(self) -> bytes:
        """The text as bytes, ending in a newline."""
        errors = "surrogateescape" if self.encoding == "utf-8" else "replace"
        return ("\n".join(self.lines).rstrip("\n") + "\n").encode(self.encoding, errors)

    # ---- entries ----------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """The value of the first entry of a name, without its quotes; None where it is not."""
        place = self._find(key)
        return None if place is None else _value(self.lines[place])

    def set(self, key: str, value: str, *, after: str = "") -> None:
        """Change an entry, or add it behind another one.

        Args:
            key: its name.
            value: as it is written, with quotes where they belong.
            after: an entry that exists.
        """
        place = self._find(key)
        if place is not None:
            self.lines[place] = f"{key}={value}"
            return
        before = self._find(after)
        self.lines.insert(len(self.lines) if before is None else before + 1, f"{key}={value}")

    def remove(self, key: str) -> None:
        """Drop an entry, if it is there."""
        place = self._find(key)
        if place is not None:
            del self.lines[place]

    def _find(self, key: str) -> int | None:
        key = key.lower()
        for number, line in enumerate(self.lines):
            if key in line.lower():
                found = _ENTRY.match(line)
                if found and found[1].lower() == key:
                    return number
        return None

    @property
    def create_type(self) -> str:
        """The kind of disk ("monolithicSparse"); empty where it is not said."""
        return self.get("createType") or ""

    @property
    def cid(self) -> int:
        """The content's id, changed with the first write after each open."""
        return self._hex("CID")

    @property
    def parent_cid(self) -> int:
        """The content id that the parent must have; `NO_PARENT` for a disk that stands alone."""
        return self._hex("parentCID") if self.get("parentCID") is not None else NO_PARENT

    @property
    def parent_hint(self) -> str:
        """Where the parent is."""
        return self.get("parentFileNameHint") or ""

    def _hex(self, key: str) -> int:
        text = self.get(key) or ""
        if not re.fullmatch(r"[0-9A-Fa-f]{1,8}", text):
            raise ImageFormatError(f"has no proper {key} in its descriptor")
        return int(text, 16)

    def new_cid(self, digits: int = 8) -> None:
        """Say that the content is another now, by an id of so many digits."""
        self.set("CID", f"{random_cid(self.cid, digits):0{digits}x}")

    # ---- extents ----------------------------------------------------------------------------

    def extents(self) -> list[ExtentLine]:
        """The extent description.

        Raises:
            ImageFormatError: a line that says nothing sensible, or too many of them.
        """
        found = []
        for number, line in enumerate(self.lines, 1):
            if not _ACCESS.match(line):
                continue
            match = _EXTENT.match(line)
            if match is None:
                raise ImageFormatError(f"has a damaged extent in line {number} of its descriptor")
            access, sectors, kind, name, offset = match.groups()
            extent = ExtentLine(
                access.upper(), int(sectors), kind.upper(), name or "", int(offset or 0)
            )
            if not 0 < extent.sectors < 1 << 53 or extent.offset >= 1 << 53:
                raise ImageFormatError(
                    f"has an impossible extent in line {number} of its descriptor"
                )
            found.append(extent)
        if len(found) > MAX_EXTENTS:
            raise ImageFormatError(f"has more than {MAX_EXTENTS} extents")
        return found

    def replace_extents(self, extents: list[ExtentLine]) -> None:
        """Write other extent lines in the place of those that there are."""
        places = [n for n, line in enumerate(self.lines) if _ACCESS.match(line)]
        first = places[0] if places else len(self.lines)
        rest = [line for n, line in enumerate(self.lines) if n not in places]
        self.lines = rest[:first] + [str(extent) for extent in extents] + rest[first:]

    def refuse_encrypted(self) -> None:
        """Raise for a disk whose content is encrypted.

        Raises:
            NotSupportedError: always with the reason.
        """
        for line in self.lines:
            key = line.split("=", 1)[0].strip().lower()
            filters = key == "ddb.iofilters" and "crypt" in line.lower()
            if key.startswith(("encryption.", "ddb.encryption")) or filters:
                raise NotSupportedError("is encrypted by VMware, which is not supported")


def _value(line: str) -> str:
    found = _ENTRY.match(line)
    assert found is not None
    return found[2] if found[2] is not None else found[3]


def random_cid(other: int = 0, digits: int = 8) -> int:
    """A new content id: neither `other` nor one of those that mean something else."""
    while True:
        cid = int.from_bytes(os.urandom(4), "little") >> (32 - 4 * digits)
        if cid not in (other, 0, NO_PARENT, NO_PARENT - 1):
            return cid
