"""The counters of a process's disks on their way into their pages: seldom, and never too late."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol, TypeAlias
from urllib.parse import quote

from tapcore.engine.loop import Loop
from tapcore.errors import TapError, describe
from tapcore.metrics.meter import Batch, Meter
from tapcore.metrics.page import Page
from tapcore.metrics.reading import Snapshot, read_fd

log = logging.getLogger(__name__)

PUBLISH_SECONDS: Final = 0.1
"""A page is never older than this, and is not written more often, however much there is to do."""

SUFFIX: Final = ".metrics"


class Beside(Protocol):
    """Something that lives in the loop, and shows the pages to others."""

    def close(self) -> None:
        """It does not any more."""


Begun: TypeAlias = Callable[["Metrics", Loop], Beside]


class Metrics:
    """Counts what the disks of one loop do, and shows it.

    Args:
        place: a directory, in which each disk gets a page with its name; another path: of the page
            of the only disk; empty: pages have no names, and are for this process.

        begun: called with the loop when it is there; what it gives is closed with the pages.

    Attributes:
        batch: of the loop.
        pages: of the disks.
    """

    def __init__(self, place: str = "", begun: Begun | None = None) -> None:
        self._place = place
        self._begun = begun
        self._beside: Beside | None = None
        self.batch = Batch()
        self.pages: list[Page] = []

    def meter(self, name: str, *, image: str, driver: str, size: int) -> Meter:
        """Begin to count the requests of a disk.

        Args:
            name: as clients know it.
            image: its file.
            driver: its handle.
            size: bytes.

        Raises:
            TapError: its page cannot be made.
        """
        meter = Meter(self.batch, name, image=image, driver=driver, size=size)
        path = self._path(name)
        try:
            page = Page.in_file(meter, path) if path else Page.in_memory(meter)
        except OSError as exc:
            raise TapError(f"a page of counters cannot be made: {describe(exc)}") from exc
        self.pages.append(page)
        return meter

    def _path(self, name: str) -> str:
        if not os.path.isdir(self._place):
            return self._place
        return os.path.join(self._place, page_name(name))

    def begin(self, loop: Loop) -> None:
        """The disks are served in a loop from now on."""
        if self._begun is not None:
            self._beside = self._begun(self, loop)

    def publish_if_due(self) -> None:
        """Show what was counted, if there is something, and it is time."""
        if self.batch.armed and monotonic() >= self.batch.due:
            self.publish()

    def publish(self) -> None:
        """Show all that was counted, and do so again when it is time."""
        batch = self.batch
        found = [page.meter.count_moved() for page in self.pages]
        batch.armed = batch.now != batch.shown or any(found)
        batch.shown, batch.due = batch.now, monotonic() + PUBLISH_SECONDS
        if not batch.armed:
            batch.next = 0.0  # whatever comes next is looked at, which arms it
        for page in list(self.pages):
            try:
                page.publish()
            except OSError as exc:
                log.error("%s: no more counters: %s", page.meter.name, describe(exc))
                self.pages.remove(page)
                page.close()

    def snapshots(self) -> list[Snapshot]:
        """Of each disk, as it is now."""
        self.publish()
        return [read_fd(page.fileno()) for page in self.pages]

    def close(self) -> None:
        """Show the last state, which stays."""
        if self._beside is not None:
            self._beside.close()
            self._beside = None
        self.publish()
        for page in self.pages:
            page.close()
        self.pages.clear()


def page_name(name: str) -> str:
    """The file name of a disk's page.

    Args:
        name: of the disk.
    """
    safe = quote(name, safe="@+", errors="surrogateescape")
    return (safe or "default")[:200] + SUFFIX
