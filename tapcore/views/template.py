"""One open disk that many views lie over: its images, tables and files are there once."""

from __future__ import annotations

from tapcore.constants import SECTOR_SHIFT
from tapcore.engine import Engine, engine_of
from tapcore.errors import UsageError
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import OpenOptions
from tapcore.opening.chain import close_disk
from tapcore.views.driver import operations
from tapcore.views.store import Room, Store


class Template:
    """A disk that is read through views. Not for several threads at once.

    A view is a disk of its own, with an engine of its own; the images below it belong to the
    template, whose engine is told of what happens to them.

    Args:
        disk: open with its engine; not written while there are views.

    Raises:
        UsageError: it has filters.
    """

    def __init__(self, disk: TdState) -> None:
        if disk.disks.options.filters:
            text = "has filters, which would not see what is written to its views"
            raise UsageError(text, image=str(disk.image))
        self.disk = disk
        self.engine = engine_of(disk)
        self.views: list[View] = []

    def view(self, room: Room) -> View:
        """A new view, which reads as the template does.

        Args:
            room: where it keeps what is written to it.

        Raises:
            UsageError: there is no place for that.
        """
        return View(self, Store(self.disk.size << SECTOR_SHIFT, room, str(self.disk.image)))


class View:
    """One view.

    Args:
        template: what lies below.
        store: what it has of its own.

    Attributes:
        disk: open, with its engine.
        engine: its own.
        store: as given.
    """

    def __init__(self, template: Template, store: Store) -> None:
        self.store = store
        self.disk = disk = TdState(image=template.disk.image, home=template.disk.home)
        disk.losses = template.disk.losses  # what is lost is lost below
        _open(disk, store).next = template.disk.disks
        self.engine = Engine(disk)
        self._template = template
        template.engine.share_with(self.engine)
        template.views.append(self)

    def own_fds(self) -> list[tuple[int, DiskDriver, int]]:
        """What is to be polled besides the template's descriptors: as `Engine.poll_fds`."""
        leaf = self.disk.disks
        return [each for each in self.engine.poll_fds() if each[1] is leaf]

    def reset(self) -> None:
        """Make it read as the template does again; nothing may be under way."""
        self.engine.before_giving_up()
        size = self._template.disk.size
        self.store.reset(size << SECTOR_SHIFT)
        self.disk.disks.size = size
        self.engine.refresh()

    def own(self) -> TdState:
        """What it has of its own, as a disk without anything below.

        Nothing may be under way in the view as long as that is used. It is not to be closed: the
        view is.
        """
        own = TdState(image=self.disk.image)
        _open(own, self.store)
        Engine(own)
        return own

    def leave(self) -> None:
        """Have nothing to do with the template any more; only its own content can be read."""
        if self in self._template.views:
            self._template.views.remove(self)
            self._template.engine.share_no_more(self.engine)
            self.disk.disks.next = None

    def close(self) -> None:
        """Forget it; nothing may be under way."""
        self.leave()
        close_disk(self.disk)


def _open(disk: TdState, store: Store) -> DiskDriver:
    """Over a store that is there already."""
    options = OpenOptions(private={"store": store})
    options.opened.add(store.file)
    disk.disks = leaf = DiskDriver(
        name=disk.image.name, drv=operations(), td_state=disk, options=options
    )
    leaf.drv.td_open(leaf, leaf.name, 0)
    return leaf
