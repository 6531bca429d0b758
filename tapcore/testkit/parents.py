"""Checks on copy-on-write images."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
from typing import Final

from tapcore.constants import TD_NO_PARENT
from tapcore.disk import Disk
from tapcore.errors import NotSupportedError, TapError, UsageError
from tapcore.interface.options import CacheMode, DiskId
from tapcore.opening.names import RAW_HANDLES
from tapcore.simple import SimpleDriver
from tapcore.testkit.content import STEPS, Model
from tapcore.testkit.extents import extents_of
from tapcore.testkit.failing import broken, compare, run_of
from tapcore.testkit.faults import Faults, Kind
from tapcore.testkit.needs import left_out, needs
from tapcore.testkit.subject import Subject
from tapcore.tools.commit import commit_image

_ODD_NAMES: Final = ("a b", "a:b", "\u00fc\u2603", "100% {0}", "n" * 250)


class _Raw(SimpleDriver):
    """A file that is the disk; a class, so that nothing has to be installed for it."""

    handle, api = RAW_HANDLES[0], 1

    def pread(self, offset: int, length: int) -> bytes:
        return self.read(offset, length)


class ParentChecks(Subject):
    """A child shows its parent's content where it has none of its own, and never changes it."""

    def _parent(self, size: int, rng: random.Random, name: str = "parent") -> tuple[str, bytes]:
        """An image with content in about half of it."""
        image = self.make_image(size, name)
        content = bytearray(size)
        with self.open(image) as disk:
            at = rng.randrange(70_000)
            while at < size:
                piece = rng.randbytes(min(rng.randint(1, 150_000), size - at))
                disk.pwrite(at, piece)
                content[at : at + len(piece)] = piece
                at += len(piece) + rng.randrange(150_000)
        return image, bytes(content)

    @needs("parents", "write")
    def test_an_image_without_a_parent_says_so(self) -> None:
        """`TD_NO_PARENT`, not an empty name."""
        with self.session(self.make_image(self.sizes[-1]), readonly=True) as session:
            res = session.dd.drv.td_get_parent_id(session.dd, DiskId(""))
        if res != TD_NO_PARENT:
            broken(f"td_get_parent_id of an image without a parent returned {res!r}")

    @needs("parents", "write")
    def test_a_child_names_its_parent(self) -> None:
        """The name as it was recorded, and its format."""
        parent = self.make_image(self.sizes[-1], "parent")
        child, found = self.make_child(parent, None), DiskId("")
        with self.session(child, readonly=True) as session:
            res = session.dd.drv.td_get_parent_id(session.dd, found)
            if res or not found.name or session.dd.next is None:
                broken(f"td_get_parent_id of a child returned {res!r} and the name {found.name!r}")
            if session.sectors * 512 != self.sizes[-1]:
                broken(f"a child made without a size has {session.sectors} sectors")
        if found.drivertype not in ("", self.handle):
            broken(f"td_get_parent_id says that the parent's format is {found.drivertype!r}")

    @needs("parents", "write", "file")
    def test_odd_names_of_parents(self, rng: random.Random) -> None:
        """Blanks, colons, other letters, a long one: recorded as they are, or refused."""
        for number, name in enumerate(_ODD_NAMES):
            try:
                parent, below = self.filled(rng, name)
                child = self.make_child(parent, None, f"child{number}")
            except (TapError, OSError):
                continue
            with self.open(child, readonly=True) as disk:
                got = disk.pread(0, length=disk.size)
            compare(got, below, 0, f"a child of '{os.path.basename(parent)}'")

    @needs("parents", "write", "file", "create")
    def test_a_parent_of_another_format(self, rng: random.Random) -> None:
        """A raw disk: its content shows, or `td_create` refuses it."""
        below, child = rng.randbytes(self.small), os.path.join(self.folder, "child")
        with open(os.path.join(self.folder, "raw"), "wb") as file:
            file.write(below)
        try:
            recorded = DiskId("raw", self._raw_handle())
            self.operations().td_create(child, self.small, recorded, {})
        except (TapError, OSError):
            if os.path.lexists(child):
                broken("td_create refused a parent of another format, but left child behind")
            return
        content = bytearray(below)
        with self.open(child) as disk:
            model = Model(disk, below, below)
            model.check("a child of a raw disk")
            for _ in range(STEPS // 3):
                model.step(rng)
            content = model.data
        with self.open(child, readonly=True) as disk:
            got = disk.pread(0, length=disk.size)
        compare(got, content, 0, "a child of a raw disk, after work in it")

    def _raw_handle(self) -> str:
        """Of an installed driver of raw disks, else of one that is there for the checks."""
        registry = self.registry()
        found = [handle for handle in RAW_HANDLES if handle in registry]
        if not found:
            registry.register(_Raw)
        return found[0] if found else _Raw.handle

    @needs("parents", "write")
    def test_copy_on_write(self, cache: CacheMode, rng: random.Random) -> None:
        """Random work in a child; its parent's files stay as they are, byte for byte."""
        size = self.sizes[-1]
        parent, below = self._parent(size, rng)
        child, before = self.make_child(parent, None), self.snapshot(parent)
        content = below
        for _ in range(3):
            with self.open(child, cache=cache) as disk:
                model = Model(disk, content, below)
                model.check("a child, opened")
                for _ in range(STEPS // 2):
                    model.step(rng)
                model.check("a child, after random work in it")
                if "extents" in self.info().capabilities:
                    self._check_extents(disk, model.data, below)
                content = bytes(model.data)
        if self.snapshot(parent) != before:
            broken("work in a child has changed the files of its parent")
        with self.open(parent, readonly=True) as disk:
            compare(disk.pread(0, length=size), below, 0, "the parent, after work in its child")

    @staticmethod
    def _check_extents(disk: Disk, content: bytearray, below: bytes) -> None:
        for run in disk.extents():
            if run.kind == "zero" and any(content[run.start : run.end]):
                broken(
                    f"td_extents calls bytes {run.start} to {run.end} of a child (image "
                    f"{run.depth} of its chain) zero, but there is content"
                )
        dd = disk.state.disks
        for extent in extents_of(dd, 0, dd.size):
            start, end = extent.sector * 512, extent.end * 512
            if extent.kind == "unallocated" and content[start:end] != below[start:end]:
                broken(
                    f"td_extents calls {run_of(extent.sector, extent.nb_sectors)} of a child "
                    "unallocated, but its parent's content is not what is read there"
                )

    @needs("parents", "write")
    def test_zeroes_hide_the_parent(self, cache: CacheMode, rng: random.Random) -> None:
        """Written zeroes are content: the parent's must not show through."""
        size = self.sizes[-1]
        parent, below = self.make_image(size, "parent"), rng.randbytes(size)
        with self.open(parent) as disk:
            disk.pwrite(0, below)
        for unmap in (True, False):
            content = bytearray(below)
            child = self.make_child(parent, None, f"child{unmap}")
            with self.open(child, cache=cache) as disk:
                unit = min(disk.state.sector_size, size)
                for at, length in ((size // 2, size // 3), (0, unit), (size - 700, 700)):
                    disk.zero(at, length=length, unmap=unmap)
                    content[at : at + length] = bytes(length)
                compare(disk.pread(0, length=size), content, 0, "zeroes in a child")
            with self.open(child, readonly=True, cache=cache) as disk:
                compare(disk.pread(0, length=size), content, 0, "zeroes in a child, opened again")

    @needs("parents", "write")
    def test_a_shorter_and_a_longer_parent(self, cache: CacheMode, rng: random.Random) -> None:
        """Past a shorter parent's end there are zeroes; of a longer one the rest is not seen."""
        for factor in (0.5, 2.0):
            size = self.sizes[-1]
            unit = self.granularity
            length = (int(size * factor) // unit + 1) * unit
            parent, below = self._parent(length, rng, f"parent{factor}")
            child = self.make_child(parent, size, f"child{factor}")
            content = below[:size].ljust(size, b"\0")
            with self.open(child, cache=cache) as disk:
                model = Model(disk, content, content)
                model.check(f"a child of {size} bytes on a parent of {length}")
                for _ in range(STEPS // 2):
                    model.step(rng)
                model.check(f"a child of {size} bytes on a parent of {length}, after work in it")
                self._grow(disk, length)

    def _grow(self, disk: Disk, size: int) -> None:
        """New sectors read as zeroes, whatever a longer parent holds there, or there are none."""
        old = disk.size
        if size <= old or "td_resize" not in disk.state.disks.drv.implemented:
            return
        try:
            disk.resize(size)
        except NotSupportedError:
            return
        what = "what is new of a child that grew to the size of its parent"
        compare(disk.pread(old, length=size - old), bytes(size - old), old, what)

    @needs("parents", "write")
    def test_a_chain_of_three(self, cache: CacheMode, rng: random.Random) -> None:
        """Each image's own content over that of those below it."""
        size = self.sizes[-1]
        image, content = self._parent(size, rng)
        for depth in range(2):
            image = self.make_child(image, None, f"child{depth}")
            with self.open(image, cache=cache) as disk:
                model = Model(disk, content, content)
                model.check(f"image {depth + 2} of a chain")
                for _ in range(STEPS // 3):
                    model.step(rng)
                content = bytes(model.data)
        with self.open(image, readonly=True, cache=cache) as disk:
            compare(disk.pread(0, length=size), content, 0, "a chain of three images, opened again")

    @needs("parents", "write", "lasting", "noticing")
    def test_a_changed_parent_is_noticed(self, rng: random.Random) -> None:
        """Written to since, or another image by its name: the child is refused."""
        for how in ("written to", "replaced"):
            parent, _ = self.filled(rng, f"parent {how}")
            child = self.make_child(parent, None, f"child {how}")
            self.open(child, readonly=True).close()
            self.open(parent, readonly=True).close()
            self.open(child, readonly=True).close()
            if how == "replaced":
                os.unlink(parent)
                self.filled(rng, f"parent {how}")  # as often opened and written to as the other
            else:
                with self.open(parent) as disk:
                    disk.pwrite(0, b"changed")
            try:
                self.open(child, readonly=True).close()
            except (TapError, OSError):
                continue
            broken(f"a child was opened though its parent was {how} (td_validate_parent)")

    @needs("parents", "write", "lasting", "noticing", "file")
    def test_a_parent_changed_beside_errors_is_noticed(self, rng: random.Random) -> None:
        """The host fails first: what tells of a change must not be lost then."""
        kinds: tuple[Kind, ...] = ("write", "flush")
        for number, (kind, after) in enumerate(itertools.product(kinds, range(3))):
            parent, below = self.filled(rng, f"parent{number}")
            child = self.make_child(parent, None, f"child{number}")
            with (
                contextlib.suppress(TapError, OSError),
                Faults(*self.host_files(parent), rng=rng) as faults,
                self.open(parent) as disk,
            ):
                faults.fail(kind, errno.EIO, after=after, times=1)
                for _ in range(3):
                    with contextlib.suppress(TapError, OSError):
                        disk.pwrite(0, rng.randbytes(600))
                faults.heal()
            with self.open(parent, readonly=True) as disk:
                changed = disk.pread(0, length=disk.size) != below
            try:
                self.open(child, readonly=True).close()
            except (TapError, OSError):
                continue
            if changed:
                broken(f"a child was opened though its parent was changed, after a {kind} failed")

    @needs("parents", "write", "lasting", "file")
    def test_committing_into_the_parent(self, rng: random.Random) -> None:
        """`tapdisk commit`: the parent holds it then, and the child reads as before."""
        parent, _ = self.filled(rng, "parent")
        child = self.make_child(parent, None)
        with self.open(child) as disk:
            for _ in range(4):
                at = rng.randrange(disk.size)
                disk.pwrite(at, rng.randbytes(min(6000, disk.size - at)))
            content = disk.pread(0, length=disk.size)
        try:
            commit_image(f"{self.handle}:{child}", access=self.access())
        except (NotSupportedError, UsageError) as exc:
            left_out(f"these children cannot be committed: {exc}")
        for image, what in ((child, "a child that was committed"), (parent, "its parent")):
            with self.open(image, readonly=True) as disk:
                compare(disk.pread(0, length=len(content)), content, 0, what)
