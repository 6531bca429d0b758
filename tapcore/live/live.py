"""The changes that can be made to the disks of a server, by the names of their exports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from tapcore.engine.loop import Deadline
from tapcore.errors import TapError, UsageError
from tapcore.interface.options import DiskId
from tapcore.interface.registry import Registry, default_registry
from tapcore.live import commit as commits
from tapcore.live.commit import Commit
from tapcore.live.pausing import pause, resume, swap, told_of
from tapcore.live.resizing import resize
from tapcore.live.serveddisk import ServedDisk
from tapcore.live.snapshot import Maker, snapshot
from tapcore.live.tasks import Done, Steps, Tasks
from tapcore.nbd.server import NbdServer
from tapcore.opening.names import split_name

log = logging.getLogger(__name__)

_BEGINNING: Final = {"phase": "beginning"}

END_SECONDS: Final = 20.0
"""How long a server that stops waits for what goes on."""


class Live:
    """Changes disks while a server serves them. Of the server's thread, before it has ended.

    Each call begins something, and returns at once: `done` is told of its end, with a dictionary,
    or with a TapError. One thing is done to a disk at a time.

    Args:
        server: whose disks.
        registry: drivers to use instead of the installed ones.
        renamed: called with the name of the export and the image that is about to be served under
            it, before any request gets to that; what it raises (TapError) stops the change. It may
            return what tells when the new name is noted: requests wait until then, for 5 s at most.

    Attributes:
        loop: of the server.
        registry: as given.
        at_end: called when nothing more can be done.
    """

    def __init__(
        self,
        server: NbdServer,
        *,
        registry: Registry | None = None,
        renamed: Callable[[str, DiskId], Callable[[], bool] | None] | None = None,
    ) -> None:
        self._server = server
        self.registry = registry or default_registry()
        self._renamed = renamed
        self.loop = server.loop
        self._tasks = Tasks(self.loop)
        self._disks: dict[int, ServedDisk] = {}
        self._commits: dict[ServedDisk, Commit] = {}
        self._beginning: dict[ServedDisk, bool] = {}  # whether it is still wanted
        self._ending: Deadline | None = None
        self._ended = False
        self.at_end: list[Callable[[], object]] = []
        server.may_close.append(self._may_close)

    # ---- which disk -------------------------------------------------------------------------

    def disk(self, name: str) -> ServedDisk:
        """The disk of an export.

        Raises:
            UsageError: there is none of that name, or clients write into views over it.
        """
        exports = self._server.exports
        found = exports.get(name)
        if found is None:
            raise UsageError("there is no such disk", image=name)
        if exports.lie_below_views:
            raise UsageError("is served through views, and stays as it is", image=name)
        engine = found.engine
        if id(engine) not in self._disks:
            own = [export for export in exports.all if export.engine is engine]
            self._disks[id(engine)] = ServedDisk(
                engine,
                own,
                self._server.polled(engine),
                self.registry,
                self._tasks,
                self._server.let_go_of_files,
                self._tell_of_name,
            )
        return self._disks[id(engine)]

    def _tell_of_name(self, disk: ServedDisk, image: DiskId) -> Callable[[], bool] | None:
        return None if self._renamed is None else self._renamed(disk.name, image)

    def _start(
        self, name: str, doing: str, steps: Callable[[ServedDisk], Steps[Any]], done: Done
    ) -> None:
        try:
            if self._ending is not None:
                raise UsageError("the server stops", image=name)
            disk = self.disk(name)
            if disk.changing:
                raise UsageError(f"{disk.changing} is going on", image=name)
        except TapError as exc:
            done(None, exc)
            return
        disk.changing = doing

        def over(result: Any, error: TapError | None) -> None:
            disk.changing = ""
            done(result, error)

        self._tasks.start(steps(disk), over)

    # ---- what can be done -------------------------------------------------------------------

    def state(self, name: str) -> dict[str, Any]:
        """What a disk is at the moment."""
        disk = self.disk(name)
        return told_of(disk) | {"changing": disk.changing}

    def pause(self, name: str, done: Done) -> None:
        """Answer what was asked, flush, and close the images; clients stay, and wait."""
        self._start(name, "pause", pause, done)

    def resume(self, name: str, done: Done) -> None:
        """Open the images again, and answer what has waited."""
        self._start(name, "resume-io", resume, done)

    def swap(self, name: str, image: str, done: Done) -> None:
        """Serve another image of the same size in the place of this one."""

        def steps(disk: ServedDisk) -> Steps[Any]:
            return swap(disk, split_name(image, self.registry))

        self._start(name, "swap", steps, done)

    def snapshot(
        self,
        name: str,
        child: str,
        done: Done,
        *,
        options: Mapping[str, str] | None = None,
        maker: Maker | None = None,
    ) -> None:
        """Make a new child, or have it made, and serve that."""

        def steps(disk: ServedDisk) -> Steps[Any]:
            return snapshot(disk, child, options, maker)

        self._start(name, "snapshot-live", steps, done)

    def resize(self, name: str, size: str, done: Done, *, shrink: bool = False) -> None:
        """Change the virtual size."""
        self._start(name, "resize-live", lambda disk: resize(disk, size, shrink=shrink), done)

    # ---- commit -----------------------------------------------------------------------------

    def commit(self, name: str, done: Done, ended: Done | None = None) -> None:
        """Begin to fold a disk into its parent.

        Args:
            name: of the export.
            done: told when it has begun.
            ended: told of its end.
        """

        def begun(result: Commit | None, error: TapError | None) -> None:
            if result is None:
                done(None, error)
                return
            disk = result.disk
            disk.changing = "commit-live"
            self._commits[disk] = result
            result.cancelled = not self._beginning.pop(disk)

            def over(told: Any, error: TapError | None) -> None:
                disk.changing = ""
                if error is not None:
                    log.warning("%s: commit-live: %s", disk.name, error)
                if ended is not None:
                    ended(told, error)

            self._tasks.start(commits.run(result), over)
            done(result.progress(), None)

        def steps(disk: ServedDisk) -> Steps[Commit]:
            others = [self.disk(export.info.name) for export in self._server.exports.all]
            self._beginning[disk] = True
            try:
                return (yield from commits.begin(disk, others, self.loop))
            except Exception:
                del self._beginning[disk]
                raise

        self._start(name, "commit-live", steps, begun)

    def commit_progress(self, name: str) -> dict[str, Any]:
        """How far the last commit of a disk is.

        Raises:
            UsageError: there was none.
        """
        disk = self.disk(name)
        return _BEGINNING if disk in self._beginning else self._commit(disk).progress()

    def cancel_commit(self, name: str) -> dict[str, Any]:
        """Let the commit of a disk end as soon as it can: the child is served on.

        Raises:
            UsageError: there is none that could be cancelled.
        """
        disk = self.disk(name)
        if disk in self._beginning:
            self._beginning[disk] = False
            return _BEGINNING
        commit = self._commit(disk)
        if commit.ended is not None:
            raise UsageError(f"the commit is {commit.phase}", image=name)
        commit.cancelled = True
        return commit.progress()

    def _commit(self, disk: ServedDisk) -> Commit:
        found = self._commits.get(disk)
        if found is None:
            raise UsageError("there was no commit", image=disk.name)
        return found

    # ---- the end ----------------------------------------------------------------------------

    def _may_close(self) -> bool:
        """The server stops: what goes on is brought to its end first, and commits are cancelled."""
        if self._ending is None:
            self._ending = Deadline(END_SECONDS)
            for commit in self._commits.values():
                commit.cancelled = True
            self._beginning = dict.fromkeys(self._beginning, False)
        if self._tasks.running and not self._ending.passed:
            return False
        if not self._ended:
            self._ended = True
            self._tasks.close()
            for call in self.at_end:
                call()
        return True
