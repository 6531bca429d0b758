"""Disks for programs of asyncio: the calls of a disk, awaited; the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar

from tapcore.disk.disk import Disk
from tapcore.disk.opendisk import Mode, open
from tapcore.engine import MappedExtent
from tapcore.opening.names import ImageName

P = ParamSpec("P")
R = TypeVar("R")


class AsyncDisk:
    """A disk whose calls are done in a thread of its own, one at a time, in the order of the calls.

    Args:
        disk: open; closed with this.
        thread: of that disk.

    Attributes:
        disk: what it is: `size`, `name`, `read_only` and others need no waiting.
    """

    def __init__(self, disk: Disk, thread: ThreadPoolExecutor) -> None:
        self.disk = disk
        self._thread = thread

    async def pread(self, offset: int, *, length: int) -> bytes:
        """As `Disk.pread`."""
        return await self._call(self.disk.pread, offset, length=length)

    async def pwrite(
        self, offset: int, data: bytes | bytearray | memoryview, *, fua: bool = False
    ) -> int:
        """As `Disk.pwrite`."""
        return await self._call(self.disk.pwrite, offset, data, fua=fua)

    async def zero(self, offset: int, *, length: int, unmap: bool = True) -> None:
        """As `Disk.zero`."""
        await self._call(self.disk.zero, offset, length=length, unmap=unmap)

    async def discard(self, offset: int, *, length: int) -> None:
        """As `Disk.discard`."""
        await self._call(self.disk.discard, offset, length=length)

    async def sync(self) -> None:
        """As `Disk.sync`."""
        await self._call(self.disk.sync)

    async def extents(self, offset: int = 0, *, length: int | None = None) -> list[MappedExtent]:
        """As `Disk.extents`, all of them."""
        return await self._call(lambda: list(self.disk.extents(offset, length=length)))

    async def resize(self, size: int | str) -> None:
        """As `Disk.resize`."""
        await self._call(self.disk.resize, size)

    async def close(self) -> None:
        """As `Disk.close`; what was called before is done first."""
        try:
            await self._call(self.disk.close)
        finally:
            self._thread.shutdown(wait=False)

    async def __aenter__(self) -> AsyncDisk:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[None]:
        await self.close()

    async def _call(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        # a call that is cancelled is done all the same: a disk must not be left in the middle
        loop = asyncio.get_running_loop()
        return await asyncio.shield(
            loop.run_in_executor(self._thread, partial(call, *args, **kwargs))
        )


async def aopen(name: ImageName, mode: Mode | None = None, **how: Any) -> AsyncDisk:
    """As `tapcore.open`, for asyncio: `async with await tapcore.aopen(...) as disk`.

    Args:
        name: as of `open`, and so on.
        mode: as of `open`.
        how: as of `open`.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="tapcore-disk")
    loop = asyncio.get_running_loop()
    try:
        disk = await loop.run_in_executor(thread, partial(open, name, mode, **how))
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return AsyncDisk(disk, thread)
