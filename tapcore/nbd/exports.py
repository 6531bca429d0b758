"""What a server offers: open disks under names."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import attrs

from tapcore.engine import Engine, MappedExtent, chain_extents, engine_of
from tapcore.engine.loop import Loop
from tapcore.errors import TapError, printable
from tapcore.files.linux import all_in_page_cache, counts_pages
from tapcore.interface.models import TdState
from tapcore.metrics.meter import Meter
from tapcore.metrics.publishing import Metrics
from tapcore.nbd import constants as nbd
from tapcore.nbd.exportinfo import ExportInfo
from tapcore.nbd.filespan import FileSpan
from tapcore.nbd.polled import PolledDisk
from tapcore.nbd.replies import Replies
from tapcore.nbd.status import Context, context_names, context_of
from tapcore.nbd.tracing import trace_requests

MAX_READ_EXTENTS: Final = 64
"""A read that is scattered more widely than this is answered as one run of data."""


@attrs.define(eq=False)
class Export:
    """One open disk, offered under a name.

    Attributes:
        disk: the open chain.
        engine: its engine.
        info: what the handshake tells of it.
        file_spans: replies may be sent straight from host files.
        senders: the outgoing sides of all connections, which may have such replies waiting.
        left: called when the last of them has gone.
        meter: counts its requests; None: nobody does.
    """

    disk: TdState
    engine: Engine
    info: ExportInfo
    file_spans: bool
    senders: set[Replies] = attrs.field(factory=set)
    left: Callable[[], object] | None = None
    meter: Meter | None = None

    def __attrs_post_init__(self) -> None:
        if trace_requests(self.engine, os.environ):
            self.file_spans = False  # what is sent straight from files passes no station

    @classmethod
    def of(cls, disk: TdState, name: str) -> Export:
        """Offer an open disk.

        Args:
            disk: with its engine.
            name: the export's name; "" is the default export.
        """
        engine = engine_of(disk)
        filters = bool(disk.disks.options.filters)
        export = (FilteredExport if filters else cls)(
            disk, engine, _info(disk, engine, name), _file_spans(disk)
        )
        engine.giving_up.append(export.before_giving_up)
        return export

    def follow(self) -> None:
        """What is told of it from now on is of the images that its disk has now."""
        self.info = _info(self.disk, self.engine, self.info.name)
        self.file_spans = _file_spans(self.disk)
        meter = self.meter
        if meter is not None:
            image = self.disk.image
            meter.image, meter.driver, meter.size = image.name, image.drivertype, self.info.size

    def count(self, metrics: Metrics) -> None:
        """Count its requests from now on.

        Raises:
            TapError: there can be no page for them.
        """
        image = self.disk.image
        self.meter = metrics.meter(
            self.info.name, image=image.name, driver=image.drivertype, size=self.info.size
        )
        self.meter.waiting = lambda: self.engine.waiting

    def extents(self, offset: int, length: int) -> list[MappedExtent] | None:
        """The runs of a range (bytes); None where they are unknown, or too many to be worth it."""
        found: list[MappedExtent] = []
        try:
            for extent in chain_extents(self.disk.disks, offset, length):
                if len(found) == MAX_READ_EXTENTS:
                    return None
                found.append(extent)
        except (OSError, TapError):  # reading will tell what is wrong, if anything is
            return None
        return found

    def context(self, name: str) -> Context:
        """One of its metadata contexts, for one client."""
        return context_of(self.disk.disks, name, mark=lambda: self.engine.content_mark)

    def span(self, extent: MappedExtent) -> FileSpan | None:
        """The host file's part that a run lies in, if it can be sent without waiting for a disk."""
        if extent.fd is None or extent.kind != "data":
            return None
        return self.span_of(extent.fd, extent.offset, extent.length)

    def span_of(self, fd: int, offset: int, length: int) -> FileSpan | None:
        """The same of data at an offset (bytes) of a host file."""
        if not self.file_spans or not counts_pages() or not _holds(fd, offset + length):
            return None  # reading tells whether that is the last sector, or an error
        return FileSpan(fd, offset, length) if all_in_page_cache(fd, offset, length) else None

    def leave(self, replies: Replies) -> None:
        """A connection has gone."""
        self.senders.discard(replies)
        if self.left is not None and not self.senders:
            self.left()

    def before_giving_up(self) -> None:
        """Space in host files may be given up next, and then hold other content.

        A client that is slow to take its replies would get that, where they wait to be sent from
        the file.
        """
        for replies in self.senders:
            replies.read_out()

    def prefetch(self, offset: int, length: int) -> None:
        """Ask the kernel to read a range (bytes) into the page cache; advice, so never an error."""
        if not self.file_spans:
            return
        for extent in self.extents(offset, length) or ():
            if extent.fd is not None:
                with suppress(OSError):
                    os.posix_fadvise(
                        extent.fd, extent.offset, extent.length, os.POSIX_FADV_WILLNEED
                    )


class FilteredExport(Export):
    """One whose every read has to pass through filters, those of holes too."""

    def extents(self, offset: int, length: int) -> list[MappedExtent] | None:
        """Unknown: whatever is told of a range could be answered without reading it."""
        return None


def _holds(fd: int, end: int) -> bool:
    """Whether a host file is at least so long (bytes)."""
    status = os.fstat(fd)
    return status.st_size >= end or not stat.S_ISREG(status.st_mode)


def _info(disk: TdState, engine: Engine, name: str) -> ExportInfo:
    """What the handshake tells."""
    leaf = disk.disks
    return ExportInfo(
        name=name,
        size=engine.size,
        transmission_flags=_flags(engine),
        description=_description(disk),
        block_preferred=max(nbd.DEFAULT_BLOCK_PREFERRED, leaf.sector_size),
        contexts=context_names(leaf),
    )


def _file_spans(disk: TdState) -> bool:
    """A filter must see every read, and O_DIRECT must not go round the disk."""
    options = disk.disks.options
    return not options.filters and options.cache == "writeback"


def _description(disk: TdState) -> str:
    """For clients: what it is, but not where; cut to what the protocol allows."""
    text = f"{disk.image.drivertype}:{os.path.basename(disk.image.name)}"
    return printable(text, limit=256)


def _flags(engine: Engine) -> int:
    flag = nbd.TransmissionFlag
    flags = flag.HAS_FLAGS | flag.SEND_FLUSH | flag.SEND_FUA | flag.SEND_CACHE | flag.SEND_DF
    # one engine answers all connections: what was answered on one is seen, and flushed, by all
    flags |= flag.CAN_MULTI_CONN
    if engine.read_only:
        return int(flags | flag.READ_ONLY)
    return int(flags | flag.SEND_TRIM | flag.SEND_WRITE_ZEROES | flag.SEND_FAST_ZERO)


class Exports:
    """The exports of one server: the handshake's `ExportCatalog`.

    Args:
        exports: at least one, with distinct names. A single one is the default export too.

    Attributes:
        all: as given.
        lie_below_views: what clients write goes elsewhere, over these disks.
    """

    def __init__(self, exports: Sequence[Export]) -> None:
        self.all = list(exports)
        self.lie_below_views = False
        self._by_name = {export.info.name: export for export in exports}

    def list_exports(self) -> list[ExportInfo]:
        """For NBD_OPT_LIST."""
        return [export.info for export in self.all]

    def find_export(self, name: str) -> ExportInfo | None:
        """By name; "" is the default export."""
        export = self.get(name)
        return None if export is None else export.info

    def get(self, name: str) -> Export | None:
        """The export itself."""
        if not name and len(self.all) == 1:
            return self.all[0]
        return self._by_name.get(name)

    def begin(self, loop: Loop) -> None:
        """The poll set of the server whose exports they are."""

    def turn(self) -> None:
        """The end of a batch."""

    @property
    def restless(self) -> bool:
        """Whether another `turn` has something to do, of which no event will tell."""
        return False

    def views(self) -> list[PolledDisk]:
        """What is to be closed before the disks of the exports, when all clients have gone."""
        return []

    def finish(self) -> list[TapError]:
        """Everything is closed; returns what went wrong besides."""
        return []
