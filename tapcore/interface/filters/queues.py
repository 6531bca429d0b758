"""The six hooks that take requests, as one: what each of them means is the operation's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from tapcore.interface.filters.call import Operation
from tapcore.interface.models import DiskDriver, TdCallback

HOOK_OF: Final[dict[Operation, str]] = {
    "read": "td_queue_read",
    "write": "td_queue_write",
    "flush": "td_queue_flush",
    "discard": "td_queue_discard",
    "zero": "td_queue_write_zeroes",
    "compressed": "td_queue_write_compressed",
}
"""By the operation."""


class Queues(ABC):
    """Turns them into calls of `_queue`."""

    @abstractmethod
    def _queue(
        self,
        op: Operation,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        buf: memoryview | None,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Take a request; returns 0 or -EBUSY."""

    def _queue_hooks(self) -> dict[str, Callable[..., int]]:
        """A function for each hook."""
        return {
            HOOK_OF["read"]: self._queue_read,
            HOOK_OF["write"]: self._queue_write,
            HOOK_OF["compressed"]: self._queue_compressed,
            HOOK_OF["flush"]: self._queue_flush,
            HOOK_OF["discard"]: self._queue_discard,
            HOOK_OF["zero"]: self._queue_zeroes,
        }

    def _queue_read(
        self,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return self._queue("read", dd, sector, nb_sectors, buf, True, cb, id, prv)

    def _queue_write(
        self,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return self._queue("write", dd, sector, nb_sectors, buf, True, cb, id, prv)

    def _queue_compressed(
        self,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return self._queue("compressed", dd, sector, nb_sectors, buf, True, cb, id, prv)

    def _queue_flush(self, dd: DiskDriver[Any], cb: TdCallback, id: int, prv: Any) -> int:
        return self._queue("flush", dd, 0, 0, None, True, cb, id, prv)

    def _queue_discard(
        self,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return self._queue("discard", dd, sector, nb_sectors, None, True, cb, id, prv)

    def _queue_zeroes(
        self,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return self._queue("zero", dd, sector, nb_sectors, None, may_unmap, cb, id, prv)
