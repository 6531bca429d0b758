"""One request at a time, and waiting for its answer: how Python drives a disk's engine."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tapcore.engine import READ, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.engine.requests import OP_NAMES
from tapcore.errors import IOFailedError, ReadOnlyError, TapError, open_error
from tapcore.interface.damage import known_failure
from tapcore.interface.models import DiskDriver, TdState

if TYPE_CHECKING:
    from tapcore.engine.salvage import Salvage


class DiskCalls:
    """Asks a disk, one thread at a time.

    Args:
        state: an open chain with its engine.
        salvage: reads do not fail, and what is lost is noted there.

    Attributes:
        lock: held during a call; for calls of several steps, and for what is asked of a driver
            without a request. One thread may take it more than once.
        engine: of the disk.
        version: counts what may have changed the content.
    """

    def __init__(self, state: TdState, salvage: Salvage | None) -> None:
        self.engine = engine_of(state)
        self.lock = threading.RLock()
        self._state = state
        self._salvage = salvage
        self._loop = EngineLoop(self.engine)
        self.version = 0

    def ask(
        self,
        op: int,
        offset: int,
        length: int,
        buf: memoryview | None,
        *,
        fua: bool = False,
        may_unmap: bool = True,
    ) -> None:
        """Do one thing with a range that lies inside the disk.

        Args:
            op: READ, WRITE, ...
            offset: bytes.
            length: bytes.
            buf: content, or where it goes: writable.
            fua: wait until it is on disk.
            may_unmap: of ZERO: space may be given back.

        Raises:
            TapError: it failed; with the image's name.
        """
        with self.lock:
            outcome, since = _Outcome(), self._state.losses.count
            req = Request(op, offset, length, buf, outcome.finished, fua=fua)
            req.may_unmap = may_unmap
            self.submit(req)
            self._loop.run_until(lambda: outcome.done)
        if req.status:
            what, end = OP_NAMES[op], offset + length
            known = known_failure(self._state, what, offset, end, req.status, since=since)
            raise known or failed(str(self._state.image), what, req.status)

    def submit(self, request: Request) -> None:
        """Hand a request to the engine; a salvaged read does not fail."""
        if request.op != READ:
            self.version += 1
        try:
            if self._salvage is not None and request.op == READ:
                from tapcore.engine.salvage import SalvagingRead

                SalvagingRead(self._state, self._salvage, request).begin()
            else:
                self.engine.submit(request)
        except BaseException:
            self._loop.break_off()
            raise

    @contextmanager
    def driver(self, image: str) -> Iterator[DiskDriver]:
        """The child, to be asked for what is no request.

        Args:
            image: its name, for errors.

        Raises:
            TapError: of whatever the driver raises.
        """
        self.version += 1
        try:
            yield self._state.disks
        except Exception as exc:  # whatever a damaged image makes a driver raise
            raise open_error(exc, image) from exc
        except GeneratorExit:  # whoever asked wants no more
            raise
        except BaseException:
            self._loop.break_off()
            raise

    def finish(self) -> None:
        """Wait until nothing is under way."""
        self._loop.finish()


class _Outcome:
    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def finished(self, req: Request) -> None:
        self.done = True


def read_only(name: str) -> ReadOnlyError:
    """The error of a write to a disk that was opened for reading."""
    text = "is open read-only (tapcore.open(..., readonly=False) opens it for writing)"
    return ReadOnlyError(text, image=name)


def failed(name: str, what: str, status: int) -> TapError:
    """The error of an operation that was answered with a negative errno."""
    if status == -errno.EROFS:
        return read_only(name)
    text = f"{what} failed: {os.strerror(-status)}"
    return IOFailedError(text, image=name, errno=-status)
