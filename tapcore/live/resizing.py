"""Another size for a disk that is served."""

from __future__ import annotations

from functools import partial
from typing import Any

from tapcore.disk.calls import DiskCalls
from tapcore.engine import READ, engine_of
from tapcore.errors import UsageError
from tapcore.interface.models import TdState
from tapcore.live.pausing import told_of
from tapcore.live.serveddisk import ServedDisk
from tapcore.live.tasks import Steps
from tapcore.sizes import changed_size, format_size, parse_size


def resize(disk: ServedDisk, size: str, *, shrink: bool = False) -> Steps[dict[str, Any]]:
    """Change the virtual size; new space reads as zeroes.

    NBD has no way to tell clients that are there: they see the new size when they connect again.

    Args:
        disk: running.
        size: `SIZE`, `+N` or `-N`, rounded up to whole sectors.
        shrink: making it smaller, which cuts its end off, is meant.

    Raises:
        TapError: the size is as it was.
    """
    disk.must_run()
    disk.must_be_writable()
    image = str(disk.image)
    disk.engine.disk.disks.drv.require("td_resize", image)
    old = disk.engine.size
    new = new_size(size, old, image, shrink=shrink)
    yield from disk.come_to_rest()
    out = disk.detach()
    try:
        yield from disk.tasks.in_thread(partial(_resize, out, new))
    finally:
        disk.attach(out)
        disk.go_on()
    return told_of(disk) | {"old-size": old}


def new_size(size: str, old: int, image: str, *, shrink: bool) -> int:
    """The size that is meant, in bytes.

    Raises:
        UsageError: it cannot be, or would cut something off without `shrink`.
    """
    if size.startswith("-") and parse_size(size[1:]) > old:
        raise UsageError(f"has only {old} bytes", image=image)
    new = changed_size(size, old)
    if not new:
        raise UsageError("a disk needs at least one sector (512 bytes)", image=image)
    if new < old and not shrink:
        text = f"this would cut {format_size(old - new)} off its end; --shrink allows it"
        raise UsageError(text, image=image)
    return new


def _resize(disk: TdState, size: int) -> None:
    engine = engine_of(disk)
    guard = engine.guard
    if guard is not None and size < engine.size:
        tail = min(guard.tail, size)
        head = _read(disk, 0, min(guard.head, size))
        if reason := guard.reason(head, _read(disk, size - tail, tail), size):
            raise UsageError(reason, image=str(disk.image))
    with DiskCalls(disk, None).driver(str(disk.image)) as dd:
        dd.drv.td_resize(dd, size)
    engine.refresh()


def _read(disk: TdState, offset: int, length: int) -> bytes:
    buf = bytearray(length)
    if length:
        DiskCalls(disk, None).ask(READ, offset, length, memoryview(buf))
    return bytes(buf)
