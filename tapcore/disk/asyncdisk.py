"""Disks for programs of asyncio: the calls of a disk, awaited; the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future, ThreadPoolExecutor
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
        disk: what it is: `size`, `name`, `readonly` and others need no waiting.
    """

    def __init__(self, disk: Disk, thread: ThreadPoolExecutor) -> None:
        self.disk = disk
        self._thread = thread

    @property
    def name(self) -> str:
        """As `Disk.name`."""
        return self.disk.name

    @property
    def size(self) -> int:
        """Bytes."""
        return self.disk.size

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


class OpeningDisk(Coroutine[Any, Any, AsyncDisk]):
    """What `aopen` returns: to be awaited for the disk, or entered by `async with`.

    Args:
        opening: the coroutine that opens the disk.
    """

    def __init__(self, opening: Coroutine[Any, Any, AsyncDisk]) -> None:
        self._opening = opening
        self._disk: AsyncDisk | None = None

    def send(self, value: Any) -> Any:
        """As of the coroutine."""
        return self._opening.send(value)

    def throw(self, *what: Any) -> Any:
        """As of the coroutine."""
        return self._opening.throw(*what)

    def close(self) -> None:
        """As of the coroutine."""
        self._opening.close()

    def __await__(self) -> Generator[Any, Any, AsyncDisk]:
        return self._opening.__await__()

    async def __aenter__(self) -> AsyncDisk:
        self._disk = await self
        return self._disk

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[None]:
        if self._disk is not None:
            await self._disk.__aexit__(kind, value, trace)


def aopen(name: ImageName, mode: Mode | None = None, **how: Any) -> OpeningDisk:
    """As `tapcore.open`, for asyncio: `async with tapcore.aopen(...) as disk`.

    Args:
        name: as of `open`, and so on.
        mode: as of `open`.
        how: as of `open`.

    Returns:
        What is to be awaited for the disk, or entered, which closes it at the end.
    """
    return OpeningDisk(_open(name, mode, how))


async def _open(name: ImageName, mode: Mode | None, how: dict[str, Any]) -> AsyncDisk:
    thread = ThreadPoolExecutor(1, thread_name_prefix="tapcore-disk")
    opening = thread.submit(partial(open, name, mode, **how))
    try:
        disk = await asyncio.wrap_future(opening)
    except BaseException:
        # whoever is cancelled meanwhile leaves no open disk behind, and no lock
        opening.add_done_callback(_close_unwanted)
        thread.shutdown(wait=False)
        raise
    return AsyncDisk(disk, thread)


def _close_unwanted(opening: Future[Disk]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
