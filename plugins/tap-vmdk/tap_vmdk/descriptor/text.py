"""The descriptor: the text that says what a disk is made of ("Virtual Disk Format 5.0", page 4).

It is a file of its own, or lies inside a sparse file behind its header. Lines are kept as they
are, byte for byte, so that what is not understood survives a change of the rest.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final, NamedTuple

from tap_vmdk.descriptor import encoding
from tap_vmdk.signature import BOM, UTF16_BOMS
from tapcore import ImageFormatError, NotSupportedError

MAX_DESCRIPTOR: Final = 1 << 20
"""Bytes; a disk of 62 TiB in extents of 2 GiB has a descriptor of about this size."""
MAX_EXTENTS: Final = 32768
NO_PARENT: Final = 0xFFFFFFFF
"""`parentCID` of a disk that stands alone."""
PARENT_HINT: Final = "parentFileNameHint"
PARENT_UUID: Final = "ddb.uuid.parent"
"""Of VirtualBox, which says by this alone that a disk has a parent."""

_KEY = re.compile(r"[A-Za-z0-9_.]+")
_EXTENT = re.compile(
    r"\s*(RW|RDONLY|NOACCESS)\s+(\d{1,20})\s+(\w+)"
    r'(?:\s+"([^"]*)"(?:\s+(\d{1,20})(\s.*)?)?)?\s*$',
    re.IGNORECASE,
)
_ACCESS = re.compile(r"\s*(RW|RDONLY|NOACCESS)(?:\s|$)", re.IGNORECASE)
_HEX = re.compile(r"[0-9A-Fa-f]{1,8}")
_LINE_END = re.compile(r"\r\n|\n|\r")
_HINT_ANYWHERE: Final = r'(?i)parentFileNameHint\s*=?\s*"?([^"\r\n]*)'
_QEMU_NAME: Final = 4096
"""QEMU takes no longer name of a parent (it has room for 1024 bytes)."""
_NAMELESS: Final = ("ZERO",)
"""Kinds of extents that lie in no file."""


class ExtentLine(NamedTuple):
    """One line of the extent description.

    Attributes:
        access: "RW", "RDONLY" or "NOACCESS".
        sectors: length on the disk.
        kind: "FLAT", "SPARSE", "ZERO", "VMFS", "VMFSSPARSE", "SESPARSE", "VMFSRDM", ...
        name: of the file, as the descriptor's bytes have it; empty where the kind has none.
        offset: of the content in a flat file, in sectors.
        rest: what follows on the line: a partition's or device's id, which nothing here needs.
    """

    access: str
    sectors: int
    kind: str
    name: str = ""
    offset: int = 0
    rest: str = ""

    def __str__(self) -> str:
        text = f"{self.access} {self.sectors} {self.kind}"
        if self.name:
            text += f' "{self.name}"'
        if self.kind in ("FLAT", "VMFS"):
            text += f" {self.offset}"
        return text + self.rest

    def describe(self) -> dict[str, Any]:
        """For `info`."""
        named = {"filename": self.name} if self.name else {}
        return {"type": self.kind, "access": self.access, "size": self.sectors * 512, **named}


class Descriptor:
    """A parsed descriptor.

    Args:
        lines: its text, without line ends.
        newline: what ends its lines.
        bom: it begins with a byte order mark.

    Attributes:
        lines: as given, and changed by `set`; bytes that are no UTF-8 are in them as surrogates.
        newline: as given.
        bom: as given.
    """

    __slots__ = ("_codec", "bom", "lines", "newline")

    def __init__(self, lines: list[str], *, newline: str = "\n", bom: bool = False) -> None:
        self.lines = lines
        self.newline = newline
        self.bom = bom
        self._codec: str | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Descriptor:
        """From the bytes of a descriptor, padded with zeroes or not.

        Raises:
            ImageFormatError: no text of this kind.
            NotSupportedError: text in 16 bits.
        """
        if raw[:2] in UTF16_BOMS:
            raise NotSupportedError("has a descriptor in UTF-16; only one in UTF-8 can be read")
        bom = raw.startswith(BOM)
        text = encoding.from_bytes(raw[len(BOM) if bom else 0 :].split(b"\0", 1)[0])
        ends = _LINE_END.findall(text)
        newline = max(("\n", "\r\n", "\r"), key=ends.count)
        self = cls(_LINE_END.split(text), newline=newline, bom=bom)
        if self.get("createType") is None and self.get("CID") is None:
            raise ImageFormatError("has no descriptor that could be understood")
        self._refuse_second()
        return self

    def _refuse_second(self) -> None:
        """Raise where a second descriptor follows: its extents would be taken for more of the
        first one's."""
        for key in ("version", "createType"):
            first = self._find(key)
            again = None if first is None else self._find(key, first + 1)
            if again is not None:
                raise ImageFormatError(
                    f"has two descriptors: line {again + 1} of it says {key} again"
                )

    def copy(self) -> Descriptor:
        """Another one with the same text."""
        return Descriptor(list(self.lines), newline=self.newline, bom=self.bom)

    def serialise(self) -> bytes:
        """The text as bytes, ending in a newline."""
        text = self.newline.join(self.lines).rstrip("\r\n") + self.newline
        return (BOM if self.bom else b"") + encoding.as_bytes(text)

    # ---- names ------------------------------------------------------------------------------

    @property
    def encoding(self) -> str:
        """Python's name of the encoding that names are in; empty where it is not said, or not
        known."""
        if self._codec is None:
            said = self.get("encoding") or self.get("ddb.encoding") or ""
            self._codec = encoding.codec_of(said)
        return self._codec

    def meant(self, name: str) -> str:
        """A name of the descriptor as its writer meant it, for people and for file systems."""
        return encoding.decoded(name, self.encoding)

    def set_name(self, key: str, name: str, *, after: str = "") -> None:
        """Record a file's name so that every program finds the file.

        Where all else is ASCII the descriptor becomes one in UTF-8, which those that know no
        encodings read right too; else the name is written as the other names are.

        Args:
            key: of the entry.
            name: of the file.
            after: as of `set`.

        Raises:
            NotSupportedError: the descriptor's encoding cannot say it.
        """
        codec = self.encoding
        if not name.isascii() and codec not in ("", encoding.UTF8):
            others = (n for n in range(len(self.lines)) if n != self._find(key))
            if all(self.lines[n].isascii() for n in others):
                for entry in ("encoding", "ddb.encoding"):
                    if self.get(entry) is not None:
                        self.set(entry, '"UTF-8"')
            else:
                name = _encoded(name, codec)
        self.set(key, f'"{name}"', after=after)

    # ---- entries ----------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """The value of the first entry of a name, without its quotes; None where it is not."""
        place = self._find(key)
        entry = None if place is None else _entry(self.lines[place])
        return None if entry is None else entry[1]

    def set(self, key: str, value: str, *, after: str = "") -> None:
        """Change an entry, or add it behind another one.

        Args:
            key: its name.
            value: as it is written, with quotes where they belong.
            after: an entry that exists.
        """
        self._codec = None
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

    def _find(self, key: str, start: int = 0) -> int | None:
        key = key.lower()
        for number in range(start, len(self.lines)):
            if key in self.lines[number].lower():
                found = _entry(self.lines[number])
                if found and found[0].lower() == key:
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
    def has_cid(self) -> bool:
        """Whether it has such an id, which only those need that are, or become, a parent."""
        return _HEX.fullmatch(self.get("CID") or "") is not None

    @property
    def parent_cid(self) -> int:
        """The content id that the parent must have; `NO_PARENT` for a disk that stands alone."""
        return self._hex("parentCID") if self.get("parentCID") is not None else NO_PARENT

    @property
    def parent_hint(self) -> str:
        """Where the parent is."""
        return self.get(PARENT_HINT) or ""

    @property
    def has_parent(self) -> bool:
        """Whether it says, in VMware's way or in VirtualBox's, that there is a parent."""
        uuid = (self.get(PARENT_UUID) or "").strip("{} ")
        return self.parent_cid != NO_PARENT or bool(uuid.strip("0-"))

    def hints(self) -> list[str]:
        """Every place where some program might look for a parent: wherever the entry's name
        stands, and even where there is said to be no parent.

        For QEMU the name is all between the second character behind the entry's name and the next
        quote, whatever and wherever that is.
        """
        found = [name for line in self.lines for name in re.findall(_HINT_ANYWHERE, line)]
        text = self.newline.join(self.lines)
        at = text.find(PARENT_HINT)
        if at >= 0:
            start = at + len(PARENT_HINT) + 2
            end = text.find('"', start)
            found.append(text[start:end] if 0 <= end - start < _QEMU_NAME else "")
        return [name for name in dict.fromkeys(found) if name.strip()]

    def _hex(self, key: str) -> int:
        text = self.get(key) or ""
        if not _HEX.fullmatch(text):
            raise ImageFormatError(f"has no proper {key} in its descriptor")
        return int(text, 16)

    def hex_or_none(self, key: str) -> int | None:
        """The value of an entry that is a content id; None where it is not there, or is none."""
        text = self.get(key) or ""
        return int(text, 16) if re.fullmatch(r"[0-9A-Fa-f]{8}", text) else None

    def new_cid(self, digits: int = 8) -> None:
        """Say that the content is another now, by an id of so many digits."""
        old = self.cid if self.has_cid else 0
        self.set("CID", f"{random_cid(old, digits):0{digits}x}", after="version")

    # ---- extents ----------------------------------------------------------------------------

    def extents(self) -> list[ExtentLine]:
        """The extent description; lines of no sectors, which VirtualBox writes, are among it.

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
            access, sectors, kind, name, offset, rest = match.groups()
            extent = ExtentLine(
                access=access.upper(),
                sectors=int(sectors),
                kind=kind.upper(),
                name=name or "",
                offset=int(offset or 0),
                rest=(rest or "").rstrip(),
            )
            if not extent.name and extent.kind not in _NAMELESS:
                raise ImageFormatError(f"has a damaged extent in line {number} of its descriptor")
            if extent.sectors >= 1 << 53 or extent.offset >= 1 << 53:
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
        taken = set(places)
        rest = [line for n, line in enumerate(self.lines) if n not in taken]
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


def _entry(line: str) -> tuple[str, str] | None:
    """The name and value of a line that is an entry, the value without its quotes.

    Taken apart by hand: expressions for this need time of a higher order for hostile lines.
    """
    key, equals, value = line.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not _KEY.fullmatch(key):
        return None
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return None if '"' in value else (key, value)


def _encoded(name: str, codec: str) -> str:
    """A file's name in an encoding, as the text of a descriptor holds it."""
    if any("\udc80" <= c <= "\udcff" for c in name):
        return name  # no text at all: its bytes are what finds the file
    try:
        return encoding.from_bytes(name.encode(codec))
    except UnicodeEncodeError:
        raise NotSupportedError(
            f"has a descriptor in the encoding {codec}, which has no letters for that name"
        ) from None


def random_cid(other: int = 0, digits: int = 8, changing: int = NO_PARENT) -> int:
    """A new content id: neither `other` nor one of those that mean something else.

    Args:
        other: the present one.
        digits: hexadecimal.
        changing: bits that may differ from the present one's.
    """
    while True:
        cid = int.from_bytes(os.urandom(4), "little") >> (32 - 4 * digits)
        cid = other & ~changing | cid & changing
        if cid not in (other, 0, NO_PARENT, NO_PARENT - 1):
            return cid
