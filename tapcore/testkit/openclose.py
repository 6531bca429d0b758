"""Checks: loading, opening, closing."""

from __future__ import annotations

import json

from tapcore.interface.options import CacheMode
from tapcore.testkit.failing import broken, compare, nothing_left_open
from tapcore.testkit.needs import needs
from tapcore.testkit.subject import Subject


class OpeningChecks(Subject):
    """What an image is before anything is done to it."""

    @needs()
    def test_the_driver_loads(self) -> None:
        """It is in the table, without an error."""
        for info in self.registry().table():
            if info.handle == self.handle and info.error:
                broken(f"the driver '{self.handle}' cannot be used: {info.error}")
        if self.handle not in self.registry():
            broken(
                f"no driver is installed with the handle '{self.handle}': pip install -e your "
                "package, whose entry point in the group tapcore.drivers has the handle's name"
            )

    @needs("read")
    def test_reports_its_size(self, size: int, cache: CacheMode) -> None:
        """`dd.size` is in sectors."""
        readonly = "write" not in self.info().capabilities
        with self.session(self.make_image(size), readonly=readonly, cache=cache) as session:
            if session.sectors * 512 != size:
                broken(
                    f"the image was made with {size} bytes, that is {size // 512} sectors, but "
                    f"td_open set dd.size to {session.sectors} (it counts sectors of 512 bytes)"
                )

    @needs("read")
    def test_a_fresh_image_reads_as_expected(self, size: int, cache: CacheMode) -> None:
        """Zeroes, also in its last, perhaps cut, unit; whatever was in the buffer before."""
        with self.session(self.make_image(size), readonly=True, cache=cache) as session:
            got = bytearray()
            for sector in range(0, session.sectors, 2048):
                asked = session.read(sector, min(2048, session.sectors - sector))
                session.finish()
                got += asked.read()
            compare(got, self.fresh_content(size), 0, "a new image")

    @needs("read")
    def test_opens_and_closes_without_a_trace(self, cache: CacheMode) -> None:
        """No descriptor stays open."""
        image = self.make_image(self.sizes[-1])
        for readonly in (True, False):
            if not readonly and "write" not in self.info().capabilities:
                continue
            self.session(image, readonly=readonly, cache=cache).close()  # one-time costs
            with nothing_left_open("td_open, reads and td_close, three times"):
                for _ in range(3):
                    with self.session(image, readonly=readonly, cache=cache) as session:
                        session.read(0, session.unit if session.unit < session.sectors else 1)
                        session.finish()

    @needs("write")
    def test_closing_finishes_what_is_under_way(self, cache: CacheMode) -> None:
        """`td_close` answers what was submitted before it returns, and saves it."""
        image = self.make_image(self.sizes[-1])
        with self.session(image, cache=cache) as session:
            count = min(session.unit * 4, session.sectors)
            content = b"\7" * (count * 512)
            session.write(0, content)
            session.submit()
            session.close()
            session.check()
        if not self.volatile:
            with self.open(image, readonly=True, cache=cache) as disk:
                got = disk.pread(0, length=len(content))
            compare(got, content, 0, "written, closed without a flush, and opened again")
            self._close_after_zeroes(image, count, cache)

    def _close_after_zeroes(self, image: str, count: int, cache: CacheMode) -> None:
        """Where zeroes are a mark in a table, that has to be saved as content is."""
        with self.session(image, cache=cache) as session:
            session.zero(0, count)
            session.finish()
        with self.open(image, readonly=True, cache=cache) as disk:
            got = disk.pread(0, length=count * 512)
        compare(got, bytes(len(got)), 0, "zeroed, closed without a flush, and opened again")

    @needs("write")
    def test_two_images_at_once(self, cache: CacheMode) -> None:
        """What belongs to an image is in `dd.private`, not in the module."""
        size = self.sizes[-1]
        one, two = self.make_image(size, "one"), self.make_image(size, "two")
        with (
            self.open(one, cache=cache) as first,
            self.open(two, cache=cache) as second,
        ):
            first.pwrite(0, b"first")
            second.pwrite(0, b"second")
            mine = b"first" + self.fresh_content(6)[5:]
            compare(first.pread(0, length=6), mine, 0, "the first of two open images")
            compare(second.pread(0, length=6), b"second", 0, "the second of two open images")
        if not self.volatile:
            with self.open(one, readonly=True) as first:
                compare(first.pread(0, length=6), mine, 0, "the first of two images, reopened")

    @needs("td_info")
    def test_info_is_json(self) -> None:
        """What `td_info` returns is the `format` object of `tapdisk info --json`."""
        with self.session(self.make_image(self.sizes[0]), readonly=True) as session:
            info = session.dd.drv.td_info(session.dd)
        try:
            json.dumps(info)
        except (TypeError, ValueError) as exc:
            broken(f"td_info returned what JSON cannot express: {exc}")
        if not isinstance(info, dict):
            broken(f"td_info returned {type(info).__name__}, not a dict")
