"""A daemon begins: disk processes that went on without one are found by their sockets."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from tapcore.daemon.daemon import Daemon
from tapcore.daemon.disks import LOST, SERVING, Disk
from tapcore.daemon.processes import Process
from tapcore.daemon.remote import Remote
from tapcore.daemon.spec import DiskSpec
from tapcore.errors import TapError, describe

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
        remote = Remote(daemon.loop, daemon.timer, path)

        def told(found: Any, error: BaseException | None) -> None:
            if error is not None:
                self._nobody(name, path, error)
                remote.close()
                self._one_less()
                return
            try:
                pidfd = os.pidfd_open(found["pid"])
            except OSError as exc:
                self._nobody(name, path, exc)
                remote.close()
                self._one_less()
                return
            self._ask_for_socket(name, remote, found, pidfd)

        remote.call("list", {}, seconds=_SECONDS).then(told)

    def _nobody(self, name: str, path: str, error: BaseException) -> None:
        if isinstance(error, ConnectionRefusedError):
            with suppress(OSError):
                os.unlink(path)
        else:
            log.error("%s: its process cannot be asked: %s", name, describe(error))

    def _ask_for_socket(self, name: str, remote: Remote, found: dict[str, Any], pidfd: int) -> None:
        """It answers once more: so the process number was still its own when it was looked up."""
        daemon = self._daemon

        def told(answer: Any, error: BaseException | None) -> None:
            if error is not None:
                log.error("%s: its process cannot be asked: %s", name, describe(error))
                os.close(pidfd)
                remote.close()
                self._one_less()
                return
            process = daemon.processes.watch(name, found["pid"], pidfd, remote.descriptors.pop(0))
            process.remote.close()
            process.remote = remote
            self._adopt(process, list(found["disks"]))

        remote.call("control", {}, seconds=_SECONDS).then(told)

    def _adopt(self, process: Process, rows: list[dict[str, Any]]) -> None:
        """Take the sockets of its disks, one after the other."""
        if not rows:
            if not process.disks:
                process.ending = True
                process.signal(15)
            self._one_less()
            return
        row = rows.pop(0)

        def told(answer: Any, error: BaseException | None) -> None:
            if error is None:
                self._adopt_disk(process, row, answer["sockets"])
            else:
                log.error("%s: its sockets cannot be had: %s", row["name"], describe(error))
            self._adopt(process, rows)

        process.remote.call("sockets", {"name": row["name"]}, seconds=_SECONDS).then(told)

    def _adopt_disk(self, process: Process, row: dict[str, Any], sockets: int) -> None:
        spec = DiskSpec.of(row["spec"])
        taken = process.remote.descriptors[:sockets]
        del process.remote.descriptors[:sockets]
        disk = Disk(spec, spec.address(self._daemon.place.nbd_socket(spec.name)), SERVING, process)
        disk.adopt(tuple(taken))
        disk.facts = row
        process.disks.add(spec.name)
        self._daemon.disks[spec.name] = disk
        log.info("%s: found again, in process %d", spec.name, process.pid)

    # ---- what is lost -----------------------------------------------------------------------

    def _look_for_lost(self) -> None:
        daemon = self._daemon
        for remembered in daemon.remembered():
            spec = remembered.spec
            if spec.name in daemon.disks:
                continue
            disk = Disk(spec, spec.address(daemon.place.nbd_socket(spec.name)), LOST)
            disk.reason = "its process was not there when the daemon began"
            daemon.disks[spec.name] = disk
            log.warning("%s: its process is not there any more", spec.name)
            if self._restore:
                self._attach_again(disk)
        with suppress(OSError):
            daemon.remember()

    def _attach_again(self, disk: Disk) -> None:
        try:
            disk.listen()
        except TapError as exc:
            disk.reason = describe(exc)
            log.error("%s: cannot be attached again: %s", disk.name, exc)
            return
        self._daemon.restarts.bring_back(disk)
