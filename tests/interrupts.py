"""Ctrl-C in the middle of core code: raised by a hook, or wherever a signal may be heard.

with planted(disk.state, "td_queue_write", "after"):  # the hook does its work, and then raises
    disk.pwrite(0, b"x")
moments = Moments(); moments.run(work)                # at how many a signal may be heard
Moments(at=n).run(work)                               # interrupted at the n-th of them
"""

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import tapcore
from tapcore.engine import engine_of
from tapcore.interface.models import TdState

When = Literal["before", "after"]

_CODE = str(Path(tapcore.__file__).parent)
_PLUGINS = str(Path(__file__).resolve().parent.parent / "plugins")
_SHORT = {
    "td_queue_read": "read",
    "td_queue_write": "write",
    "td_queue_write_zeroes": "zero",
    "td_queue_discard": "discard",
    "td_queue_flush": "flush",
    "td_submit": "submit",
}
"""What the engine calls for a hook of the child."""

_LOOKING = {
    dis.opmap[name]
    for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME")
    if name in dis.opmap
}


@contextmanager
def planted(disk: TdState, hook: str, when: When) -> Iterator[None]:
    """The child's next call of a hook raises KeyboardInterrupt, before or after its work."""
    holder: Any = disk.disks.drv
    name = hook
    if hook in _SHORT:
        holder, name = engine_of(disk).layers[0], _SHORT[hook]
    real = getattr(holder, name)

    def raising(*args: Any) -> Any:
        setattr(holder, name, real)
        if when == "after":
            real(*args)
        raise KeyboardInterrupt

    setattr(holder, name, raising)
    try:
        yield
    finally:
        setattr(holder, name, real)


class Moments:
    """Runs work, and counts the moments at which the interpreter looks for signals in our code.

    That is where it enters a function or goes round a loop, and after each call of what is written
    in C. No signal is heard between two other instructions: not where a `with` is left, say.

    Args:
        at: at which of them (from 1) KeyboardInterrupt is raised; 0: never.

    Attributes:
        count: how many there were.
    """

    def __init__(self, at: int = 0) -> None:
        self._at = at
        self._before: dict[FrameType, int] = {}
        self.count = 0

    def run(self, work: Callable[[], object]) -> None:
        """Do it; what it raises is raised."""
        before = sys.gettrace()
        sys.settrace(self._entered)
        try:
            work()
        finally:
            sys.settrace(before)
            self._before.clear()

    def _entered(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_back is not None:
            self._before.pop(frame.f_back, None)  # what it called is no C
        file = frame.f_code.co_filename
        if not file.startswith(_CODE) and (not file.startswith(_PLUGINS) or "/tests/" in file):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._instruction

    def _instruction(self, frame: FrameType, event: str, _: object) -> Any:
        if event != "opcode":
            self._before.pop(frame, None)
            return self._instruction
        if self._before.pop(frame, -1) in _LOOKING:
            self.count += 1
            if self.count == self._at:
                raise KeyboardInterrupt
        self._before[frame] = frame.f_code.co_code[frame.f_lasti]
        return self._instruction
