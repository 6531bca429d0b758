"""What the port of `--metrics` answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias
from urllib.parse import unquote

import attrs

from tapcore.engine.loop import Loop
from tapcore.metrics.reading import Snapshot
from tapcore.monitor.diskpage import diskpage
from tapcore.monitor.exposition import exposition
from tapcore.monitor.frame import DISK_PATH
from tapcore.monitor.history import History
from tapcore.monitor.http import Page, Refused
from tapcore.monitor.maps import Draw, Drawn, Maps, Tell
from tapcore.monitor.webpage import webpage
from tapcore.monitor.webserver import WebServer
from tapcore.process.timer import Put, Timer

Look: TypeAlias = Callable[[], list[Snapshot]]
"""Gives all disks as they are."""


def no_map(name: str, tell: Tell, later: Put) -> None:
    """Where nobody can draw any."""
    tell(Drawn(why="nobody draws any here"))


class Monitor:
    """Pages: `/` and `/disk/NAME` for a browser, `/metrics` for Prometheus.

    Args:
        look: at the disks.
        draw: the maps of disks.
    """

    def __init__(self, look: Look, draw: Draw = no_map) -> None:
        self._look = look
        self._before: dict[tuple[str, float], Snapshot] = {}
        self._history = History(look)
        self._maps = Maps(draw)

    def listen(self, loop: Loop, port: int) -> WebServer:
        """Answer on a port of loopback; the same arguments and errors as `WebServer`."""
        timer = Timer()

        def closed() -> None:
            loop.remove(timer.fd)
            timer.abandon()

        try:
            server = WebServer(loop, port, self, closed)
        except BaseException:
            timer.abandon()
            raise
        loop.add(timer.fd, lambda _: timer.run_due())
        self._history.live_in(timer)
        self._maps.live_in(timer.put)
        return server

    def get(self, path: str) -> Page | None:
        """The page of a path; None: there is none."""
        if path == "/metrics":
            return self._prometheus
        if path == "/":
            return self._browser
        if path.startswith(DISK_PATH):
            return partial(self._disk, path.removeprefix(DISK_PATH))
        return None

    def _prometheus(self, accept: str) -> tuple[str, bytes]:
        return exposition(self._look(), accept)

    def _browser(self, accept: str) -> tuple[str, bytes]:
        self._history.looked_at()
        disks = self._look()
        begun = [attrs.evolve(seen, updated=seen.started, cells={}) for seen in disks]
        pairs = [
            (self._before.get((seen.name, seen.started), first), seen)
            for first, seen in zip(begun, disks, strict=True)
        ]
        self._before = {(seen.name, seen.started): seen for seen in disks}
        return webpage(pairs, self._history.of)

    def _disk(self, quoted: str, accept: str) -> tuple[str, bytes]:
        try:
            name = unquote(quoted, errors="strict")
        except UnicodeDecodeError:
            raise Refused(404) from None
        for seen in self._look():
            if seen.name == name:
                self._history.looked_at()
                return diskpage(seen, self._history.of(seen), *self._maps.of(name, seen.started))
        raise Refused(404)
