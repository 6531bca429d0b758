"""The same from another thread of the program: calls that wait."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tapcore.errors import ClosedError, TapError
from tapcore.live.live import Live
from tapcore.live.tasks import Done


class LiveCalls:
    """Changes of a server's disks, for a program that runs the server in a thread.

    To be made before the server runs. Each call returns what the change answers (`told_of`), or
    raises a TapError.

    Args:
        live: of the server.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self._asked: deque[Callable[[], object]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        live.loop.add(self._wake, self._work)
        live.at_end.append(self._close)

    def _work(self, _: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._asked:
            self._asked.popleft()()

    def _close(self) -> None:
        """The server has come to its end; who still waits is told so."""
        self._closed = True
        self._live.loop.remove(self._wake)
        while self._asked:
            self._asked.popleft()()

    def _call(self, begin: Callable[[Done], object]) -> dict[str, Any]:
        over = threading.Event()
        found: list[tuple[Any, TapError | None]] = []

        def done(result: Any, error: TapError | None) -> None:
            found.append((result, error))
            over.set()

        def work() -> None:
            try:
                begin(done)
            except TapError as exc:
                done(None, exc)

        if self._closed:
            raise ClosedError("the server has stopped")
        self._asked.append(work)
        os.eventfd_write(self._wake, 1)
        over.wait()
        result, error = found[0]
        if error is not None:
            raise error
        told: dict[str, Any] = result
        return told

    def state(self, name: str) -> dict[str, Any]:
        """See `Live`, as for all of these."""
        return self._call(lambda done: done(self._live.state(name), None))

    def pause(self, name: str) -> dict[str, Any]:
        return self._call(lambda done: self._live.pause(name, done))

    def resume(self, name: str) -> dict[str, Any]:
        return self._call(lambda done: self._live.resume(name, done))

    def swap(self, name: str, image: str) -> dict[str, Any]:
        return self._call(lambda done: self._live.swap(name, image, done))

    def snapshot(
        self, name: str, child: str, *, options: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        return self._call(lambda done: self._live.snapshot(name, child, done, options=options))

    def resize(self, name: str, size: str, *, shrink: bool = False) -> dict[str, Any]:
        return self._call(lambda done: self._live.resize(name, size, done, shrink=shrink))

    def commit(self, name: str) -> dict[str, Any]:
        """Fold it into its parent; returns when that is done, or raises."""

        def begin(done: Done) -> None:
            def begun(_: Any, error: TapError | None) -> None:
                if error is not None:
                    done(None, error)

            self._live.commit(name, begun, done)

        return self._call(begin)

    def begin_commit(self, name: str) -> dict[str, Any]:
        """Begin that; `commit_progress` tells of it."""
        return self._call(lambda done: self._live.commit(name, done))

    def commit_progress(self, name: str) -> dict[str, Any]:
        return self._call(lambda done: done(self._live.commit_progress(name), None))

    def cancel_commit(self, name: str) -> dict[str, Any]:
        return self._call(lambda done: done(self._live.cancel_commit(name), None))
