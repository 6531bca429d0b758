"""Checks on images that are opened for reading."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from tapcore.errors import ReadOnlyError
from tapcore.interface.options import CacheMode
from tapcore.testkit.failing import broken, open_descriptors
from tapcore.testkit.needs import needs
from tapcore.testkit.session import Session, access_mode
from tapcore.testkit.subject import Subject


class ReadOnlyChecks(Subject):
    """`TD_RDONLY`: the image must not be changed."""

    @needs("write")
    def test_a_read_only_disk_refuses_writes(self, cache: CacheMode) -> None:
        """Write, zero, discard; flush is harmless."""
        with self.open(self.make_image(self.sizes[-1]), readonly=True, cache=cache) as disk:
            attempts: tuple[tuple[str, Callable[[], object]], ...] = (
                ("a write", lambda: disk.pwrite(0, b"x")),
                ("a zeroing", lambda: disk.zero(0, length=512)),
                ("a discard", lambda: disk.discard(0, length=512)),
            )
            for what, call in attempts:
                try:
                    call()
                except ReadOnlyError:
                    continue
                broken(f"{what} of a disk that was opened read-only succeeded")
            disk.sync()

    @needs("read", "file")
    def test_a_read_only_disk_leaves_its_files_alone(
        self, cache: CacheMode, rng: random.Random
    ) -> None:
        """Not even opened for writing; and nothing written, though the hooks be called."""
        image = self._filled(rng)
        before = self._state(image)
        known = set(open_descriptors())
        with self.session(image, readonly=True, cache=cache, errors=True) as session:
            self._check_modes(image, known)
            session.read(0, min(session.unit, session.sectors))
            session.finish()
            if "write" in self.info().capabilities:
                self._try_to_write(session)
        after = self._state(image)
        for path, (content, changed) in before.items():
            if after[path][0] != content:
                broken(f"opened read-only, and yet {os.path.basename(path)} has other content")
            if after[path][1] != changed:
                broken(f"opened read-only, and yet {os.path.basename(path)} was written to")

    def _filled(self, rng: random.Random) -> str:
        image = self.make_image(self.sizes[-1])
        if "write" in self.info().capabilities and not self.volatile:
            with self.open(image) as disk:
                disk.pwrite(0, rng.randbytes(min(disk.size, 100_000)))
        return image

    def _state(self, image: str) -> dict[str, tuple[bytes, int]]:
        contents = self.snapshot(image)
        return {path: (data, os.stat(path).st_mtime_ns) for path, data in contents.items()}

    def _check_modes(self, image: str, known: set[int]) -> None:
        files = {os.path.realpath(path) for path in self.image_files(image)}
        for fd, target in open_descriptors().items():
            if fd not in known and target in files and access_mode(fd) != os.O_RDONLY:
                broken(
                    f"opened read-only, but {os.path.basename(target)} is open for writing (pass "
                    "td_open's flags on to open_image_file)"
                )

    @staticmethod
    def _try_to_write(session: Session) -> None:
        """The core never calls these for such a disk: any answer will do, changes will not."""
        count = min(session.unit, session.sectors)
        session.write(0, b"\xee" * (count * 512))
        session.finish()
        session.flush()
        session.finish()
