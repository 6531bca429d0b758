"""Plugins that the registry has to refuse, each wrong in one way, and small ones that are right."""

from typing import Any

from tapcore import DiskInfo, hookimpl


def info(handle: str, api: int = 1) -> DiskInfo:
    return DiskInfo(handle=handle, name=f"test driver {handle}", api=api)


class Tiny:
    """The least that a driver can be; a read gives its mark."""

    def __init__(self, handle: str, mark: int = 0) -> None:
        self.disk_info = info(handle)
        self.mark = mark
        self.submits = 0

    @hookimpl
    def td_open(self, dd: Any, name: str, flags: int) -> None:
        dd.size = 8

    @hookimpl
    def td_queue_read(
        self, dd: Any, sector: int, nb_sectors: int, buf: Any, cb: Any, id: int, prv: Any
    ) -> int:
        buf[:] = bytes([self.mark]) * len(buf)
        return int(cb(dd, 0, sector, nb_sectors, id, prv))


class Terse(Tiny):
    """Its hooks take only the arguments that they need, as pluggy allows."""

    @hookimpl
    def td_submit(self) -> int:
        self.submits += 1
        return 0

    @hookimpl
    def td_queue_write(
        self, cb: Any, dd: Any, prv: Any, id: int, nb_sectors: int, sector: int
    ) -> int:
        return int(cb(dd, 0, sector, nb_sectors, id, prv))


class NoInfo:
    """No `disk_info`."""


class OldApi(Tiny):
    """Written for other hooks."""

    def __init__(self) -> None:
        super().__init__("old")
        self.disk_info = info("old", api=2)


class CannotRead:
    """Implements too little."""

    disk_info = info("noread")

    @hookimpl
    def td_open(self, dd: Any, name: str, flags: int) -> None: ...


class UnknownHook(Tiny):
    """A hook of a name that does not exist."""

    @hookimpl
    def td_opne(self, dd: Any) -> None: ...


class BadSignature(Tiny):
    """A hook with an argument of a name that does not exist."""

    @hookimpl
    def td_submit(self, dd: Any, batch: Any) -> int:
        return 0


class Wraps(Tiny):
    """A driver that pretends to be a filter."""

    @hookimpl(wrapper=True)
    def td_submit(self, dd: Any) -> Any:
        return (yield)


class Explodes:
    """Any look at it raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("do not look at me")


class AnswersToAnyName(Tiny):
    """Something in it has every attribute that one asks for (as `unittest.mock.call` does)."""

    class _Anything:
        def __getattr__(self, name: str) -> Any:
            return type(self)()

        def __call__(self, *args: Any) -> Any:
            return type(self)()

    anything = _Anything()
