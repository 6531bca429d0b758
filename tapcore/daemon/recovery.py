"""A daemon begins: disk processes that went on without one are found by their sockets."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import attrs

from tapcore.daemon.changes import watch_commit
from tapcore.daemon.daemon import Daemon
from tapcore.daemon.disks import LOST, SERVING, Disk
from tapcore.daemon.facts import facts_of, has_open, listens_at, rows_of
from tapcore.daemon.processes import Process
from tapcore.daemon.remote import Remote
from tapcore.daemon.spec import DiskSpec
from tapcore.errors import IOFailedError, TapError, UsageError, describe, printable

log = logging.getLogger(__name__)

_SECONDS: Final = 10.0
"""For a process to answer; one that does not is left alone."""

_SUFFIX: Final = ".sock"


class Recovery:
    """Finds what runs, and then what does not.

    Args:
        daemon: which gets the disks.
        restore: attach those again that are remembered, and lost.
        done: called once, when all is found.
    """

    def __init__(self, daemon: Daemon, *, restore: bool, done: Callable[[], object]) -> None:
        self._daemon = daemon
        self._restore = restore
        self._done = done
        self._left = 1
        self._remembered = {each.spec.name: each for each in daemon.remembered()}

    def begin(self) -> None:
        """Ask every process whose socket is there."""
        folder = os.path.dirname(self._daemon.place.process_socket(""))
        for name in sorted(os.listdir(folder)):
            if name.endswith(_SUFFIX):
                self._left += 1
                self._ask(name.removesuffix(_SUFFIX))
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self._look_for_lost()
            self._done()

    # ---- processes that run -----------------------------------------------------------------

    def _ask(self, name: str) -> None:
        daemon = self._daemon
        path = daemon.place.process_socket(name)
        remote = Remote(daemon.loop, daemon.timer, path, takes_descriptors=True)

        def told(found: Any, error: BaseException | None) -> None:
            if error is not None:
                self._nobody(name, remote, error)
                return
            try:
                pidfd = os.pidfd_open(remote.sender)
            except OSError as exc:
                self._nobody(name, remote, exc)
                return
            self._ask_for_socket(name, remote, list(rows_of(found).values()), pidfd)

        remote.call("list", {}, seconds=_SECONDS).then(told)

    def _nobody(self, name: str, remote: Remote, error: BaseException) -> None:
        if isinstance(error, ConnectionRefusedError):
            with suppress(OSError):
                os.unlink(remote.path)
        else:
            log.error("%s: its process cannot be asked: %s", name, describe(error))
        remote.close()
        self._one_less()

    def _ask_for_socket(
        self, name: str, remote: Remote, rows: list[dict[str, Any]], pidfd: int
    ) -> None:
        """It answers once more: so the process number was still its own when it was looked up."""
        daemon, pid = self._daemon, remote.sender

        def told(answer: Any, error: BaseException | None) -> None:
            if error is None and not (remote.descriptors and remote.sender == pid):
                error = IOFailedError("its control socket did not come")
            if error is not None:
                os.close(pidfd)
                self._nobody(name, remote, error)
                return
            process = daemon.processes.watch(name, pid, pidfd, remote.descriptors.pop(0))
            process.told = True
            self._adopt(process, remote, rows)

        remote.call("control", {}, seconds=_SECONDS).then(told)

    def _adopt(self, process: Process, remote: Remote, rows: list[dict[str, Any]]) -> None:
        """Take the sockets of its disks, one after the other."""
        if not rows:
            remote.close()
            if not process.disks:
                process.ending = True
                process.signal(signal.SIGTERM)
            self._one_less()
            return
        row = rows.pop(0)

        def told(answer: Any, error: BaseException | None) -> None:
            try:
                if error is not None:
                    raise error
                self._adopt_disk(process, row, remote)
            except (TapError, OSError) as exc:
                log.error("%s: cannot be taken over: %s", printable(row["name"]), describe(exc))
            self._adopt(process, remote, rows)

        remote.call("sockets", {"name": row["name"]}, seconds=_SECONDS).then(told)

    def _adopt_disk(self, process: Process, row: dict[str, Any], remote: Remote) -> None:
        taken, remote.descriptors = remote.descriptors, []
        try:
            spec = self._believed(process, row)
            if spec.name in self._daemon.disks:
                raise UsageError("another process has a disk of this name")
            address = spec.address(self._daemon.place.nbd_socket(spec.name))
            wanted = [address] if spec.ring_address is None else [address, spec.ring_address]
            if len(taken) != len(wanted) or not all(map(listens_at, taken, wanted)):
                raise UsageError("its process does not listen where it should")
        except BaseException:
            for each in taken:
                os.close(each)
            raise
        disk = Disk(spec, address, SERVING, process)
        disk.adopt(tuple(taken))
        disk.facts = facts_of(row)
        process.disks.add(spec.name)
        self._daemon.disks[spec.name] = disk
        watch_commit(self._daemon, disk)
        log.info("%s: found again, in process %d", spec.name, process.pid)

    def _believed(self, process: Process, row: dict[str, Any]) -> DiskSpec:
        """With what a disk is attached: as it was written down, if its process does not know more.

        Raises:
            TapError: it cannot be told.
        """
        said = DiskSpec.of(row["spec"] if isinstance(row.get("spec"), dict) else {})
        known = self._remembered.get(said.name)
        if known is not None and known.process == process.name:
            changed = (said.image, said.directory) != (known.spec.image, known.spec.directory)
            if changed and has_open(process.pid, said):
                image, directory = said.image, said.directory
                return attrs.evolve(known.spec, image=image, directory=directory, own=None)
            return known.spec
        if not self._daemon.state_is_lost and not has_open(process.pid, said):
            raise UsageError("nobody has written down that it is attached")
        return said

    # ---- what is lost -----------------------------------------------------------------------

    def _look_for_lost(self) -> None:
        daemon = self._daemon
        for remembered in self._remembered.values():
            spec = remembered.spec
            if spec.name in daemon.disks:
                continue
            disk = Disk(spec, spec.address(daemon.place.nbd_socket(spec.name)), LOST)
            disk.reason = "its process was not there when the daemon began"
            daemon.disks[spec.name] = disk
            log.warning("%s: its process is not there any more", spec.name)
            if self._restore:
                self._attach_again(disk)

    def _attach_again(self, disk: Disk) -> None:
        try:
            disk.listen()
        except TapError as exc:
            disk.reason = describe(exc)
            log.error("%s: cannot be attached again: %s", disk.name, exc)
            return
        self._daemon.restarts.bring_back(disk)
