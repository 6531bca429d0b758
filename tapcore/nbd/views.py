"""Exports of which each client has a view of its own, or each name that clients ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import attrs

from tapcore.engine.loop import Loop
from tapcore.errors import TapError, UsageError, describe
from tapcore.interface.models import TdState
from tapcore.nbd import constants as nbd
from tapcore.nbd.constants import TransmissionFlag
from tapcore.nbd.exportinfo import ExportInfo
from tapcore.nbd.exports import Export, Exports
from tapcore.nbd.polled import PolledDisk
from tapcore.views.store import Room
from tapcore.views.template import Template, View

log = logging.getLogger(__name__)

MOST_VIEWS: Final = 1024
"""That are open at a time: clients choose their names."""

MAX_VIEW_NAME: Final = 64
"""Bytes of what stands behind the @."""


class Keeper(Protocol):
    """Makes something lasting of views that have come to their end."""

    def keep(self, own: TdState, name: str, done: Callable[[], None]) -> None:
        """Keep what a view has of its own.

        Args:
            own: that, as a disk.
            name: of the export.
            done: called when it is not needed any more, perhaps by a thread.
        """

    def finish(self) -> list[TapError]:
        """Wait until all is kept; returns what went wrong."""


@attrs.define(eq=False)
class _Served:
    """A view, its export, and its place in the poll set."""

    view: View
    export: Export
    polled: PolledDisk


class Views(Exports):
    """The exports of a server, which are not written: what clients write goes into views.

    Args:
        exports: the disks, open for reading.
        room: where views keep what is written to them.
        named: there is a view for each name `EXPORT@NAME`, which stays as long as the server runs,
            and EXPORT itself can only be read. Else there is one for each connection.
        keeper: for what outlives its view; None: nothing does.

    Raises:
        UsageError: the name of an export looks like a view's.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        room: Room,
        *,
        named: bool,
        keeper: Keeper | None = None,
    ) -> None:
        super().__init__(exports)
        self.lie_below_views = True
        if named and (clash := [each.info.name for each in exports if "@" in each.info.name]):
            text = f"the export '{clash[0]}' has an @ in its name, as views have; name it otherwise"
            raise UsageError(text)
        self._room = room
        self._named = named
        self._keeper = keeper
        templates = {id(each.disk): Template(each.disk) for each in exports}
        self._templates = {each.info.name: templates[id(each.disk)] for each in exports}
        self._open: list[_Served] = []
        self._by_view: dict[str, _Served] = {}
        self._leaving: list[_Served] = []
        self._loop: Loop | None = None

    # ---- what there is ----------------------------------------------------------------------

    def list_exports(self) -> list[ExportInfo]:
        """The disks, and the views that are open under names."""
        if not self._named:
            return [_of_view(export.info, export.info.name) for export in self.all]
        views = [each.export.info for each in self._by_view.values()]
        return [export.info for export in self.all] + views

    def find_export(self, name: str) -> ExportInfo | None:
        """By name; a view need not be there yet."""
        base, view = self._parts(name)
        export = super().get(base)
        if export is None:
            return None
        if not self._named:
            return _of_view(export.info, export.info.name)
        if view is None:
            return export.info
        full = _full_name(export, view)
        if not view or len(view.encode()) > MAX_VIEW_NAME or not self._room_for(full):
            return None
        return _of_view(export.info, full, shared=True)

    def _parts(self, name: str) -> tuple[str, str | None]:
        if not self._named:
            return name, None
        base, at, view = name.partition("@")
        return base, view if at else None

    def _room_for(self, full: str) -> bool:
        if full in self._by_view or len(self._open) < MOST_VIEWS:
            return True
        log.warning("a client was refused: there are %d views already", len(self._open))
        return False

    def get(self, name: str) -> Export | None:
        """The export itself; its view is made if there is none. None where that fails."""
        base, view = self._parts(name)
        export = super().get(base)
        if export is None or (self._named and view is None):
            return export
        full = export.info.name if view is None else _full_name(export, view)
        if full in self._by_view:
            return self._by_view[full].export
        if not self._room_for(full):
            return None
        try:
            return self._make(export, full)
        except OSError as exc:
            log.warning("a client was refused: there can be no view more: %s", describe(exc))
            return None

    # ---- views come and go ------------------------------------------------------------------

    def begin(self, loop: Loop) -> None:
        """Descriptors of views are polled there."""
        self._loop = loop
        loop.timeouts.append(self._timeout)

    def _make(self, base: Export, full: str) -> Export:
        assert self._loop is not None
        view = self._templates[base.info.name].view(self._room)
        info = _of_view(base.info, full, shared=self._named)
        export = Export(view.disk, view.engine, info, base.file_spans, meter=base.meter)
        view.engine.giving_up.append(export.before_giving_up)
        polled = PolledDisk(self._loop, view.engine, view.own_fds())
        served = _Served(view, export, polled)
        polled.on_close(partial(self._close, served))
        self._open.append(served)
        if self._named:
            self._by_view[full] = served
        else:
            export.left = partial(self._leaving.append, served)
        return export

    def _timeout(self) -> float | None:
        soonest = None
        for served in self._open:
            seconds = served.view.engine.timeout
            if seconds is not None and (soonest is None or seconds < soonest):
                soonest = seconds
        return soonest

    def turn(self) -> None:
        """The end of a batch: views submit what they have, and those go that nobody has."""
        for served in self._open:
            if served.view.engine.in_flight:
                served.view.engine.turn()
        if self._leaving:
            for served in [each for each in self._leaving if not each.view.engine.in_flight]:
                self._leaving.remove(served)
                self._end(served)

    @property
    def restless(self) -> bool:
        """Whether a client has gone since, so that its view comes to its end."""
        return any(not each.view.engine.in_flight for each in self._leaving)

    def _end(self, served: _Served) -> None:
        try:
            served.polled.close()
        except TapError as exc:
            log.error("%s", exc)

    def _close(self, served: _Served) -> None:
        """It has come to its end, and is not polled any more."""
        self._open.remove(served)
        self._by_view.pop(served.export.info.name, None)
        view = served.view
        if self._keeper is None or not view.store.written or view.engine.broken_off:
            view.close()
            return
        view.leave()
        self._keeper.keep(view.own(), served.export.info.name, view.close)

    def views(self) -> list[PolledDisk]:
        """All of them."""
        return [served.polled for served in self._open]

    def finish(self) -> list[TapError]:
        """Wait for what is being kept."""
        if self._loop is not None:
            self._loop.timeouts = [t for t in self._loop.timeouts if t != self._timeout]
        return [] if self._keeper is None else self._keeper.finish()


def _full_name(export: Export, view: str) -> str:
    return f"{export.info.name}@{view}"


def _of_view(base: ExportInfo, name: str, *, shared: bool = False) -> ExportInfo:
    """What the handshake tells of a view: it can be written.

    Args:
        base: of the disk below.
        name: of the view.
        shared: several clients may have it at once.
    """
    flag = TransmissionFlag
    flags = flag(base.transmission_flags) & ~(flag.READ_ONLY | flag.CAN_MULTI_CONN)
    flags |= flag.SEND_TRIM | flag.SEND_WRITE_ZEROES | flag.SEND_FAST_ZERO
    if shared:
        flags |= flag.CAN_MULTI_CONN
    contexts = tuple(each for each in base.contexts if not each.startswith(nbd.QEMU_BITMAP))
    return attrs.evolve(base, name=name, transmission_flags=int(flags), contexts=contexts)
