"""The page that both sides write: four indices, each of 32 bits and free-running, and the entries.

An entry is at its index modulo the ring's size, a power of two. A side writes its producer's index
and the *event* of the other's: "tell me when you come to this one". Both wrap at 2^32.

The order in which the other side sees loads and stores matters in three places: an entry before the
index that covers it, and the two where a side stores one thing and then loads another (told below).
x86 keeps all orders but this last one, which needs a fence.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from threading import Lock
from typing import Final

from tapcore.ring.wire import HEADER, INDICES, PAGE, Protocol

MASK: Final = 0xFFFF_FFFF

REQ_PROD: Final = 0
REQ_EVENT: Final = 1
RSP_PROD: Final = 2
RSP_EVENT: Final = 3


class RingBrokenError(Exception):
    """The other side's index cannot be: nothing that it says can be believed any more."""


class SharedRing:
    """The memory, as both sides see it.

    Args:
        memory: whole pages, writable.
        protocol: of the guest.

    Attributes:
        memory: as given.
        protocol: as given.
        indices: the four, as numbers.
        size: entries.
        places: where each entry lies in `memory`, bytes.
    """

    __slots__ = ("indices", "memory", "places", "protocol", "size")

    def __init__(self, memory: memoryview, protocol: Protocol) -> None:
        assert len(memory)
        assert not len(memory) % PAGE
        self.memory = memory
        self.protocol = protocol
        self.indices = memory[: INDICES.size].cast("I")
        self.size = protocol.slots(len(memory) // PAGE)
        self.places = [HEADER + slot * protocol.entry for slot in range(self.size)]

    def release(self) -> None:
        """Let go of the memory."""
        self.indices.release()
        self.memory.release()

    def copy(self, first: int, count: int) -> bytes:
        """A private copy of the entries from an index on, made once; `count` is at most `size`."""
        entry, slot = self.protocol.entry, first & (self.size - 1)
        start, end = self.places[slot], slot + count
        if end <= self.size:
            return bytes(self.memory[start : start + count * entry])
        wrapped = HEADER + (end - self.size) * entry
        return bytes(self.memory[start : HEADER + self.size * entry]) + bytes(
            self.memory[HEADER:wrapped]
        )


def wants_to_be_told(old: int, new: int, event: int) -> bool:
    """Whether an event lies among the entries that were just published.

    Args:
        old: the producer's index before.
        new: and now.
        event: the first entry of which the other side wants to be told, plus one.
    """
    return (new - event) & MASK < (new - old) & MASK


@functools.cache
def fences() -> tuple[Callable[[], object], Callable[[], object]]:
    """What keeps loads and stores in order on this machine: all of them; all but store and load."""
    if platform.machine() in ("x86_64", "AMD64", "i686", "i386"):
        return _locked, _nothing
    fence = _membarrier()
    return fence, fence


_lock: Final = Lock()


def _locked() -> None:
    """Taking a lock is an instruction that waits for all stores before it."""
    with _lock:
        return


def _nothing() -> None:
    """The processor keeps this order by itself."""


def _membarrier() -> Callable[[], object]:
    """membarrier(2), which is a fence for its caller on every machine."""
    import ctypes

    from tapcore.process.libc import libc

    syscall = libc().syscall
    number, command = ctypes.c_long(283), ctypes.c_long(1 << 3)  # private, expedited
    syscall(number, ctypes.c_long(1 << 4), ctypes.c_long(0))  # register for it
    return functools.partial(syscall, number, command, ctypes.c_long(0))
