"""Verbs of a disk process that change a disk's images under its clients: see `tapcore.live`.

Where another image takes the disk's place (`snapshot-live`, `swap`), a daemon has it `announced`:
it gets the answer before any client's request gets to the new image, writes the name down, and says
`noted`. So whatever dies when, the disk is attached again with what its clients have flushed into.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs

from tapcore.daemon.borrowing import Borrowing
from tapcore.daemon.diskprocess import DiskProcess, ServedDisk
from tapcore.daemon.loan import absolute_image, option_pairs
from tapcore.daemon.verbs import Later
from tapcore.errors import NotSupportedError, TapError, UsageError
from tapcore.interface.options import DiskId
from tapcore.live import Live
from tapcore.live.pausing import told_of
from tapcore.live.tasks import Done

_STATES: Final[Mapping[str, str]] = {"running": "serving", "paused": "paused", "failed": "no image"}


@attrs.define(eq=False)
class LiveDisk:
    """The live changes of one disk.

    Attributes:
        disk: as its process knows it.
        live: what makes them.
        announced: who hears of a new image first; None: nobody does.
        noted: the new image's name is written down.
        end: who waits for the end of a change that was announced.
    """

    disk: ServedDisk
    live: Live = attrs.field(init=False)
    announced: Later | None = None
    noted: bool = True
    end: Later | None = None

    def __attrs_post_init__(self) -> None:
        self.live = Live(self.disk.server, renamed=self._renamed)

    @property
    def name(self) -> str:
        """Of its only export."""
        return self.disk.spec.name

    def _renamed(self, name: str, image: DiskId) -> Callable[[], bool] | None:
        spec = self.disk.spec
        path = os.path.join(spec.directory, image.name) if _is_path(image, self.live) else None
        full = str(image if path is None else attrs.evolve(image, name=path))
        self.disk.spec = attrs.evolve(spec, image=full)
        if self.announced is None:
            return None
        self.noted = False
        told = told_of(self.live.disk(name)) | {"image": full, "state": "running"}
        self.announced.answer(_told(told))
        return lambda: self.noted

    def do(
        self,
        begin: Callable[[Done], object],
        *,
        announce: bool = False,
        broker: Borrowing | None = None,
    ) -> Later:
        """Begin a change; its end is the answer, and that of borrowing from a broker."""
        later = Later()
        if broker is not None:
            later.then(lambda *_: broker.close())
        announce = announce and self.announced is None  # else it is refused
        if announce:
            self.announced = later

        def done(result: Any, error: TapError | None) -> None:
            self._look()
            waiting = [later]
            if announce:
                self.announced = None
                waiting += [self.end] if self.end is not None else []
                self.end = None
            for each in waiting:
                if error is not None:
                    each.fail(error)
                else:
                    each.answer(_told(result))

        begin(done)
        return later

    def note(self) -> Later | None:
        """The name is written down; gives the end of the change."""
        self.noted = True
        if self.announced is not None:
            self.end = Later()
        return self.end

    def _look(self) -> None:
        if self.disk.closing is None:
            self.disk.state = _STATES[self.live.disk(self.name).state]


def _is_path(image: DiskId, live: Live) -> bool:
    return live.registry.get(image.drivertype).file_backed


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    """As the daemon tells of disks."""
    found = {key.replace("-", "_"): value for key, value in result.items()}
    if "state" in found:
        found["state"] = _STATES[found["state"]]
    if "size" in found:
        found["virtual_size"] = found.pop("size")
    return found


def _live(process: DiskProcess, name: str) -> LiveDisk:
    disk = process.disk(name)
    if disk.live is None:
        disk.live = LiveDisk(disk)
    found: LiveDisk = disk.live
    return found


def _changeable(process: DiskProcess, name: str) -> LiveDisk:
    """Raises UsageError where the disk is to stay the image that it is."""
    if process.disk(name).spec.fixed:
        raise NotSupportedError("was attached with --fixed", image=name)
    return _live(process, name)


def _opener(process: DiskProcess, name: str, lent: bool) -> Borrowing | None:
    """Who opens files for a change; None: this process.

    Raises:
        NotSupportedError: nobody does.
    """
    broker = process.borrow(lent)
    if broker is None and process.confined:
        text = "its process can open no image any more: only its daemon can change it"
        raise NotSupportedError(text, image=name)
    return broker


def pause(process: DiskProcess, *, name: str) -> Later:
    """Answer what was asked, flush, and close a disk's images; its clients stay, and wait."""
    found = _changeable(process, name)
    return found.do(partial(found.live.pause, name))


def resume_io(process: DiskProcess, *, name: str, lent: bool = False) -> Later:
    """Open a paused disk's images again, and answer what has waited."""
    found = _live(process, name)
    broker = _opener(process, name, lent)
    return found.do(partial(found.live.resume, name), broker=broker)


def snapshot_live(
    process: DiskProcess,
    *,
    name: str,
    child: str,
    directory: str = "/",
    options: tuple[str, ...] = (),
    announced: bool = False,
    lent: bool = False,
) -> Later:
    """Make a new child under a disk, and serve that; the old image is only read from now on."""
    found = _changeable(process, name)
    path = absolute_image(child, directory, found.live.registry)
    chosen = option_pairs(options)
    broker = _opener(process, name, lent)

    def begin(done: Done) -> None:
        found.live.snapshot(name, path, done, options=chosen, maker=broker)

    return found.do(begin, announce=announced, broker=broker)


def swap(
    process: DiskProcess,
    *,
    name: str,
    image: str,
    directory: str = "/",
    announced: bool = False,
    lent: bool = False,
) -> Later:
    """Serve another image of the same size in a disk's place; a paused one goes on with it."""
    found = _changeable(process, name)
    path = absolute_image(image, directory, found.live.registry)
    broker = _opener(process, name, lent)

    def begin(done: Done) -> None:
        found.live.swap(name, path, done)

    return found.do(begin, announce=announced, broker=broker)


def commit_live(process: DiskProcess, *, name: str, lent: bool = False) -> Later:
    """Begin to fold a disk into its parent, which takes its place at the end."""
    found = _changeable(process, name)
    broker = _opener(process, name, lent)

    def ended(*_: Any) -> None:
        found._look()
        if broker is not None:
            broker.close()

    later = found.do(lambda done: found.live.commit(name, done, ended))
    later.then(lambda _, error: ended() if error is not None else None)
    return later


def commit_status(process: DiskProcess, *, name: str) -> dict[str, Any]:
    """How far the last commit-live of a disk is."""
    if process.disk(name).live is None:
        raise UsageError("there was no commit", image=name)
    told = _live(process, name).live.commit_progress(name)
    return _told(told) | {"image": process.disk(name).spec.image}


def commit_cancel(process: DiskProcess, *, name: str) -> dict[str, Any]:
    """Let the commit-live of a disk end: it is served on as before."""
    return _told(_live(process, name).live.cancel_commit(name))


def resize_live(process: DiskProcess, *, name: str, size: str, shrink: bool = False) -> Later:
    """Change a disk's virtual size; clients see it when they connect again."""
    found = _live(process, name)
    return found.do(lambda done: found.live.resize(name, size, done, shrink=shrink))


def noted(process: DiskProcess, *, name: str) -> Later | None:
    """The name of an image that was announced is written down; answers when it is served."""
    return _live(process, name).note()


LIVE_VERBS: Final[Mapping[str, Callable[..., Any]]] = {
    "pause": pause,
    "resume-io": resume_io,
    "snapshot-live": snapshot_live,
    "swap": swap,
    "commit-live": commit_live,
    "commit-status": commit_status,
    "commit-cancel": commit_cancel,
    "resize-live": resize_live,
    "noted": noted,
}
