"""What the port of `--metrics` answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from tapcore.engine.loop import Loop
from tapcore.metrics.reading import Snapshot
from tapcore.monitor.exposition import exposition
from tapcore.monitor.webpage import webpage
from tapcore.monitor.webserver import WebServer

Look: TypeAlias = Callable[[], list[Snapshot]]
"""Gives all disks as they are."""


class Monitor:
    """Two pages: `/` for a browser, `/metrics` for Prometheus.

    Args:
        look: at the disks.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._before: dict[tuple[str, float], Snapshot] = {}

    def listen(self, loop: Loop, port: int) -> WebServer:
        """Answer on a port of loopback; the same arguments and errors as `WebServer`."""
        return WebServer(loop, port, {"/": self._browser, "/metrics": self._prometheus})

    def _prometheus(self, accept: str) -> tuple[str, bytes]:
        return exposition(self._look(), accept)

    def _browser(self, accept: str) -> tuple[str, bytes]:
        disks = self._look()
        begun = [attrs.evolve(seen, updated=seen.started, cells={}) for seen in disks]
        pairs = [
            (self._before.get((seen.name, seen.started), first), seen)
            for first, seen in zip(begun, disks, strict=True)
        ]
        self._before = {(seen.name, seen.started): seen for seen in disks}
        return webpage(pairs)
