"""A disk process: one thread, one loop, in which its disks are served and its control socket lives.

It is blktap's `tapdisk`: it begins without a disk, is told over its control socket which to open,
and ends with the last of them.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import attrs

from tapcore.daemon.borrowing import Borrowing
from tapcore.daemon.confining import Confining
from tapcore.daemon.controlsocket import ControlClient, ControlSocket
from tapcore.daemon.jsonrpc import Call
from tapcore.daemon.spec import DiskSpec, NoSuchDiskError
from tapcore.daemon.verbs import Later, VerbTable
from tapcore.engine.loop import Loop
from tapcore.errors import IOFailedError, TapError, UsageError
from tapcore.files.noting import rehearsing
from tapcore.files.rehearsal import Rehearsal
from tapcore.interface.access import Access
from tapcore.interface.registry import Registry
from tapcore.nbd.exports import Export
from tapcore.nbd.listening import OpenSockets
from tapcore.nbd.server import NbdServer
from tapcore.process.heard import HeardSignals
from tapcore.process.timer import Timer
from tapcore.tools.givennames import given_image
from tapcore.tools.ring import serve_ring
from tapcore.tools.serve import nbd_server
from tapcore.tools.sketcher import Sketcher
from tapcore.tools.unrecognised import is_unrecognised

log = logging.getLogger(__name__)

UNUSED_SECONDS: Final = 60.0
"""How long a process waits for its first disk: whoever started it may have died."""


@attrs.define(eq=False)
class ServedDisk:
    """One disk of a process.

    Attributes:
        spec: with what it was attached.
        server: of its clients.
        sockets: where that listens: copies, which go to a daemon that has none.
        own: paths of the files that it wrote when it was opened.
        since: when it was opened, on the monotonic clock.
        closing: who waits for its end; None: nobody has asked for that.
        state: "serving"; a verb that changes it says so here.
        live: what changes its images, once that was asked for.
        unrecognised: it is served as a raw disk only because nobody knows better.
    """

    spec: DiskSpec
    server: NbdServer
    sockets: tuple[int, ...]
    own: list[str]
    since: float = attrs.field(factory=monotonic)
    closing: Later | None = None
    state: str = "serving"
    live: Any = None
    unrecognised: bool = False

    @property
    def export(self) -> Export:
        """What its clients use."""
        return self.server.exports.all[0]

    @property
    def handle(self) -> str:
        """Of its driver."""
        return self.export.disk.image.drivertype


class BelongsElsewhereError(UsageError):
    """All disks of this driver share one process, and this is not it; `image` is its handle."""


class DiskProcess:
    """What one process serves.

    Args:
        listener: of its control socket.
        verbs: what can be asked for there.

    Attributes:
        loop: in which all of it happens.
        timer: of that loop.
        disks: by name.
        sketcher: makes maps of them.
        caller: who asks, while a verb begins.
        failed: a disk could not be closed as it should.
    """

    def __init__(self, listener: socket.socket, verbs: VerbTable[DiskProcess]) -> None:
        self.loop = Loop()
        self.timer = Timer()
        self.loop.add(self.timer.fd, lambda _: self.timer.run_due())
        self.disks: dict[str, ServedDisk] = {}
        self.sketcher = Sketcher(self.timer.put)
        self.caller: ControlClient | None = None
        self._verbs = verbs
        self._listener = listener
        self._control = ControlSocket(
            self.loop, self.timer, listener, self._dispatch, takes_descriptors=True
        )
        self._is_other = False  # than who may make files where the daemon looks for them
        self._stopping = self._shared = self.failed = self._confined = False
        self._signals: HeardSignals | None = None
        self.timer.put(UNUSED_SECONDS, self._end_if_unused)

    @property
    def control_descriptor(self) -> int:
        """Where its control socket listens."""
        return self._listener.fileno()

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT close all disks cleanly (main thread only)."""
        signals = HeardSignals({signal.SIGTERM: self.stop, signal.SIGINT: self.stop})
        self._signals = signals
        self.loop.add(signals.fileno(), lambda _: signals.heard())

    def run(self) -> None:
        """Until the last disk is closed, or `stop`."""
        self.loop.run()
        self._control.close()
        self.timer.abandon()
        if self._signals is not None:
            self._signals.close()
        self.loop.close()

    def stop(self) -> None:
        """Close all disks, and end."""
        self._stopping = True
        for disk in list(self.disks.values()):
            self.close(disk.spec.name, force=True)
        self.end_if_unused()

    # ---- disks ------------------------------------------------------------------------------

    def disk(self, name: str) -> ServedDisk:
        """The disk of a name.

        Raises:
            NoSuchDiskError: there is none.
        """
        found = self.disks.get(name)
        if found is None:
            raise NoSuchDiskError.of(name)
        return found

    def open(
        self, spec: DiskSpec, sockets: Sequence[int], *, shared: bool = False, page: str = ""
    ) -> ServedDisk:
        """Open an image, and serve it; this takes as long as its driver does.

        Args:
            spec: what, and how.
            sockets: where it is served; they belong to the process from now on.
            shared: this is the process of all disks of its driver.
            page: file of its counters; empty: nothing is counted.

        Raises:
            TapError: it cannot be opened; nothing is left of it.
        """
        kept = tuple(sockets)
        listening = tuple(os.dup(each) for each in kept)
        try:
            disk = self._opened(spec, listening, kept, shared=shared, page=page)
        except BaseException:
            for descriptor in (*kept, *listening):
                _close(descriptor)
            raise
        self.disks[spec.name] = disk
        self._shared = shared
        return disk

    def confine(self, disk: ServedDisk, how: Confining) -> None:
        """Give up what this process has no use for any more, with its first disk.

        Args:
            disk: that was just opened.
            how: as the daemon wants it.

        Raises:
            TapError: that does not go; the disk is closed again.
        """
        if self._confined or not how.wanted:
            return
        try:
            how.apply(shared=self._shared)
        except BaseException:
            disk.server.stop()
            raise
        self._confined, self._is_other = True, bool(how.user)

    @property
    def confined(self) -> bool:
        """Whether it can open no image any more by itself."""
        return self._confined

    def _opened(
        self,
        spec: DiskSpec,
        listening: tuple[int, ...],
        kept: tuple[int, ...],
        *,
        shared: bool,
        page: str,
    ) -> ServedDisk:
        if self._stopping:
            raise UsageError("the process ends", image=spec.name, errno=errno.ESHUTDOWN)
        if spec.name in self.disks:
            raise UsageError("a disk of this name is attached", image=spec.name, errno=errno.EEXIST)
        spec.enter_directory()
        access = spec.access()
        named = given_image(spec.image, access.registry).drivertype
        if named and not shared:
            _check_may_be_alone(named, access.registry)
        seen = Rehearsal()
        with rehearsing(seen):
            server = self._server(spec, access, OpenSockets(listening[:1]), page)
        own = seen.own
        seen.close()
        try:
            spec.check_own(own)
            if spec.ring:
                serve_ring(server, OpenSockets(listening[1:]))
        except BaseException:
            server.stop()
            raise
        disk = ServedDisk(spec, server, kept, own)
        disk.unrecognised = is_unrecognised(spec.image, disk.handle, access.registry)
        if not named and not shared:
            try:
                _check_may_be_alone(disk.handle, access.registry)
            except BelongsElsewhereError:
                server.stop()
                raise
        return disk

    def _server(self, spec: DiskSpec, access: Access, sockets: OpenSockets, page: str) -> NbdServer:
        return nbd_server(
            [spec.image],
            sockets,
            names=[spec.name],
            readonly=spec.read_only,
            cache=spec.cache_mode,
            metadata_cache=spec.metadata_cache,
            parents=access.references,
            keys=access.keys,
            filters=spec.filters,
            loop=self.loop,
            metrics=("" if self._is_other else page) if page else None,
            ended=lambda errors: self._ended(spec.name, errors),
        )

    def close(self, name: str, *, force: bool) -> Later:
        """Answer what clients have asked for, flush, and close a disk.

        Args:
            name: of it.
            force: also where clients are connected.

        Raises:
            TapError: there is no such disk, or it is in use.
        """
        disk = self.disk(name)
        clients = disk.server.clients
        if clients and not force:
            people = "a client is" if clients == 1 else f"{clients} clients are"
            text = f"{people} connected (--force ends their connections)"
            raise UsageError(text, image=name, errno=errno.EBUSY)
        if disk.closing is None:
            disk.closing = Later()
            disk.state = "closing"
            disk.server.stop()
        later = Later()
        disk.closing.then(lambda result, error: later.settle(None, error))
        return later

    def _ended(self, name: str, errors: list[TapError]) -> None:
        disk = self.disks.pop(name, None)
        if disk is None:  # it was never announced
            return
        for descriptor in disk.sockets:
            _close(descriptor)
        for error in errors:
            log.error("%s", error)
        self.failed |= bool(errors)
        if disk.closing is not None:
            if errors:
                disk.closing.fail(errors[0])
            else:
                disk.closing.answer(None)
        self.end_if_unused()

    def end_if_unused(self) -> None:
        """End, where there is no disk; when what was asked for has been answered."""
        if not self.disks:
            self.timer.put(0.0, self._end_if_unused)

    def _end_if_unused(self) -> None:
        # one for several disks may be told of another just now: it is ended by who tells it
        if not self.disks and (self._stopping or not self._shared):
            self.loop.stop()

    # ---- verbs ------------------------------------------------------------------------------

    def _dispatch(self, call: Call, client: ControlClient) -> Any:
        verb = self._verbs.find(call.method)
        self.caller = client
        try:
            return verb(self, call.params)
        finally:
            self.caller = None

    def take_descriptors(self, count: int) -> list[int]:
        """Descriptors that came with a call.

        Raises:
            UsageError: so many did not come.
        """
        caller = self.caller
        if caller is None or not 0 <= count <= len(caller.descriptors):
            raise UsageError("the descriptors did not come with the call")
        return [caller.descriptors.popleft() for _ in range(count)]

    def borrow(self, lent: bool) -> Borrowing | None:
        """Have files opened by the broker whose socket came with the call, if one did.

        Raises:
            UsageError: it did not come.
        """
        return Borrowing(self.take_descriptors(1)[0]) if lent else None

    @contextmanager
    def borrowing(self, lent: bool) -> Iterator[None]:
        """As `borrow`, as long as this lasts."""
        broker = self.borrow(lent)
        try:
            yield
        finally:
            if broker is not None:
                broker.close()


def _check_may_be_alone(handle: str, registry: Registry) -> None:
    if registry.get(handle).single_handler:
        raise BelongsElsewhereError("all its disks share a process", image=handle)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError as exc:
        if exc.errno != errno.EBADF:  # the server has closed those where it listened
            raise IOFailedError(os.strerror(exc.errno or 0), errno=exc.errno) from None
