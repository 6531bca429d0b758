"""The disk processes of a daemon: begun, watched, and what is told of their end."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import attrs

from tapcore.daemon.nursery import Born, Nursery
from tapcore.daemon.remote import Remote
from tapcore.daemon.rundir import RunDirectory
from tapcore.daemon.verbs import Later
from tapcore.engine.loop import Loop
from tapcore.errors import printable
from tapcore.nbd.listening import UnixAddress, listen
from tapcore.process.timer import Timer

log = logging.getLogger(__name__)

LAST_LINES: Final = 10
_TAIL: Final = 8192


@attrs.define(eq=False)
class Process:
    """A disk process.

    Attributes:
        name: of its files in the run directory: that of its disk, or `@HANDLE` where disks share
            it.
        pid: its number.
        pidfd: readable at its end; -1: it is looked after no more.
        remote: its control socket.
        listener: where that listens: it outlives the process.
        disks: names of those that it has.
        told: it was told to open a disk, and has confined itself since, perhaps.
        ending: its last disk was closed.
        gone: answered at its end.
    """

    name: str
    pid: int
    pidfd: int
    remote: Remote
    listener: int
    disks: set[str] = attrs.field(factory=set)
    told: bool = False
    ending: bool = False
    gone: Later = attrs.field(factory=Later)

    @property
    def shared(self) -> bool:
        """Whether it has all disks of its driver."""
        return self.name.startswith("@")

    def signal(self, number: int) -> None:
        """Send a signal; nothing where it has ended."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


@attrs.frozen
class End:
    """How a process ended.

    Attributes:
        text: for people.
        clean: nothing went wrong, as far as can be known.
        lines: the last of its log.
    """

    text: str
    clean: bool
    lines: tuple[str, ...]


class Processes:
    """All of them, by name.

    Args:
        loop: in which they are watched.
        timer: of the same loop.
        place: where their files lie.
        nursery: where they come from.
        died: told of each end, at once.
    """

    def __init__(
        self,
        loop: Loop,
        timer: Timer,
        place: RunDirectory,
        nursery: Nursery,
        died: Callable[[Process, End], object],
    ) -> None:
        self._loop = loop
        self._timer = timer
        self._place = place
        self._nursery = nursery
        self._died = died
        self._beginning: dict[str, list[Later]] = {}
        self.all: dict[str, Process] = {}

    def get(self, name: str) -> Later:
        """The process of a name, begun if need be."""
        later = Later()
        there = self.all.get(name)
        if there is not None and not there.ending:
            later.answer(there)
        elif name in self._beginning:
            self._beginning[name].append(later)
        else:
            self._beginning[name] = [later]
            if there is not None:
                there.gone.then(lambda result, error: self._begin(name))
            else:
                self._begin(name)
        return later

    @property
    def none(self) -> bool:
        """Whether none runs, nor is about to."""
        return not self.all and not self._beginning

    def _begin(self, name: str) -> None:
        try:
            listener = listen(UnixAddress(self._place.process_socket(name)))
            log_file = self._place.open_log(name)
        except OSError as exc:
            self._tell(name, None, exc)
            return
        born = self._nursery.fork(name, (listener.fileno(), log_file))
        os.close(log_file)
        kept = listener.detach()
        born.then(lambda result, error: self._born(name, kept, result, error))

    def _born(self, name: str, listener: int, born: Born | None, error: Any) -> None:
        if born is None:
            os.close(listener)
            self._tell(name, None, error)
            return
        process = self.watch(name, born.pid, born.pidfd, listener)
        self._tell(name, process, None)

    def watch(self, name: str, pid: int, pidfd: int, listener: int) -> Process:
        """One that runs."""
        remote = Remote(self._loop, self._timer, self._place.process_socket(name))
        process = self.all[name] = Process(name, pid, pidfd, remote, listener)
        self._loop.add(pidfd, lambda _: self._ended(process))
        return process

    def _tell(self, name: str, process: Process | None, error: BaseException | None) -> None:
        for later in self._beginning.pop(name, []):
            later.settle(process, error)

    def _ended(self, process: Process) -> None:
        end = End(*_how(process.pidfd), self.last_lines(process.name))
        self.forget(process)
        with suppress(OSError):
            os.unlink(self._place.process_socket(process.name))
        for name in (process.name, *process.disks):
            with suppress(OSError):
                os.unlink(self._place.page(name))
        self._died(process, end)
        if process.ending:
            self.forget_log(process.name)
        process.gone.answer(None)

    def forget(self, process: Process) -> None:
        """Look after it no more; it may go on."""
        if self.all.get(process.name) is process:
            del self.all[process.name]
        self._loop.remove(process.pidfd)
        os.close(process.pidfd)
        process.pidfd = -1  # another may get the number
        os.close(process.listener)
        process.remote.close()

    def forget_log(self, name: str) -> None:
        """Nobody will ask for what a process has told, if none of that name runs."""
        if name not in self.all:
            with suppress(OSError):
                os.unlink(self._place.process_log(name))

    def last_lines(self, name: str) -> tuple[str, ...]:
        """Of a process's log."""
        try:
            with open(self._place.process_log(name), "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(file.tell() - _TAIL, 0))
                text = file.read().decode(errors="replace")
        except OSError:
            return ()
        return tuple(printable(line) for line in text.splitlines()[-LAST_LINES:])


def _how(pidfd: int) -> tuple[str, bool]:
    """Words for the end of a process, and whether it was a good one.

    That of a process that a former daemon began is not known.
    """
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        found = None
    if found is None:
        return "ended", True
    if found.si_code == os.CLD_EXITED:
        return f"ended with status {found.si_status}", not found.si_status
    return f"was ended by {signal.Signals(found.si_status).name}", False
