"""A disk that is served, as who changes its images sees it: brought to rest, taken apart, put
together again.

The engine, and what front ends know of the disk, stay the same objects all the time; the images in
them are taken out (`detach`) and put in (`attach`). Where there are none, something stands for them
that fails every request.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, TypeAlias

import attrs

from tapcore.engine import FLUSH, Engine, Request, engine_of
from tapcore.engine.requests import unit_of
from tapcore.errors import IOFailedError, NotSupportedError, TapError, UsageError
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId
from tapcore.interface.registry import Registry
from tapcore.live.absent import absent
from tapcore.live.tasks import Steps, Tasks, Until
from tapcore.nbd.exports import Export
from tapcore.nbd.polled import PolledDisk
from tapcore.opening.chain import close_disk, open_disk
from tapcore.sizes import format_size

log = logging.getLogger(__name__)

REST_SECONDS: Final = 60.0
"""How long requests under way are waited for; a disk that takes longer goes on as it was."""

NOTED_SECONDS: Final = 5.0
"""How long it is waited for until a new name is noted; who has died meanwhile keeps nobody."""

State: TypeAlias = Literal["running", "paused", "failed"]
"""Of a served disk: "failed" is one whose images could not be opened, and every request fails."""


@attrs.define(eq=False)
class ServedDisk:
    """One disk of a server.

    Attributes:
        engine: of the disk.
        exports: what it is offered as.
        polled: its place in the poll set.
        registry: the drivers.
        tasks: of the loop.
        close_files: told that the files are closed next, and what lies in them cannot be sent.
        renamed: told of the image that takes the place of the disk's; see `announce`.
        state: as the type says.
        changing: what is being done to it; empty: nothing.
    """

    engine: Engine
    exports: list[Export]
    polled: PolledDisk
    registry: Registry
    tasks: Tasks
    close_files: Callable[[Engine], object]
    renamed: Callable[[ServedDisk, DiskId], Callable[[], bool] | None]
    state: State = "running"
    changing: str = ""

    @property
    def image(self) -> DiskId:
        """What it is."""
        return self.engine.disk.image

    @property
    def name(self) -> str:
        """Of its first export."""
        return self.exports[0].info.name

    # ---- bringing it to rest ----------------------------------------------------------------

    def come_to_rest(self) -> Steps[None]:
        """Take no more requests, and wait for those taken; they are flushed.

        Raises:
            TapError: that took too long, or failed; it goes on as before.
        """
        self.engine.hold()
        try:
            yield Until(lambda: self.engine.idle, REST_SECONDS)
            if not self.engine.idle:
                text = f"{self.engine.in_flight} requests are not answered after {REST_SECONDS:g} s"
                raise IOFailedError(text, image=str(self.image), errno=errno.ETIMEDOUT)
            yield from flush(self.engine)
        except BaseException:
            self.engine.release()
            raise

    def go_on(self) -> None:
        """Take requests again, those first that have waited."""
        self.state = "running"
        self.engine.release()

    # ---- its images -------------------------------------------------------------------------

    def detach(self) -> TdState:
        """Take the images out, of a disk at rest; they stay open.

        Returns:
            A disk with an engine of its own: to be attached again, or closed, perhaps by a thread.
        """
        self.close_files(self.engine)
        self.polled.unpoll()
        served = self.engine.disk
        out = TdState(image=served.image, disks=served.disks, home=served.home, info=served.info)
        out.losses = served.losses
        guard = self.engine.guard
        _give(served, out)
        served.disks = absent(out.disks, served)
        self.engine.follow()
        Engine(out, guard=guard)
        return out

    def attach(self, disk: TdState) -> None:
        """Let the images of another disk be this one's, in the place of nothing."""
        served, guard = self.engine.disk, engine_of(disk).guard
        served.image, served.home, served.info = disk.image, disk.home, disk.info
        served.losses = disk.losses
        served.disks = disk.disks
        _give(disk, served)
        disk.blkif = None
        self.engine.follow(guard)
        self.polled.poll(self.own_fds())
        for export in self.exports:
            export.follow()

    def own_fds(self) -> list[tuple[int, DiskDriver, int]]:
        """Of the images that belong to this disk alone: as `Engine.poll_fds`."""
        served = self.engine.disk
        return [each for each in self.engine.poll_fds() if each[1].td_state is served]

    def close(self, disk: TdState) -> Steps[None]:
        """Close images that were taken out.

        Raises:
            TapError: something could not be saved; they are closed all the same.
        """
        yield from self.tasks.in_thread(partial(close_disk, disk))

    def open(self, image: DiskId) -> Steps[TdState]:
        """Open an image as this disk's was opened; without a handle its format is looked for."""
        leaf = self.engine.disk.disks
        guessed = not image.drivertype or (image == self.image and leaf.options.probed)
        options = attrs.evolve(leaf.options, bound=None, named_by=None, probed=guessed)
        opening = partial(open_disk, image, self.registry, flags=leaf.flags, options=options)
        return (yield from self.tasks.in_thread(opening))

    def open_again(self, image: DiskId) -> Steps[None]:
        """After something has failed: go on as before.

        Where even that fails, the disk fails every request from now on.
        """
        try:
            disk = yield from self.open(image)
        except TapError as exc:
            log.error("%s: cannot be opened again, all requests fail: %s", image, exc)
            self.fail()
            return
        self.attach(disk)
        self.go_on()

    def announce(self, image: DiskId) -> Steps[None]:
        """Another image is about to be this disk's: no request gets to it before that is known.

        Who keeps the name for the time after a crash writes it down now.

        Raises:
            TapError: he cannot; the change is not to be.
        """
        noted = self.renamed(self, image)
        if noted is not None:
            yield Until(noted, NOTED_SECONDS)

    def fail(self) -> None:
        """Let what has waited, and all that comes, fail: rather than to hang."""
        self.state = "failed"
        self.engine.release()

    # ---- what may not be --------------------------------------------------------------------

    def must_last(self) -> None:
        """Raise where closing its image would be its end."""
        handle = self.image.drivertype
        if not self.registry.get(handle).lasts:
            text = f"a '{handle}' disk exists only while it is open"
            raise NotSupportedError(text, image=str(self.image))

    def must_run(self) -> None:
        """Raise where it is paused."""
        if self.state != "running":
            raise UsageError(f"is {self.state}; resume-io first", image=self.name)

    def must_be_writable(self) -> None:
        """Raise where it is served for reading only."""
        if self.engine.read_only:
            raise UsageError("is served for reading only", image=str(self.image))


def check_place(old: Engine, new: TdState, *, size: bool = True) -> None:
    """Whether a disk can take the place of another under its clients.

    Args:
        old: what is served.
        new: what is to be.
        size: it has to be as large.

    Raises:
        UsageError: it cannot, and why.
    """
    leaf = new.disks
    if size and leaf.size != old.disk.size:
        has, wants = leaf.size << 9, old.disk.size << 9
        text = f"has {format_size(has)}, where the disk that is served has {format_size(wants)}"
        raise UsageError(text, image=str(new.image))
    if unit_of(leaf) > old.mask + 1:  # requests are of whole units of what is served now
        text = f"has sectors of {unit_of(leaf)} bytes, where the disk has {old.mask + 1}"
        raise UsageError(text, image=str(new.image))


def flush(engine: Engine) -> Steps[None]:
    """Have all that was answered brought to disk.

    Raises:
        IOFailedError: it could not be.
    """
    if engine.read_only:
        return
    done: list[int] = []
    engine.submit(Request(FLUSH, 0, 0, None, lambda req: done.append(req.status)))
    yield Until(lambda: done)
    if done[0]:
        text = f"the flush failed: {os.strerror(-done[0])}"
        raise IOFailedError(text, image=str(engine.disk.image), errno=-done[0])


def _give(one: TdState, other: TdState) -> None:
    """What belongs to one disk belongs to another from now on; other images of its chain do not."""
    for dd in list(one.disks.chain()):
        if dd.td_state is one:
            dd.td_state = other
