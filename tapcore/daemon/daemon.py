"""The control process: which disks there are, which process has which, and what becomes of them.

It is blktap's `blktapctrl`. It opens no image and parses nothing of one: whatever is wrong with an
image is the matter of its disk process.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs

from tapcore.daemon.brokers import Broker, Brokers
from tapcore.daemon.confining import Confining
from tapcore.daemon.controlsocket import ControlClient, ControlSocket
from tapcore.daemon.disks import RESTARTING, SERVING, STARTING, Disk
from tapcore.daemon.facts import facts_of, own_files
from tapcore.daemon.jsonrpc import Call, RpcError
from tapcore.daemon.loan import Loan
from tapcore.daemon.nursery import Nursery
from tapcore.daemon.processes import End, Process, Processes
from tapcore.daemon.restarts import Restarts
from tapcore.daemon.rundir import RunDirectory
from tapcore.daemon.spec import DiskSpec, NoSuchDiskError
from tapcore.daemon.state import Remembered, StateFile
from tapcore.daemon.verbs import Later
from tapcore.engine.loop import Loop
from tapcore.errors import IOFailedError, UsageError
from tapcore.nbd.listening import OpenSockets, SocketFile, UnixAddress, listen, listeners
from tapcore.process.timer import Timer

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 45.0
"""How long the end waits for disk processes, which give up themselves before that."""

_HANDLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?=:)", re.ASCII)
_ELSEWHERE: Final = "BelongsElsewhereError"


Dispatch = Callable[["Daemon", Call], Any]


class Daemon:
    """The disks of one run directory.

    Args:
        place: the run directory, which this process has to itself.
        dispatch: does what is asked for at the control socket.
        state: the file where disks are remembered; None: in the run directory.
        level: of the logs of its processes.
        without: drivers that are left out.
        confining: what disk processes give up once their images are open.

    Attributes:
        loop: in which all of it happens.
        timer: of that loop.
        disks: by name.
        brokers: which open files for disk processes.
        restarts: of those whose process died.
        before_end: called before the loop is closed.
        failed: a disk could not be closed as it should.
    """

    def __init__(
        self,
        place: RunDirectory,
        dispatch: Dispatch,
        *,
        state: StateFile | None = None,
        level: str = "warning",
        without: Sequence[str] = (),
        confining: Confining | None = None,
    ) -> None:
        self.place = place
        self._confining = confining or Confining()
        self.loop = Loop()
        self.timer = Timer()
        self.loop.add(self.timer.fd, lambda _: self.timer.run_due())
        self.disks: dict[str, Disk] = {}
        self.nursery = Nursery(
            self.loop, self.timer, f"{place.path}/warm-parent.log", level, without
        )
        self.brokers = Brokers(self.loop, place, self.nursery, confined=self._confining.wanted)
        self.processes = Processes(self.loop, self.timer, place, self.nursery, self._died)
        self.restarts = Restarts(self.timer, self.start, self._let_go, self._wants)
        self._state = state or StateFile(place.state)
        self._dispatch = dispatch
        self._control: ControlSocket | None = None
        self._file = SocketFile("")
        self.before_end: Callable[[], object] = lambda: None
        self.stopping = self.failed = False
        self._kept = False

    # ---- its life ---------------------------------------------------------------------------

    def listen(self, opened: int | None = None) -> None:
        """Let people ask.

        Args:
            opened: a socket that listens already, and whose file stays at the end; None: a new one.

        Raises:
            UsageError: the control socket cannot be made, or that is none.
        """
        if opened is None:
            listener = listen(UnixAddress(self.place.control))
            self._file = SocketFile(self.place.control)
        else:
            (listener,) = listeners(OpenSockets((opened,)))
        self._control = ControlSocket(self.loop, self.timer, listener, self._run)

    def run(self) -> None:
        """Until it is stopped."""
        self.loop.run()
        self.before_end()
        self._file.remove()
        if self._control is not None:
            self._control.close()
        for process in list(self.processes.all.values()):
            self.processes.forget(process)
        self.brokers.close()
        for disk in self.disks.values():
            if self._kept:
                disk.let_go()
            else:
                disk.turn_away()
        self.nursery.close()
        self.timer.abandon()
        self.loop.close()
        self.place.leave()

    def stop(self, *, keep_disks: bool = False) -> None:
        """End; disks are closed cleanly, unless they are to go on."""
        if self.stopping:
            return
        self.stopping, self._kept = True, keep_disks
        if keep_disks:
            self.timer.put(0.0, self.loop.stop)
            return
        self.timer.put(0.0, self._end_if_over)
        for process in self.processes.all.values():
            process.signal(signal.SIGTERM)
        self.timer.put(STOP_SECONDS, self._kill_the_rest)

    def _end_if_over(self) -> None:
        if self.processes.none:
            self.loop.stop()

    def _kill_the_rest(self) -> None:
        for process in self.processes.all.values():
            log.error("%s: its process does not end, and is killed", process.name)
            process.signal(signal.SIGKILL)

    def _run(self, call: Call, client: ControlClient) -> Any:
        if self.stopping:
            raise UsageError("the daemon ends", errno=errno.ESHUTDOWN)
        return self._dispatch(self, call)

    def remember(self) -> None:
        """Write down which disks there are.

        Raises:
            OSError: that does not go.
        """
        self._state.write(
            [
                Remembered(disk.spec, disk.process.name if disk.process else disk.name)
                for disk in self.disks.values()
                if disk.state != STARTING
            ]
        )

    @property
    def state_is_lost(self) -> bool:
        """Whether what another daemon has written down cannot be read."""
        return self._state.damaged

    def remembered(self) -> list[Remembered]:
        """What another daemon has written down."""
        return self._state.read()

    # ---- attach -----------------------------------------------------------------------------

    def disk(self, name: str) -> Disk:
        """The disk of a name.

        Raises:
            NoSuchDiskError: there is none.
        """
        found = self.disks.get(name)
        if found is None:
            raise NoSuchDiskError.of(name, self.disks)
        return found

    def attach(self, spec: DiskSpec) -> Later:
        """Open an image in a process, and serve it; gives the `Disk`.

        Raises:
            UsageError: the name is taken, or the address cannot be used.
        """
        if spec.name in self.disks:
            text = f"is attached already ({self.disks[spec.name].state})"
            raise UsageError(text, image=spec.name, errno=errno.EEXIST)
        disk = Disk(spec, spec.address(self.place.nbd_socket(spec.name)))
        disk.listen()
        self.disks[spec.name] = disk
        later = Later()
        self.start(disk).then(lambda result, error: self._attached(disk, later, error))
        return later

    def _attached(self, disk: Disk, later: Later, error: BaseException | None) -> None:
        if error is None:
            try:
                self.remember()
            except OSError as exc:
                error = exc
        if error is None:
            later.answer(disk)
            return
        self.forget(disk)
        later.fail(error)

    def _wants(self, disk: Disk) -> bool:
        return not self.stopping and self.disks.get(disk.name) is disk

    def forget(self, disk: Disk) -> None:
        """It is attached no more."""
        if self.disks.get(disk.name) is disk:
            del self.disks[disk.name]
            with suppress(OSError):
                os.unlink(self.place.page(disk.name))
        disk.turn_away()
        if disk.process is None:
            self.processes.forget_log(disk.name)
        self._let_go(disk)

    def _let_go(self, disk: Disk) -> None:
        """Its process need not have it; one without disks ends."""
        process, disk.process = disk.process, None
        if process is not None:
            process.disks.discard(disk.name)
            self._end_if_unused(process)

    def _end_if_unused(self, process: Process) -> None:
        if not process.disks:
            process.ending = True
            process.signal(signal.SIGTERM)

    def start(self, disk: Disk) -> Later:
        """Let a process serve it; gives the disk."""
        later = Later()
        disk.state = RESTARTING if disk.state == RESTARTING else STARTING
        self.nursery.when_ready(lambda: self._start(disk, self._process_name(disk), later))
        return later

    def _process_name(self, disk: Disk) -> str:
        named = _HANDLE.match(disk.spec.image)
        handle = "" if named is None else named.group()
        return f"@{handle}" if self.nursery.is_single_handler(handle) else disk.name

    def _start(self, disk: Disk, name: str, later: Later) -> None:
        def begun(process: Process | None, error: BaseException | None) -> None:
            if self.stopping:
                later.fail(UsageError("the daemon ends", errno=errno.ESHUTDOWN))
                if process is not None and not self._kept:
                    process.signal(signal.SIGTERM)
                self._end_if_over()
            elif process is None or error is not None:
                later.fail(error or IOFailedError("no process"))
            elif self.disks.get(disk.name) is not disk:
                later.fail(UsageError("was detached meanwhile", image=disk.name))
                # another disk may be about to use it
                self.timer.put(0.0, lambda: self._end_if_unused(process))
            else:
                self._open(disk, process, later)

        self.processes.get(name).then(begun)

    def _open(self, disk: Disk, process: Process, later: Later) -> None:
        disk.process = process
        process.disks.add(disk.name)
        if not process.told:
            process.told = True
            self._open_by(None, disk, process, later)
            return

        def ordered(broker: Broker | None, error: BaseException | None) -> None:
            if error is not None:
                later.fail(error)
            elif self.disks.get(disk.name) is not disk:
                later.fail(UsageError("was detached meanwhile", image=disk.name))
            elif self.processes.all.get(process.name) is not process:
                later.fail(self._why(process, IOFailedError("it was killed, perhaps")))
            else:
                self._open_by(broker, disk, process, later)
            if broker is not None:
                later.then(lambda *_: broker.end())

        try:
            self.brokers.order(process.name, Loan(disk.spec)).then(ordered)
        except OSError as exc:
            later.fail(exc)

    def _open_by(self, broker: Broker | None, disk: Disk, process: Process, later: Later) -> None:
        params = {**disk.spec.as_dict(), "sockets": len(disk.sockets), "shared": process.shared}
        params |= {"page": self.place.page(disk.name), **self._confining.as_params()}
        descriptors = disk.sockets
        if broker is not None:
            params["lent"], descriptors = True, (*descriptors, broker.theirs)

        def opened(facts: Any, error: BaseException | None) -> None:
            if isinstance(error, RpcError) and error.kind == _ELSEWHERE:
                self._move(disk, process, error.image, later)
            elif self.disks.get(disk.name) is not disk:
                self._opened_in_vain(disk, process, later)
            elif error is not None:
                later.fail(self._why(process, error))
            else:
                disk.facts, disk.state, disk.reason = facts_of(facts), SERVING, ""
                if disk.spec.own is None:
                    disk.spec = attrs.evolve(disk.spec, own=_own(facts, broker))
                later.answer(disk)

        process.remote.call("open", params, descriptors=descriptors).then(opened)
        if broker is not None:
            broker.give()

    def _opened_in_vain(self, disk: Disk, process: Process, later: Later) -> None:
        """It was detached meanwhile; other disks may go on in the process."""
        if process.disks and process.name in self.processes.all:
            process.remote.call("close", {"name": disk.name, "force": True})
        later.fail(UsageError("was detached meanwhile", image=disk.name))

    def _move(self, disk: Disk, process: Process, handle: str, later: Later) -> None:
        """Its driver has one process for all its disks."""
        process.disks.discard(disk.name)
        self._end_if_unused(process)
        self._start(disk, f"@{handle}", later)

    def _why(self, process: Process, error: BaseException) -> BaseException:
        """A connection that was lost says nothing: the process does."""
        if isinstance(error, RpcError):
            return error
        lines = self.processes.last_lines(process.name)
        text = f"its process died while it opened the image: {lines[-1] if lines else error}"
        return IOFailedError(text)

    # ---- death ------------------------------------------------------------------------------

    def _died(self, process: Process, end: End) -> None:
        """A process is gone; what it had not been told to close is started again."""
        disks = [disk for disk in self.disks.values() if disk.process is process]
        for disk in disks:
            disk.process, disk.last_lines = None, end.lines
        if self.stopping:
            self._end_of(process, end)
            return
        for disk in disks:
            if disk.state in (SERVING, RESTARTING):
                log.error("%s: its process %d %s", disk.name, process.pid, end.text)
                for line in end.lines:
                    log.error("%s: its log: %s", disk.name, line)
                self.restarts.after_death(disk, f"its process {end.text}")

    def _end_of(self, process: Process, end: End) -> None:
        """One of the last."""
        if not end.clean and not self._kept:
            self.failed = True
            log.error("%s: its process %d %s", process.name, process.pid, end.text)
            for line in end.lines:
                log.error("%s: its log: %s", process.name, line)
        self._end_if_over()


def _own(facts: Any, broker: Broker | None) -> tuple[str, ...] | None:
    """Which files a disk writes: its process is believed where it was not confined before."""
    if broker is None:
        return own_files(facts.get("own")) if isinstance(facts, dict) else None
    broker.hear()
    return own_files(broker.own.get("old"))
