"""Throw-away views from Python: a disk that is not written, and disks that only look like it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Literal

from tapcore.disk import Disk
from tapcore.errors import ClosedError, ReadOnlyError, UsageError
from tapcore.interface.access import Access
from tapcore.interface.keys import Keys
from tapcore.interface.options import CacheMode, DiskId
from tapcore.interface.policy import Parents
from tapcore.interface.registry import Registry
from tapcore.opening.names import ImageName
from tapcore.tools.commit import grow
from tapcore.tools.keep import keep_view
from tapcore.tools.openimage import open_image
from tapcore.tools.plan import Job
from tapcore.tools.transfer import Transfer
from tapcore.views import template as shared
from tapcore.views.store import Room


class Template:
    """A disk for many views, each of which can be written and is gone when it is closed.

    What the views read of it is there once: its open files, its tables, its threads. One thread at
    a time is let in, to the template and all of its views together.

    Args:
        name: `[HANDLE:]PATH` of the disk.
        directory: where views keep what is written to them, in files without a name; empty: memory,
            half of which all of them together take at most.
        limit: bytes that a view may take (1 GiB): more is ENOSPC.
        writable: the disk may be written, by `View.commit` alone. Nobody else can open it then.
        parents: as of `tapcore.open`.
        cache: as there.
        keys: as there.
        metadata_cache: as there.
        registry: as there.

    Raises:
        TapError: it cannot be opened.
    """

    def __init__(
        self,
        name: ImageName,
        *,
        directory: str | os.PathLike[str] = "",
        limit: int | None = None,
        writable: bool = False,
        parents: Parents = (),
        cache: CacheMode = "writeback",
        keys: bytes | Mapping[str, bytes] | Mapping[os.PathLike[str], bytes] | Keys | None = None,
        metadata_cache: int | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.access = Access(
            parents,
            keys if isinstance(keys, Keys) else Keys.of(keys),
            metadata_cache,
            registry,
        )
        self._room = Room.of(os.fsdecode(directory), limit)
        self.disk = open_image(name, writing=writable, access=self.access, cache=cache)
        self._shared = shared.Template(self.disk.state)
        self._views: list[View] = []

    @property
    def name(self) -> str:
        """The disk as it was named."""
        return self.disk.name

    @property
    def size(self) -> int:
        """Its virtual size in bytes."""
        return self.disk.size

    @property
    def views(self) -> tuple[View, ...]:
        """Those that are open."""
        return tuple(self._views)

    def view(self) -> View:
        """A new view, which reads as the disk does.

        Raises:
            TapError: there is no place for what is written to it.
        """
        with self.disk.driver():
            return View(self, self._shared.view(self._room), self._views)

    def close(self) -> None:
        """Close all views, and the disk; a second call does nothing.

        Raises:
            TapError: the last flush failed; everything is released all the same.
        """
        for view in self.views:
            view.close()
        self.disk.close()

    def __enter__(self) -> Template:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[None]:
        self.close()

    def __repr__(self) -> str:
        return f"<tapcore.Template {self.name!r} {len(self._views)} views>"


class View(Disk):
    """A disk that reads as its template does, but for what was written to it.

    Made by `Template.view`. Its other attributes and calls are those of every disk.

    Attributes:
        template: whose view it is.
    """

    def __init__(self, template: Template, view: shared.View, among: list[View]) -> None:
        super().__init__(view.disk)
        self._calls.lock = template.disk._calls.lock
        self.template = template
        self._view = view
        self._among = among
        among.append(self)

    def reset(self) -> None:
        """Forget all that was written to it; its size too is the template's again."""
        with self._alone():
            self._check_open()
            self._view.reset()

    def commit(self) -> int:
        """Write what was written to it into the template's disk, and begin anew.

        On disk when this returns.

        Returns:
            Bytes of data that were written, without zeroes.

        Raises:
            ReadOnlyError: the template is not `writable`.
            UsageError: there are other views, which would be spoilt.
            TapError: a read or write failed; the view is as it was.
        """
        base = self.template.disk
        with self._alone():
            self._check_open()
            if base.read_only:
                raise ReadOnlyError("is no writable template", image=self.name)
            if len(self._among) > 1:
                raise UsageError("has other views, which a commit would spoil", image=self.name)
            own = list(self._own())  # before the sizes are the same
            if self.size > base.size:
                grow(base, base.state.disks, self.size)
            elif self.size < base.size:
                base.resize(self.size)
            written = Transfer(self, base).run(own)
            base.sync()
            self._view.reset()
            return written

    def _own(self) -> Iterator[Job]:
        for run in self.extents():
            if run.present and not run.depth:
                yield Job(run.start, run.end, "zero" if run.kind == "zero" else "copy")

    def keep(self, name: ImageName) -> DiskId:
        """Make a new image that reads as this view does now; it goes on as before.

        Args:
            name: `[HANDLE:]PATH`; must not exist. Where the format has such parents the image is a
                child of the template's, which has to stay as it is then, else a whole copy.

        Returns:
            The image.

        Raises:
            TapError: with the name of the image concerned; none was made.
        """
        with self._alone():
            self._check_open()
            base = self.template.disk.state.image
            return keep_view(self._view.own(), base, name, self.template.access)

    # ---- its end ----------------------------------------------------------------------------

    def _release(self) -> None:
        if self in self._among:
            self._among.remove(self)
        self._view.close()

    def _check_open(self) -> None:
        super()._check_open()
        if self.template.disk.closed:
            raise ClosedError("its template is closed", image=self.name)
        if any(each._engine.broken_off for each in (self.template.disk, *self._among)):
            self._engine.broken_off = True
            super()._check_open()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"<tapcore.View {self.name!r} {state}>"
