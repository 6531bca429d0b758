"""Where a descriptor is kept, and changing it so that at every moment there is a whole one."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

import attrs

from tap_vmdk.descriptor.text import MAX_DESCRIPTOR, NO_PARENT, PARENT_HINT, Descriptor, random_cid
from tap_vmdk.signature import kind_of
from tap_vmdk.sparse.header import HEADER_BYTES, SparseHeader
from tap_vmdk.sparse.sizes import round_up
from tapcore import ImageFile, ImageFormatError, NotSupportedError

Reader = Callable[[int, int], bytes]
"""The bytes of a file from an offset on, so many, or those that there are."""

BEHIND_HEADER: Final = 1
"""The sector where writers put a descriptor, and QEMU looks for it whatever the header says."""
_USUAL_SECTORS: Final = 20
NOT_NAMED: Final = "its header does not say where its descriptor is, which lies behind the header"

_CID: Final = rb"(?m)^[ \t]*CID[ \t]*=[ \t]*\"?([0-9A-Fa-f]{6,8})\b"
_PARENT_CID: Final = rb"(?mi)^[ \t]*parentCID[ \t]*=[ \t]*\"?([0-9A-Fa-f]{6,8})\b"
_UUID: Final = rb"^[ \t]*%s[ \t]*=[ \t]*\"?\{?([0-9A-F-]{36})\b"
_PLACE: Final = struct.Struct("<QQ")
_PLACE_OFFSET: Final = 28
"""Of the header's fields `descriptorOffset` and `descriptorSize`."""


@attrs.define(eq=False, repr=False)
class DescriptorPlace:
    """Where a descriptor is kept.

    Attributes:
        file: that holds it.
        offset: bytes.
        room: bytes; None where it is a file of its own.
    """

    file: ImageFile
    offset: int = 0
    room: int | None = None

    def text(self) -> bytes:
        """What is there now, without the zeroes behind it."""
        size = self.file.size if self.room is None else self.room
        return self.file.read_metadata(self.offset, size).split(b"\0", 1)[0]

    def is_cut(self) -> bool:
        """Whether more of the text may follow: behind a zero byte, or past its room."""
        size = self.file.size if self.room is None else self.room
        text, _, rest = self.file.read_metadata(self.offset, size).partition(b"\0")
        return any(rest) or len(text) == self.room

    def write(self, descriptor: Descriptor) -> None:
        """Replace all of it, on disk when this returns.

        Within a sparse file the header refers to a copy meanwhile, so that a crash leaves the old
        one or the new one. A file of its own is replaced by one write, once it is long enough.

        Raises:
            NotSupportedError: it does not fit any more.
            OSError: as the system says.
        """
        text = descriptor.serialise()
        if self.room is None:
            self._write_file(text)
        else:
            self._write_embedded(text, self.room)

    def _write_file(self, text: bytes) -> None:
        size = self.file.size
        if len(text) > size:
            self._extend(size, len(text) - size)
        self.file.write_metadata(0, text.ljust(size, b"\n"))
        if self.file.size != len(text):
            self.file.resize(len(text))
        self._flush()

    def _extend(self, size: int, more: int) -> None:
        """Take the space for a longer text; without it the file stays as it is."""
        try:
            self.file.write_metadata(size, b"\n" * more)
        except OSError:
            self.file.resize(size)
            raise

    def _write_embedded(self, text: bytes, room: int) -> None:
        """Only as many sectors are written as the old text has, or are free."""
        sectors = round_up(max(len(text), len(self.text())), 512)
        if sectors > room or any(self._after(sectors)):
            raise NotSupportedError("has no room for so long a descriptor")
        header = SparseHeader.unpack(self.file.read_metadata(0, HEADER_BYTES))
        size = self.file.size
        for offset, length in ((round_up(size, 512), room), (self.offset, sectors)):
            self.file.write_metadata(offset, text.ljust(length, b"\0"))
            self._flush()
            here = header._replace(descriptor_offset=offset // 512)
            self.file.write_metadata(0, here.pack())
            self._flush()
        self.file.resize(size)

    def _after(self, end: int) -> bytes:
        """What lies behind the sectors of the present text, up to an end (bytes from its start)."""
        start = round_up(len(self.text()), 512)
        return self.file.read_metadata(self.offset + start, end - start) if end > start else b""

    def _flush(self) -> None:
        self.file.make_safe()

    # ---- in place ---------------------------------------------------------------------------

    def cid_digits(self) -> int:
        """How long the content id is, as it stands there."""
        found = re.search(_CID, self.text())
        return len(found[1]) if found else 8

    def next_cid(self, cid: int) -> int:
        """A content id that is not torn when power fails while `write_ids` puts it there.

        Where the digits lie in two sectors, only those in one of them change.

        Args:
            cid: the present one.
        """
        found = re.search(_CID, self.text())
        if found is None:
            return random_cid(cid)
        digits = len(found[1])
        first = min(-(self.offset + found.start(1)) % 512, digits)  # of them in the first sector
        last = (1 << 4 * (digits - first)) - 1
        changing = last if digits - first > first else ~last & NO_PARENT
        return random_cid(cid, digits, changing)

    def write_ids(self, descriptor: Descriptor) -> None:
        """Put what tells of a change into the file: the content id, and for VirtualBox a UUID; in
        place where they have the same length.

        On disk when this returns: else content that changes after it could be there without it
        after a crash, and no child would know.

        Raises:
            NotSupportedError, OSError: as `write`.
        """
        from tap_vmdk.descriptor.ids import MODIFIED, uuid_of

        told = uuid_of(descriptor, MODIFIED) is None or self._write_uuid(descriptor, MODIFIED)
        if told and self._write_digits(_CID, descriptor.cid):
            self._flush()
        else:
            self.write(descriptor)

    def write_parent_cid(self, descriptor: Descriptor) -> None:
        """The same for the content id of the parent."""
        if not self._write_digits(_PARENT_CID, descriptor.parent_cid):
            self.write(descriptor)

    def write_uuid(self, descriptor: Descriptor, key: str) -> None:
        """The same for an entry that is a UUID."""
        if self._write_uuid(descriptor, key):
            self._flush()
        else:
            self.write(descriptor)

    def _write_uuid(self, descriptor: Descriptor, key: str) -> bool:
        found = re.search(_UUID % re.escape(key).encode(), self.text(), re.M | re.I)
        if found is None:
            return False
        from tap_vmdk.descriptor.ids import quoted, uuid_of

        value = quoted(uuid_of(descriptor, key)).strip('"').encode()
        self.file.write_metadata(self.offset + found.start(1), value)
        return True

    def _write_digits(self, entry: bytes, cid: int) -> bool:
        found = re.search(entry, self.text())
        if found is None:
            return False
        digits = b"%0*x" % (len(found[1]), cid)
        if len(digits) != len(found[1]):
            return False
        self.file.write_metadata(self.offset + found.start(1), digits)
        return True

    def add_line(self, line: bytes) -> None:
        """Put a line behind the text, on disk when this returns; it may be cut by a crash.

        Raises:
            NotSupportedError: there is no room.
            OSError: as the system says; the text is as it was.
        """
        text = self.text()
        line = b"\n" + line + b"\n"
        if self.room is None:
            try:
                self.file.write_metadata(len(text), line)
            except OSError:
                self.file.resize(len(text))
                raise
        else:
            if len(text) + len(line) > self.room or any(self._after(len(text) + len(line))):
                raise NotSupportedError("has no room for a longer descriptor")
            self.file.write_metadata(self.offset + len(text), line)
        self._flush()

    def remove_last_line(self) -> None:
        """Take back what `add_line` has added, on disk when this returns."""
        text = self.text()
        kept = len(text.rstrip(b"\n").rpartition(b"\n")[0])
        if self.room is None:
            self.file.resize(kept)
        else:
            self.file.write_metadata(self.offset + kept, bytes(len(text) - kept))
        self._flush()


# ---- where a sparse file has it ------------------------------------------------------------------


def place_in(file: ImageFile, header: SparseHeader) -> DescriptorPlace:
    """Where the descriptor of a sparse file lies, as its header says.

    Args:
        file: the sparse file.
        header: of it, with a descriptor.
    """
    return DescriptorPlace(file, header.descriptor_offset * 512, header.descriptor_room * 512)


def embedded_descriptor(header: SparseHeader, file_size: int, read: Reader) -> Descriptor | None:
    """The descriptor in a sparse file, where the header says that it is.

    Args:
        header: of the file.
        file_size: bytes.
        read: of the file.

    Returns:
        None where there is none. An extent of a split disk may have room for one (QEMU's).

    Raises:
        ImageFormatError: it lies outside the file, makes no sense, or is missed.
    """
    offset, size = header.descriptor_offset * 512, header.descriptor_size * 512
    raw = b""
    if offset and size:
        if size > MAX_DESCRIPTOR or offset + size > file_size:
            raise ImageFormatError("has a descriptor that lies outside the file, or is too long")
        raw = read(offset, size)
    if any(raw):
        return Descriptor.parse(raw)
    if not header.capacity:
        raise ImageFormatError("has neither a size nor a descriptor")
    return None


def descriptor_in(head: bytes, file_size: int, read: Reader) -> Descriptor | None:
    """The descriptor in a file that may be anything, or that the file is; None where none is.

    Args:
        head: what the file begins with.
        file_size: bytes.
        read: of the file.

    Raises:
        ImageFormatError: as `embedded_descriptor`.
    """
    kind = kind_of(head)
    if kind == "hosted":
        return embedded_descriptor(SparseHeader.unpack(head), file_size, read)
    if kind != "descriptor" or file_size > MAX_DESCRIPTOR:
        return None
    return Descriptor.parse(read(0, file_size))


def descriptor_behind_header(read: Reader) -> Descriptor | None:
    """The descriptor of a sparse file whose header says that there is none.

    The header is damaged then. What it hides may name a parent, which QEMU opens: without that all
    holes of the disk would read as zeroes.

    Args:
        read: of the file.

    Returns:
        None where there is none: it is one extent of a disk.

    Raises:
        ImageFormatError, NotSupportedError: there is one, and it makes no sense.
    """
    raw = read(BEHIND_HEADER * 512, _USUAL_SECTORS * 512).split(b"\0", 1)[0]
    if kind_of(raw) == "descriptor" or PARENT_HINT.encode() in raw or b"createType" in raw:
        return Descriptor.parse(raw)
    return None


def naming(header: SparseHeader, read: Reader) -> SparseHeader:
    """A header as it ought to be whose descriptor lies behind it, and which does not say so.

    An image is read by this one before it is mended, so that it reads the same afterwards.

    Args:
        header: as it is.
        read: of the file.
    """
    raw = read(BEHIND_HEADER * 512, _USUAL_SECTORS * 512)
    text = raw.split(b"\0", 1)[0]
    usual = header._replace(descriptor_offset=BEHIND_HEADER, descriptor_size=_USUAL_SECTORS)
    room = usual.descriptor_room
    if header.overhead:
        room = min(room, header.overhead - BEHIND_HEADER)
    sectors = round_up(len(text), 512) // 512
    if not any(raw[len(text) : room * 512]):
        sectors = max(sectors, room)
    return header._replace(descriptor_offset=BEHIND_HEADER, descriptor_size=sectors)


def name_in_header(file: ImageFile, header: SparseHeader) -> None:
    """Let the header in a file say where its descriptor is; on disk when this returns.

    Args:
        file: a sparse one.
        header: that says it.

    Raises:
        OSError: as the system says.
    """
    place = _PLACE.pack(header.descriptor_offset, header.descriptor_size)
    file.write_metadata(_PLACE_OFFSET, place)
    file.make_safe()
