"""A disk that is open: what it is, what may be asked of it, and its end."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from tapcore.disk.calls import DiskCalls, read_only
from tapcore.disk.file import DiskFile
from tapcore.errors import BrokenOffError, ClosedError, ForkedError, OutOfRangeError, UsageError
from tapcore.interface.models import DiskDriver, TdState
from tapcore.opening.chain import abandon_disk, close_disk
from tapcore.process.forks import forks

if TYPE_CHECKING:
    from tapcore.engine.salvage import Salvage

log = logging.getLogger(__name__)


class OpenDisk(DiskFile):
    """As `Disk`, without the calls that move content.

    Args:
        state: as there.
        salvage: as there.

    Attributes:
        salvage: as given.
    """

    def __init__(self, state: TdState, salvage: Salvage | None = None) -> None:
        super().__init__()
        self._state = state
        self.salvage = salvage
        self._calls = DiskCalls(state, salvage)
        self._engine = self._calls.engine
        self._leaf: DiskDriver = state.disks
        self._forks = forks()

    # ---- what it is -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The image as it was named."""
        return str(self._state.image)

    @property
    def handle(self) -> str:
        """Handle of the child's driver."""
        return self._state.image.drivertype

    @property
    def size(self) -> int:
        """Virtual size in bytes."""
        return self._engine.size

    @property
    def cluster_size(self) -> int:
        """The format's unit of allocation, in bytes."""
        return self._engine.cluster_size

    @property
    def readonly(self) -> bool:
        """Whether it was opened for reading only."""
        return self._engine.read_only

    @property
    def read_only(self) -> bool:
        """`readonly`, by its name of earlier releases."""
        return self._engine.read_only

    @property
    def state(self) -> TdState:
        """The chain behind it, for tools."""
        return self._state

    # ---- its end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Finish, flush and release; a second call does nothing.

        Raises:
            BrokenOffError: a call was left in the middle (Ctrl-C), and nothing could be saved.
            TapError: the last flush failed; everything is released all the same.
        """
        if self.closed:
            return
        if self._forks != forks():
            self._let_go()
            return
        with self._calls.lock:
            if self._engine.broken_off:
                self._end_file()
                self._release()
                return
            try:
                self._save_and_close()
            except BaseException:
                self._end_file()
                if (lost := abandon_disk(self._state)) is not None:
                    log.error("%s", lost)
                raise

    def _save_and_close(self) -> None:
        try:
            super().close()  # flushes through `flush`
        finally:
            if not self._engine.broken_off:
                self._calls.finish()
                self._release()

    def _release(self) -> None:
        """Close the images; nothing is under way."""
        close_disk(self._state)

    def _end_file(self) -> None:
        """Closed for Python, without a flush."""
        self.flush = _nothing  # type: ignore[method-assign]
        super().close()

    def _let_go(self) -> None:
        """Close it in a forked child: tables and threads are the parent's, who goes on with them.

        Only this process's descriptors are closed, so that the parent's locks end with the parent.
        """
        self._end_file()
        for file in self._leaf.options.opened:
            file.let_go()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[None]:
        try:
            self.close()
        except BrokenOffError as exc:
            if value is None:
                raise
            log.error("%s", exc)  # what has ended the block is what its caller has to see

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"<tapcore.Disk {self.name!r} {state}>"

    # ---- what may be asked ------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._forks != forks():  # before any lock: who held it was not forked
            text = "was opened before this process was forked; open it again in this one"
            raise ForkedError(text, image=self.name)
        if self.closed:
            raise ClosedError("the disk is closed", image=self.name)
        if self._engine.broken_off:
            text = "can only be closed any more: a call was broken off"
            raise BrokenOffError(text, image=self.name)

    def _check_writable(self) -> None:
        if self.read_only:
            raise read_only(self.name)

    def _alone(self) -> AbstractContextManager[Any]:
        return self._calls.lock

    def _check_range(self, offset: int, length: int) -> tuple[int, int]:
        offset, length = self._check_numbers(offset, length)
        if offset + length > self.size:
            raise OutOfRangeError("the range ends past the end of the disk", image=self.name)
        return offset, length

    def _clip(self, offset: int, length: int) -> tuple[int, int]:
        offset, length = self._check_numbers(offset, length)
        return offset, max(min(length, self.size - offset), 0)

    def _check_numbers(self, offset: int, length: int) -> tuple[int, int]:
        self._check_open()
        offset, length = index(offset), index(length)
        if offset < 0 or length < 0:
            raise UsageError("offset and length must not be negative", image=self.name)
        return offset, length


def _nothing() -> None:
    """Instead of a flush."""
