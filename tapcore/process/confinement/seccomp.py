"""A filter of system calls, for what Landlock does not know: programs, sockets, processes.

A list of what is denied, not of what is allowed: drivers are anybody's, and use what libraries use.
Written out here, since the libraries for that are not kept for Python's package index.

Source: seccomp(2), `linux/filter.h`, `linux/seccomp.h`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, TypeAlias

from tapcore.process.confinement.calls import DENIED, LOOKED_AT
from tapcore.process.confinement.kernel import system_call

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_BITS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_NUMBER_AT: Final = 0  # in struct seccomp_data
_MACHINE_AT: Final = 4
_ARGUMENTS_AT: Final = 16  # of 64 bits each, in these machines the low half first

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_DENY: Final = _ERRNO | errno.EPERM
_UNKNOWN: Final = _ERRNO | errno.ENOSYS

_MACHINES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
_X32: Final = 0x40000000
_CLONE_THREAD: Final = 0x00010000
_TYPING: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: to type on a terminal as its user

_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1  # SECCOMP_FILTER_FLAG_TSYNC

_INSTRUCTION: Final = struct.Struct("=HBBI")
_NUMBER: Final = struct.Struct("=I")
_NO_PROCESS: Final = 0x7FFFFFFE
"""Stands for the number of a process: none has this one, nor has anything else in a filter."""

Instruction: TypeAlias = tuple[int, int, int, int]
"""Code, how many to leave out if true and if false, and a constant."""


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Filter)))


def known_machine(machine: str = os.uname().machine) -> bool:
    """Whether the numbers of its system calls are known."""
    return machine in _MACHINES


def program(machine: str, process: int) -> list[Instruction]:
    """The filter.

    Args:
        machine: a known one.
        process: number of the process, the only one that may still be sent a signal.
    """
    looked_at = LOOKED_AT[machine]
    own = (*_if_argument(0, process), _give(_DENY))
    parts = [
        [(_LOAD, 0, 0, _MACHINE_AT), *_unless(_MACHINES[machine], [_give(_DENY)])],
        [(_LOAD, 0, 0, _NUMBER_AT), (_IF_AT_LEAST, 0, 1, _X32), _give(_DENY)],
        _when(looked_at["clone3"], [_give(_UNKNOWN)]),  # its flags cannot be seen: clone is tried
        _when(looked_at["clone"], _only_threads()),
        _when(looked_at["kill"], own),
        _when(looked_at["tgkill"], own),
        _when(looked_at["prlimit64"], [*_if_argument(0, 0), *own]),
        _when(looked_at["ioctl"], _not_typing()),
        *(_when(number, [_give(_DENY)]) for number in sorted(DENIED[machine].values())),
        [_give(_ALLOW)],
    ]
    return [instruction for part in parts for instruction in part]


def _give(answer: int) -> Instruction:
    return (_RETURN, 0, 0, answer)


def _when(number: int, then: list[Instruction] | tuple[Instruction, ...]) -> list[Instruction]:
    """For a system call: something that gives an answer in any case."""
    return [(_IF_EQUAL, 0, len(then), number), *then]


def _unless(value: int, then: list[Instruction]) -> list[Instruction]:
    return [(_IF_EQUAL, len(then), 0, value), *then]


def _argument(number: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * number)


def _if_argument(number: int, value: int) -> list[Instruction]:
    """Allow it if an argument, of 32 bits, has a value."""
    return [_argument(number), (_IF_EQUAL, 0, 1, value), _give(_ALLOW)]


def _only_threads() -> list[Instruction]:
    return [_argument(0), (_IF_BITS, 0, 1, _CLONE_THREAD), _give(_ALLOW), _give(_DENY)]


def _not_typing() -> list[Instruction]:
    refused = [[(_IF_EQUAL, 0, 1, request), _give(_DENY)] for request in _TYPING]
    return [_argument(1), *refused[0], *refused[1], _give(_ALLOW)]


_PREPARED: Final = (
    b"".join(_INSTRUCTION.pack(*each) for each in program(os.uname().machine, _NO_PROCESS))
    if known_machine()
    else b""
)
"""Made when this is imported: where many processes are forked, none has to touch memory for it."""


def packed(process: int) -> bytes:
    """The filter for this machine, as the kernel reads it.

    Args:
        process: as of `program`.
    """
    return _PREPARED.replace(_NUMBER.pack(_NO_PROCESS), _NUMBER.pack(process))


def install() -> None:
    """From now on all threads of this process are under the filter.

    New privileges have to be given up before.

    Raises:
        OSError: the kernel has no filters, or a thread has one of its own.
    """
    machine = os.uname().machine
    content = packed(os.getpid())
    array = ctypes.create_string_buffer(content, len(content))
    count = len(content) // _INSTRUCTION.size
    whole = _Program(count, ctypes.cast(array, ctypes.POINTER(_Filter)))
    thread = system_call(
        LOOKED_AT[machine]["seccomp"], _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(whole)
    )
    if thread:  # the number of the one that could not be brought under it
        raise OSError(errno.EBUSY, f"thread {thread} has a filter of its own")
