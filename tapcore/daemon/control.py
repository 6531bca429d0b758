"""The daemon as a process: its directory, its signals, and when it is ready."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from tapcore.daemon.confining import Confining
from tapcore.daemon.daemon import Daemon
from tapcore.daemon.daemonverbs import dispatch
from tapcore.daemon.recovery import Recovery
from tapcore.daemon.rundir import RunDirectory
from tapcore.daemon.state import StateFile
from tapcore.errors import describe
from tapcore.metrics.pages import PageSet
from tapcore.monitor.webserver import WebServer
from tapcore.process.heard import HeardSignals
from tapcore.process.libc import libc

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER: Final = 36


class ControlDaemon:
    """A daemon that has its directory to itself.

    Args:
        place: the run directory.
        state: file where disks are remembered; None: in the run directory.
        restore: attach lost disks again.
        level: of the logs of disk processes.
        without: drivers that are left out.
        confining: what disk processes give up; None: all but their images.
        control: a socket that listens already; None: one is made in the run directory.
        metrics_port: of loopback, where browsers and Prometheus see what disks do; None: nowhere.

    Raises:
        TapError: the directory is in use, or of no use.
    """

    def __init__(
        self,
        place: RunDirectory,
        *,
        state: str | None = None,
        restore: bool = False,
        level: str = "warning",
        without: Sequence[str] = (),
        confining: Confining | None = None,
        control: int | None = None,
        metrics_port: int | None = None,
    ) -> None:
        place.take()
        _adopt_orphans()
        _allow_many_files()
        self._restore = restore
        self._control = control
        self._metrics_port = metrics_port
        where = StateFile(state or place.state)
        self._daemon = Daemon(
            place,
            dispatch,
            state=where,
            level=level,
            without=without,
            confining=confining,
        )

    def run(self, ready: Callable[[], None]) -> bool:
        """Until it is stopped; returns whether all disks were closed as they should.

        Args:
            ready: called once people can ask, and running disks are found again.

        Raises:
            TapError: the control socket cannot be made.
            OSError: `ready` raised it.
        """
        daemon = self._daemon
        wishes: dict[int, Callable[[], object]] = {
            signal.SIGTERM: daemon.stop,
            signal.SIGINT: daemon.stop,
            signal.SIGHUP: self._look_for_drivers,
        }
        signals = HeardSignals(wishes)
        daemon.loop.add(signals.fileno(), lambda _: signals.heard())
        failed: list[BaseException] = []
        web = None if self._metrics_port is None else self._show_metrics(self._metrics_port)

        def found() -> None:
            try:
                daemon.remember()  # where that does not go, no disk could be attached
                daemon.listen(self._control)
                daemon.nursery.when_ready(lambda: self._tell(ready, failed))
            except Exception as exc:
                failed.append(exc)
                daemon.stop(keep_disks=True)

        Recovery(daemon, restore=self._restore, done=found).begin()
        daemon.before_end = web.close if web is not None else lambda: None
        try:
            daemon.run()
        finally:
            signals.close()
        for exc in failed:
            raise exc
        return not daemon.failed

    def _show_metrics(self, port: int) -> WebServer:
        from tapcore.daemon.maps import draw_disks
        from tapcore.monitor.monitor import Monitor  # needs what is installed where it is wanted

        pages = PageSet([os.path.dirname(self._daemon.place.page(""))])
        monitor = Monitor(lambda: [now for _, now in pages.look()], draw_disks(self._daemon))
        return monitor.listen(self._daemon.loop, port)

    def _tell(self, ready: Callable[[], None], failed: list[BaseException]) -> None:
        if self._daemon.stopping:
            return
        try:
            ready()
        except Exception as exc:  # nobody can know of it
            failed.append(exc)
            self._daemon.stop(keep_disks=True)

    def _look_for_drivers(self) -> None:
        def told(drivers: object, error: BaseException | None) -> None:
            if error is not None:
                log.error("drivers could not be looked for: %s", describe(error))

        self._daemon.nursery.renew().then(told)


def _adopt_orphans() -> None:
    """Disk processes become children of this one, which then learns how each ended (prctl(2))."""
    libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _allow_many_files() -> None:
    """A disk takes four descriptors here."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
