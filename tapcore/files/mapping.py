"""Memory that is a part of a host file: to be handed to system calls, and touched by nobody else.

Where a page is missing (the file has shrunk, or cannot be read) the kernel's own copy fails with
EFAULT or is cut short. Whoever touched the memory in this process would be ended by SIGBUS. So
nothing in Python may read, compare or copy what these views show: a view is sliced, and handed to
`sendmsg` or `pwritev`. A test holds the sources to it.

Written through them is only what is small, and only where that pays (`Windows.to_write`): a page
that is clean costs a fault first. On ext4 that is 2.4 to 6 us for 4 KiB, and `pwrite` takes 4 us
where the file lies in small folios, but 26 to 50 where it was written or read in large pieces. And
all of the folio becomes dirty, and is written to the disk.

ctypes is imported with the first mapping: mmap of the standard library keeps a descriptor for each.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Final, TypeGuard

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

_PROT_READ: Final = 1
_PROT_WRITE: Final = 2
_MAP_SHARED: Final = 1


class MappedPart:
    """Marks what lies behind a view that this module has made; unmapped with the last slice."""

    __slots__ = ()


class Mapping:
    """A part of a host file in memory, shared with everybody who has the file.

    It may reach past the file's end: what lies there is missing.

    Args:
        fd: of the file; not needed afterwards.
        offset: bytes, of a page.
        length: bytes, whole pages.
        writable: the file is open for writing, too.

    Attributes:
        view: the memory, to be read.
        target: the same, to be written; None where the mapping is not writable.
        pages: for each page of it 1 where it lay in memory when `look` was called, else 0.

    Raises:
        OSError: the system does not map it.
    """

    __slots__ = ("_address", "_calls", "_vector", "pages", "target", "view")

    def __init__(self, fd: int, offset: int, length: int, *, writable: bool = False) -> None:
        self._calls = calls = _calls()
        self._address = calls.map(fd, offset, length, writable=writable)
        memory = memoryview(calls.kind(length).from_address(self._address))
        self.view = memory.toreadonly()
        self.target = memory if writable else None
        self.pages = bytearray(length // PAGE)
        self._vector = calls.address_of(self.pages)

    def look(self, first: int, count: int) -> None:
        """Note which pages lie in memory now, from number `first` on."""
        self._calls.look(self._address + first * PAGE, count * PAGE, self._vector + first)

    def forget(self) -> None:
        """What was noted of them."""
        pages = self.pages
        pages[:] = bytes(len(pages))


def is_mapped(view: object) -> TypeGuard[memoryview]:
    """Whether something to be sent is memory of a host file (a slice of a `Mapping.view`)."""
    return isinstance(view, memoryview) and isinstance(view.obj, MappedPart)


def content_of(view: memoryview) -> bytes:
    """A copy of mapped memory, made by the kernel by way of a file that lies in memory.

    Returns:
        What is there; shorter than the view, or empty, where a page is missing.
    """
    memory = os.memfd_create("content", os.MFD_CLOEXEC)
    try:
        count = os.pwritev(memory, [view], 0)
        return os.pread(memory, count, 0)
    except OSError:
        return b""
    finally:
        os.close(memory)


class _Calls:
    """The calls of the C library, and the types that they need.

    Attributes:
        kind: the type of a mapping of so many bytes.
    """

    def __init__(self) -> None:
        import ctypes

        from tapcore.process.libc import typed_function

        self._ctypes = ctypes
        size, number, pointer = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
        # offsets have 64 bits in the first everywhere; a libc without it has no other kind
        self._mmap = typed_function("mmap64", "mmap")
        self._mmap.argtypes = (pointer, size, number, number, number, ctypes.c_int64)
        self._mmap.restype = pointer
        self._munmap = typed_function("munmap")
        self._munmap.argtypes = (size, size)
        self._mincore = typed_function("mincore")
        self._mincore.argtypes = (size, size, pointer)
        self.kind = functools.cache(self._make_kind)

    def _make_kind(self, length: int) -> Any:
        ctypes, munmap = self._ctypes, self._munmap

        class Part(ctypes.c_ubyte * length, MappedPart):  # type: ignore[misc]
            def __del__(self, address_of: Callable[[Any], int] = ctypes.addressof) -> None:
                munmap(address_of(self), length)

        return Part

    def map(self, fd: int, offset: int, length: int, *, writable: bool) -> int:
        """mmap(2); returns the address."""
        protection = _PROT_READ | (_PROT_WRITE if writable else 0)
        address = self._mmap(None, length, protection, _MAP_SHARED, fd, offset)
        if address is None or address == self._ctypes.c_void_p(-1).value:
            code = self._ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(address)

    def address_of(self, memory: bytearray) -> int:
        """Where it lies, as long as its size does not change."""
        return self._ctypes.addressof(self._ctypes.c_ubyte.from_buffer(memory))

    def look(self, address: int, length: int, vector: int) -> None:
        """mincore(2), which fills in a byte for each page."""
        if self._mincore(address, length, vector):
            code = self._ctypes.get_errno()
            raise OSError(code, os.strerror(code))


@functools.cache
def _calls() -> _Calls:
    return _Calls()
