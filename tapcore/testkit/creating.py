"""Checks on `td_create` and `td_resize`."""

from __future__ import annotations

import errno
import itertools
import os
import random
from typing import Final

from tapcore.errors import NotSupportedError, TapError
from tapcore.interface.diskinfo import FormatOption
from tapcore.interface.options import CacheMode, DiskId
from tapcore.testkit.failing import broken, compare, nothing_left_open
from tapcore.testkit.faults import Faults, Kind
from tapcore.testkit.needs import needs
from tapcore.testkit.subject import Subject
from tapcore.tools.create import create_image

_SIZE = 1 << 20
_FAULTS: Final[tuple[tuple[Kind, int], ...]] = (
    ("write", errno.EIO),
    ("flush", errno.EIO),
    ("size", errno.ENOSPC),
)


class CreationChecks(Subject):
    """New images, and what cannot become one."""

    @needs("create", "file")
    def test_every_option_makes_an_image(self) -> None:
        """Each choice of each option in `create_options`, and its default."""
        for option in self.info().create_options:
            for value in dict.fromkeys((*option.choices, option.default)):
                if value:
                    self._make_with(option, value)

    def _make_with(self, option: FormatOption, value: str) -> None:
        path = os.path.join(self.folder, f"{option.name}-{value}".replace("/", "_"))
        try:
            self.operations().td_create(path, _SIZE, None, {option.name: value})
        except NotSupportedError:
            return  # something that this machine lacks
        except (TapError, OSError) as exc:
            broken(f"td_create with {option.name}={value}, which disk_info offers: {exc}")
        with self.open(path, readonly=True) as disk:
            if disk.size != _SIZE:
                broken(f"with {option.name}={value} the disk has {disk.size} bytes, not {_SIZE}")
            compare(
                disk.pread(0, length=_SIZE), bytes(_SIZE), 0, f"new, with {option.name}={value}"
            )

    @needs("create", "file")
    def test_bad_options_are_refused(self) -> None:
        """The core checks names and choices; a value without choices is the driver's to check."""
        path = os.path.join(self.folder, "new")
        wrong = {"no-such-option": "1"}
        for option in self.info().create_options:
            wrong[option.name] = "no such value \u2603"
        for name, value in wrong.items():
            try:
                create_image(
                    f"{self.handle}:{path}",
                    _SIZE,
                    options={name: value},
                    registry=self.registry(),
                )
            except TapError:
                self._nothing_at(path, f"refused option {name}")
                continue
            broken(f"an image was made with the option {name}={value!r}")

    @needs("create", "file")
    def test_what_cannot_be_made_leaves_nothing_behind(self) -> None:
        """No size, a folder that does not exist, a parent of a format that has none."""
        create, path = self.operations().td_create, os.path.join(self.folder, "new")
        missing = os.path.join(self.folder, "missing", "new")
        attempts: list[tuple[str, str, int | None, DiskId | None]] = [
            ("without a size", path, None, None),
            ("in no folder", missing, _SIZE, None),
        ]
        if "parents" not in self.info().capabilities:
            attempts.append(("with a parent", path, _SIZE, DiskId("parent", self.handle)))
        with nothing_left_open("td_create that failed"):
            for what, where, size, parent in attempts:
                before = set(os.listdir(self.folder))
                try:
                    create(where, size, parent, {})
                except (TapError, OSError):
                    self._nothing_more_than(before, what)
                except Exception as exc:
                    broken(f"td_create {what} raised {type(exc).__name__}: {exc}")
                else:
                    broken(f"td_create {what} succeeded")

    @staticmethod
    def _nothing_at(path: str, what: str) -> None:
        if os.path.lexists(path):
            broken(f"td_create failed ({what}), but left {os.path.basename(path)} behind")

    def _nothing_more_than(self, before: set[str], what: str) -> None:
        if left := set(os.listdir(self.folder)) - before:
            broken(f"td_create failed ({what}), but left {', '.join(sorted(left))} behind")

    @needs("create", "file", "write")
    def test_an_image_in_use_is_not_replaced(self, rng: random.Random) -> None:
        """Somebody has it open for writing: `create_host_file` sees that."""
        image, content = self.filled(rng)
        with self.open(image) as disk:
            try:
                self.operations().td_create(image, self.small, None, {})
            except (TapError, OSError):
                compare(disk.pread(0, length=disk.size), content, 0, "an image that was in use")
            else:
                broken("td_create has replaced an image that was open for writing")

    @needs("create", "file", "write", "lasting")
    def test_creating_replaces_what_was_there(self) -> None:
        """Its name is free for use: the core has asked about overwriting before."""
        image = self.make_image(self.sizes[-1])
        with self.open(image) as disk:
            disk.pwrite(0, b"old" * (disk.size // 3))
        with nothing_left_open("td_create"):
            self.operations().td_create(image, _SIZE, None, {})
        with self.open(image, readonly=True) as disk:
            if disk.size != _SIZE:
                broken(f"an image made in another's place has {disk.size} bytes, not {_SIZE}")
            compare(
                disk.pread(0, length=_SIZE), bytes(_SIZE), 0, "an image made in another's place"
            )


class ResizeChecks(Subject):
    """Growing and shrinking."""

    @needs("resize", "write")
    def test_resizing_keeps_the_content(self, cache: CacheMode, rng: random.Random) -> None:
        """New sectors read as zeroes, also those that were cut off before."""
        size = self.sizes[-1]
        image, content = self.make_image(size), rng.randbytes(size)
        unit = self.granularity
        half = (size // 2 // unit | 1) * unit  # within a cluster, however small
        with self.open(image, cache=cache) as disk:
            disk.pwrite(0, content)
            for new in (size + (1 << 20) + unit, half, size, size + unit):
                try:
                    disk.resize(new)
                except NotSupportedError:
                    if new > disk.size:
                        broken("td_resize does not even grow an image")
                    continue  # a format may be unable to shrink
                content = content[:new].ljust(new, b"\0")
                if disk.size != new:
                    broken(f"after a resize to {new} bytes the disk has {disk.size}")
                compare(disk.pread(0, length=new), content, 0, f"after a resize to {new} bytes")
                disk.pwrite(new - 700, b"e" * 700)
                content = content[:-700] + b"e" * 700
        if not self.volatile:
            with self.open(image, readonly=True, cache=cache) as disk:
                compare(disk.pread(0, length=disk.size), content, 0, "resized, and opened again")

    @needs("resize", "write", "file", "lasting")
    def test_a_resize_that_fails_is_told(self, rng: random.Random) -> None:
        """EIO, ENOSPC: the disk has one of both sizes then, and holds what it did."""
        for number, ((kind, code), after) in enumerate(itertools.product(_FAULTS, range(4))):
            image, content = self.filled(rng, f"image{number}")
            self._fail_to_grow(image, (kind, code, after), rng)
            with self.open(image, readonly=True) as disk:
                if disk.size not in (self.small, self.small + _SIZE):
                    broken(f"after a resize that failed the disk has {disk.size} bytes")
                got, what = disk.pread(0, length=self.small), "after a resize that failed"
            compare(got, content, 0, what)

    def _fail_to_grow(self, image: str, fault: tuple[Kind, int, int], rng: random.Random) -> None:
        kind, code, after = fault
        with Faults(*self.host_files(image), rng=rng) as faults:
            session = self.session(image, errors=True)
            try:
                faults.fail(kind, code, after=after)
                try:
                    session.dd.drv.td_resize(session.dd, self.small + _SIZE)
                except (TapError, OSError):
                    return
                except Exception as exc:
                    broken(f"td_resize raised {type(exc).__name__}: {exc}")
                if faults.failed[kind]:
                    broken(f"td_resize said nothing though a {kind} of the host file failed")
            finally:
                faults.heal()
                session.close()
