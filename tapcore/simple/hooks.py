"""Hooks made of the methods of a `SimpleDriver`: each request is one call in a thread."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import attrs

from tapcore.constants import BLK_NOT_ALLOCATED, SECTOR_SHIFT, TD_NO_PARENT, TD_RDONLY
from tapcore.errors import DriverError, ImageFormatError, TapError, UsageError
from tapcore.files import open_image_file
from tapcore.interface.answer import Answer
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.extent import Extent
from tapcore.interface.hooks import hookimpl
from tapcore.interface.magic import Magic
from tapcore.interface.models import DiskDriver, TdCallback
from tapcore.interface.options import DiskId
from tapcore.interface.results import CheckResult
from tapcore.simple.methods import SimpleMethods
from tapcore.simple.opened import OpenSimple

_KINDS: Final = {"data": "data", "zero": "zero", "hole": "unallocated"}

_HEAD_ALONE: Final = 2
"""Arguments of a `probe` that takes the class and a file's head."""


# ---- hooks ---------------------------------------------------------------------------------------


def _open(cls: type[SimpleMethods], dd: DiskDriver[Any], name: str, flags: int) -> None:
    if dd.options.cache != "writeback":
        raise UsageError(f"the format {cls.handle} always goes through the page cache")
    disk = cls()
    disk.dd, disk.name, disk.read_only = dd, name, bool(flags & TD_RDONLY)
    disk.size = 0
    with contextlib.ExitStack() as stack:
        if cls.needs_file:
            disk.file = open_image_file(name, flags, dd.options)
            stack.callback(disk.file.close)
            disk.size = disk.file.size
        disk.open()
        size: object = disk.size
        if not isinstance(size, int) or size < 0:
            raise DriverError(f"the driver {cls.handle} has set an impossible size: {size!r}")
        if disk.size % 512 and not disk.read_only:
            raise ImageFormatError("has a size that is no whole number of sectors; it can be read")
        dd.private = OpenSimple(dd, disk)
        stack.pop_all()
    dd.size = -(-disk.size // 512)
    dd.sector_size = cls.block_size


def _read(
    dd: DiskDriver[OpenSimple],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    image = dd.private

    def read(offset: int, length: int, into: memoryview) -> int:
        content = image.disk.pread(offset, length)
        if content is None:
            return BLK_NOT_ALLOCATED
        found = memoryview(content).cast("B")
        if len(found) != length:
            raise DriverError(f"pread returned {len(found)} bytes, {length} were asked for")
        into[:length] = found
        into[length:] = bytes(len(into) - length)
        return 0

    calls = [
        (at, count, partial(read, offset, length, _part(buf, at - sector, count)))
        for at, count, offset, length in image.pieces(sector, nb_sectors)
    ]
    return image.queue(calls, Answer(cb, dd, id, prv))


def _part(buf: memoryview, skip: int, count: int) -> memoryview:
    return buf[skip << SECTOR_SHIFT : (skip + count) << SECTOR_SHIFT]


def _write(
    dd: DiskDriver[OpenSimple],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    image = dd.private
    calls = [
        (at, count, partial(_nothing, image.disk.pwrite, offset, _part(buf, at - sector, count)))
        for at, count, offset, _ in image.pieces(sector, nb_sectors)
    ]
    return image.queue(calls, Answer(cb, dd, id, prv))


def _nothing(call: Callable[..., None], *args: Any) -> int:
    call(*args)
    return 0


def _flush(dd: DiskDriver[OpenSimple], cb: TdCallback, id: int, prv: Any) -> int:
    call = partial(_nothing, dd.private.disk.flush)
    return dd.private.queue([(0, 0, call)], Answer(cb, dd, id, prv))


def _change(
    dd: DiskDriver[OpenSimple], method: Callable[[int, int], None], at: int, nb: int, answer: Answer
) -> int:
    offset, length = at << SECTOR_SHIFT, nb << SECTOR_SHIFT
    return dd.private.queue([(at, nb, partial(_nothing, method, offset, length))], answer)


def _discard(
    dd: DiskDriver[OpenSimple], sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    answer = Answer(cb, dd, id, prv)
    return _change(dd, dd.private.disk.discard, sector, nb_sectors, answer)


def _zero(
    dd: DiskDriver[OpenSimple],
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    if not may_unmap:
        return -errno.EOPNOTSUPP
    image = dd.private

    def zero(offset: int, length: int) -> None:
        try:
            image.disk.zero(offset, length)
        except TapError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                raise OSError(errno.EOPNOTSUPP, "not quickly") from None
            raise

    return _change(dd, zero, sector, nb_sectors, Answer(cb, dd, id, prv))


def _do_callbacks(dd: DiskDriver[OpenSimple], sid: int) -> int:
    return dd.private.reap()


def _extents(dd: DiskDriver[OpenSimple], sector: int, nb_sectors: int) -> Iterator[Extent]:
    found = dd.private.extents(sector, nb_sectors)
    if found is None:  # content that only the driver can read: no error, whatever it is
        yield Extent(sector, nb_sectors, "compressed")
        return
    for length, kind in found:
        if kind not in _KINDS or length % 512:
            raise DriverError(f"extents told of {length} bytes of {kind!r}, which cannot be")
        yield Extent(sector, length // 512, _KINDS[kind])  # type: ignore[arg-type]
        sector += length // 512


def _get_parent_id(dd: DiskDriver[OpenSimple], id: DiskId) -> int:
    recorded = dd.private.disk.parent()
    if not recorded:
        return TD_NO_PARENT
    handle, colon, name = recorded.partition(":")
    known = colon and handle.isidentifier()
    id.drivertype, id.name = (handle, name) if known else ("", recorded)
    return 0


def _validate_parent(dd: DiskDriver[OpenSimple], p: DiskDriver[Any], flags: int) -> int:
    dd.private.disk.check_parent(p)
    return 0


def _resize(dd: DiskDriver[OpenSimple], size: int) -> None:
    disk = dd.private.disk
    with dd.private.alone:
        disk.resize(size)
    disk.size = size
    dd.size = size // 512


def _info(dd: DiskDriver[OpenSimple]) -> dict[str, Any]:
    with dd.private.alone:
        return dd.private.disk.info()


def _check(dd: DiskDriver[OpenSimple], repair: str) -> CheckResult:
    with dd.private.alone:
        return dd.private.disk.check(repair)


def _close(dd: DiskDriver[OpenSimple]) -> None:
    dd.private.close()


# ---- a class becomes a driver --------------------------------------------------------------------


@attrs.frozen
class _HookOf:
    """A hook, and the methods of which a driver must have one for it; none: every driver has it."""

    hook: str
    function: Callable[..., Any]
    methods: tuple[str, ...] = ()


_HOOKS: Final = (
    _HookOf("td_queue_read", _read),
    _HookOf("td_do_callbacks", _do_callbacks),
    _HookOf("td_close", _close),
    _HookOf("td_queue_write", _write, ("pwrite",)),
    _HookOf("td_queue_flush", _flush, ("pwrite",)),
    _HookOf("td_queue_discard", _discard, ("discard",)),
    _HookOf("td_queue_write_zeroes", _zero, ("zero",)),
    _HookOf("td_extents", _extents, ("extents",)),
    _HookOf("td_get_parent_id", _get_parent_id, ("parent",)),
    _HookOf("td_validate_parent", _validate_parent, ("parent",)),
    _HookOf("td_resize", _resize, ("resize",)),
    _HookOf("td_info", _info, ("info",)),
    _HookOf("td_check", _check, ("check",)),
)


def become_driver(cls: type[SimpleMethods]) -> None:
    """Give a class its `disk_info` and its hooks, as a module would have them."""

    def has(method: str) -> bool:
        mine, base = getattr(cls, method), getattr(SimpleMethods, method)
        return getattr(mine, "__func__", mine) is not getattr(base, "__func__", base)

    probe = getattr(cls.probe, "__func__", cls.probe)
    with_tail = probe.__code__.co_argcount > _HEAD_ALONE
    by_magic = bool(cls.magic) and not has("probe")
    cls.disk_info = DiskInfo(
        handle=cls.handle,
        name=cls.title or cls.handle,
        api=cls.api,
        suffixes=cls.suffixes,
        file_backed=cls.needs_file,
        create_options=cls.create_options,
        magic=(Magic(cls.magic, cls.magic_offset),) if by_magic else (),
    )

    def td_open(dd: DiskDriver[Any], name: str, flags: int) -> None:
        _open(cls, dd, name, flags)

    def td_probe(head: bytes, tail: bytes) -> bool:
        return cls.probe(head, tail) if with_tail else cls.probe(head)

    def td_create(
        name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
    ) -> None:
        cls.create(name, size, "" if parent is None else str(parent), options)

    made: dict[str, Callable[..., Any]] = {"td_open": td_open}
    if has("probe"):
        made["td_probe"] = td_probe
    if has("create"):
        made["td_create"] = td_create
    for each in _HOOKS:
        if not each.methods or any(map(has, each.methods)):
            made[each.hook] = each.function
    for hook, function in made.items():
        setattr(cls, hook, staticmethod(hookimpl(specname=hook)(function)))
