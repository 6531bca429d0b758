"""Checks on what a driver takes: memory and descriptors do not grow with the work."""

from __future__ import annotations

import errno
import itertools
import random
import tracemalloc
from typing import Self

from tapcore.errors import TapError
from tapcore.testkit.failing import broken, compare, memory_mib, nothing_left_open, within
from tapcore.testkit.needs import needs
from tapcore.testkit.session import LARGEST, Session
from tapcore.testkit.subject import Subject

_ROUNDS = 24
_CLEARLY = 6
"""MiB above the limit to which what is kept of each request would come."""

_IMPOSSIBLE = 1 << 62
_MANY = 1000
_SELDOM = 8
"""Of so many rounds one has what takes longer, too: a flush waits for the disk."""


class _Kept:
    """The memory of Python's objects that were made meanwhile and are still there.

    Attributes:
        mib: of them, at the end.
    """

    mib = 0

    def __enter__(self) -> Self:
        self._others = tracemalloc.is_tracing()
        tracemalloc.start()
        self._before, _ = tracemalloc.get_traced_memory()
        return self

    def __exit__(self, *exc: object) -> None:
        self.mib = tracemalloc.get_traced_memory()[0] - self._before >> 20
        if not self._others:
            tracemalloc.stop()


class BoundChecks(Subject):
    """Memory, descriptors, sizes, and the one who may write."""

    @needs("read")
    def test_nothing_grows_with_the_work(self) -> None:
        """Buffers of requests that were answered are let go, and no descriptor is added."""
        image = self.make_image(self.sizes[-1])
        writing = "write" in self.info().capabilities
        with self.session(image, readonly=not writing) as session:
            self._work_through(session, writing=writing, whole=True)
            enough = (self.growth_limit + _CLEARLY) << 20
            rounds = max(_ROUNDS, min(enough // (session.sectors * 512), 10 * _ROUNDS))
            before = memory_mib()
            with nothing_left_open("work on an open image"), _Kept() as kept:
                for number in range(rounds):
                    self._work_through(session, writing=writing, whole=number % _SELDOM == 0)
            # what fits into memory that this process has already shows in the former only
            grown = max(kept.mib, memory_mib("VmHWM:") - before)
        if grown > self.growth_limit:
            broken(
                f"memory has grown by {grown} MiB while the same requests were made {rounds} times"
            )

    @staticmethod
    def _work_through(session: Session, *, writing: bool, whole: bool) -> None:
        count = min(LARGEST, session.sectors)
        session.read(0, count)
        session.finish()
        if writing:
            session.write(0, b"w" * (count * 512))
            session.finish()
        if whole:
            for _ in itertools.islice(session.dd.drv.td_extents(session.dd, 0, count), _MANY):
                pass
        if whole and writing:
            session.flush()
            session.discard(0, min(session.unit, count))
            session.finish()

    @needs("write", "file")
    def test_only_one_may_write(self) -> None:
        """An image that is open for writing is refused to another one who would write."""
        image = self.make_image(self.small)
        with self.open(image):
            try:
                self.open(image).close()
            except (TapError, OSError):
                return
        broken("an image was opened for writing twice (open_image_file takes the locks)")

    @needs("create", "file")
    def test_a_size_that_cannot_be(self) -> None:
        """4 EiB: refused by `td_create` at once, with a TapError or OSError."""
        path = f"{self.folder}/new"
        with within(self.time_limit, "td_create of an impossible size"):
            before = memory_mib()
            try:
                self.operations().td_create(path, _IMPOSSIBLE, None, {})
            except (TapError, OSError):
                took = memory_mib("VmHWM:") - before
            except Exception as exc:
                broken(f"td_create of {_IMPOSSIBLE} bytes raised {type(exc).__name__}: {exc}")
            else:
                broken(f"td_create of {_IMPOSSIBLE} bytes succeeded")
        if took > self.memory_limit:
            broken(f"td_create of an impossible size took {took} MiB of memory to refuse it")

    @needs("resize", "write")
    def test_a_resize_that_cannot_be(self, rng: random.Random) -> None:
        """Refused, and the disk is what it was."""
        image, content = self.filled(rng)
        with self.session(image) as session:
            try:
                session.dd.drv.td_resize(session.dd, _IMPOSSIBLE)
            except (TapError, OSError):
                pass
            except Exception as exc:
                broken(f"td_resize to {_IMPOSSIBLE} bytes raised {type(exc).__name__}: {exc}")
            else:
                broken(f"td_resize to {_IMPOSSIBLE} bytes succeeded")
            if session.sectors * 512 != self.small:
                broken(f"td_resize failed, and left a disk of {session.sectors} sectors")
        if not self.volatile:
            with self.open(image, readonly=True) as disk:
                got = disk.pread(0, length=disk.size)
            compare(got, content, 0, "after a resize that failed, opened again")

    @needs("write", "zero")
    def test_zeroes_that_keep_their_space(self, rng: random.Random) -> None:
        """`may_unmap` or not: zeroes, or -EOPNOTSUPP and nothing has changed."""
        with self.session(self.make_image(self.small), errors=True) as session:
            for may_unmap in (False, True):
                content = rng.randbytes(min(session.unit * 2, session.sectors) * 512)
                count = len(content) // 512
                session.write(0, content)
                session.finish()
                zero = session.zero(0, count, may_unmap=may_unmap)
                session.finish()
                read = session.read(0, count)
                session.finish()
                if zero.error not in (0, -errno.EOPNOTSUPP):
                    broken(f"{zero} (may_unmap={may_unmap}) failed with {zero.error}")
                compare(read.read(), bytes(len(content)), 0, f"zeroed, may_unmap={may_unmap}")
