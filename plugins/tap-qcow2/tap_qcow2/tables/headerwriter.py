"""Writing the header, so that a crash leaves the old one or the new one; and giving an image up."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tap_qcow2.ondisk import layout
from tap_qcow2.ondisk.header import ATOMIC
from tap_qcow2.tables.metadata import Metadata
from tapcore.clusters import Writeback

log = logging.getLogger(__name__)


class HeaderWriter:
    """Brings the header of one image to the disk.

    Args:
        name: of the image, for the log.
        metadata: of it.
        writeback: has to bring a moved refcount table to the disk before the header tells of it.
        read_only: nothing is ever written.
        on_broken: called when the image is given up.

    Attributes:
        broken: damage was found while the image was open: it is not written any more.
    """

    def __init__(
        self,
        name: str,
        metadata: Metadata,
        writeback: Writeback,
        on_broken: Callable[[], None],
        *,
        read_only: bool,
    ) -> None:
        self._name = name
        self._metadata = metadata
        self._file = metadata.file
        self._header = metadata.header
        self._writeback = writeback
        self._read_only = read_only
        self._on_broken = on_broken
        self.broken = False

    def write_fields(self) -> None:
        """Write the header's fixed part, and wait until it is on disk.

        Raises:
            OSError: as the system says.
        """
        self._settle_refcount_table()
        self._file.write_metadata(0, self._header.fields())
        self._metadata.flush()

    def change(self, **fields: int) -> None:
        """Write the header with other values of some fields, and wait until they are on disk.

        Raises:
            OSError: the old values stand; or, where these cannot be written again, nobody knows
                which are on disk, and the image is not written any more.
        """
        before = {name: getattr(self._header, name) for name in fields}
        try:
            self._set(fields)
            self.write_fields()
        except BaseException:
            self._set(before)
            try:
                self.write_fields()
            except OSError:
                log.error("%s: its header cannot be written", self._name)
                self.give_up()
            raise

    def _set(self, fields: dict[str, int]) -> None:
        for name, value in fields.items():
            setattr(self._header, name, value)

    def write(self) -> None:
        """Write the header with its extensions and names, and wait until it is on disk.

        Raises:
            OSError: as the system says.
            UsageError: it does not fit into its cluster.
        """
        self._settle_refcount_table()
        header = self._header
        before = header.length, header.backing_offset
        try:
            head, name = header.parts(with_names=False)
            self._write_parts(head, header.backing_offset, name)
        except BaseException:
            header.length, header.backing_offset = before
            raise
        end = header.backing_offset + len(name)
        header.stored_name = (header.backing_offset, end) if name else (0, 0)

    def _settle_refcount_table(self) -> None:
        """Where it has a new place, of which the header must not tell before it is there."""
        if self._metadata.refcounts.table_moved or self._writeback.running:
            self._writeback.all_now()

    def _write_parts(self, head: bytes, at: int, name: bytes) -> None:
        """First what lies behind the first sector, which then makes all of it valid as one."""
        behind = [(ATOMIC, head[ATOMIC:]), (max(at, ATOMIC), name[max(ATOMIC - at, 0) :])]
        for offset, content in behind:
            if content:
                self._file.write_metadata(offset, content)
        if any(content for _, content in behind):
            self._metadata.flush()
        first = head[:ATOMIC]
        if name and at < ATOMIC:
            first += name[: ATOMIC - at]
        self._file.write_metadata(0, first.ljust(ATOMIC, b"\0"))
        self._metadata.flush()

    def give_up(self) -> None:
        """The image is not written any more."""
        self.broken = True
        self._on_broken()

    def mark_corrupt(self, reason: str, *, told: bool) -> None:
        """Damage was found: let nobody write any more.

        Args:
            reason: what is wrong, for the log.
            told: it was noted for the requests that it concerns.
        """
        if self.broken:
            return
        if not told:
            log.error("%s: %s", self._name, reason)
        self.give_up()
        if self._read_only or self._header.version < 3:
            return
        self._header.incompatible |= layout.INCOMPAT_CORRUPT
        try:
            at = layout.INCOMPAT_OFFSET  # no more: the refcount table may be about to move
            self._file.write_metadata(at, self._header.incompatible.to_bytes(8, "big"))
        except OSError as exc:
            log.error("%s: it could not be marked as corrupt: %s", self._name, exc.strerror)
