"""An open disk in the poll set of a server, and how it gets out again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from tapcore.engine import FLUSH, Engine, Request
from tapcore.engine.loop import Loop
from tapcore.errors import IOFailedError, TapError
from tapcore.interface.models import DiskDriver
from tapcore.opening.chain import close_disk


class PolledDisk:
    """A disk whose descriptors are polled until it is closed.

    Args:
        loop: the poll set.
        engine: of the disk.
        sources: its descriptors, as `Engine.poll_fds`; None: all of its chain.

    Attributes:
        engine: as given.
    """

    def __init__(
        self,
        loop: Loop,
        engine: Engine,
        sources: Sequence[tuple[int, DiskDriver, int]] | None = None,
    ) -> None:
        self.engine = engine
        self._loop = loop
        self._close: Callable[[], None] = partial(close_disk, engine.disk)
        self._fds: list[int] = []
        self.poll(sources)

    @property
    def name(self) -> str:
        """Of the image, for messages."""
        return str(self.engine.disk.image)

    def flush(self, failed: Callable[[PolledDisk, TapError], object]) -> None:
        """Have everything that was answered brought to disk; `failed` hears if that does not go."""

        def flushed(req: Request) -> None:
            if req.status:
                text = f"the last flush failed: {os.strerror(-req.status)}"
                failed(self, IOFailedError(text, image=self.name, errno=-req.status))

        if not self.engine.read_only:
            self.engine.submit(Request(FLUSH, 0, 0, None, flushed))
        self.engine.turn()

    def poll(self, sources: Sequence[tuple[int, DiskDriver, int]] | None = None) -> None:
        """Have descriptors polled, where none are: arguments as at first."""
        engine = self.engine
        for fd, dd, sid in engine.poll_fds() if sources is None else sources:
            self._loop.add(fd, partial(_readable, engine, dd, sid))
            self._fds.append(fd)

    def on_close(self, close: Callable[[], None]) -> None:
        """Let `close` do this, instead of closing the images."""
        self._close = close

    def unpoll(self) -> None:
        """Forget its descriptors."""
        fds, self._fds = self._fds, []
        for fd in fds:
            self._loop.remove(fd)

    def close(self) -> None:
        """Close it; nothing may be in flight, but where it was broken off.

        Raises:
            TapError: something could not be saved.
        """
        self.unpoll()
        self._close()


def _readable(engine: Engine, dd: DiskDriver, sid: int, events: int) -> None:
    engine.readable(dd, sid)
