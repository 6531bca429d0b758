"""Checks on `td_extents`: in order, without gaps, and never wrong about what is zero."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable

from tapcore.interface.extent import Extent
from tapcore.interface.models import DiskDriver
from tapcore.interface.options import CacheMode
from tapcore.testkit.failing import broken, compare, run_of
from tapcore.testkit.needs import needs
from tapcore.testkit.session import Session
from tapcore.testkit.subject import Subject

KINDS = ("data", "zero", "unallocated", "compressed")
_ENOUGH = 20_000


def extents_of(dd: DiskDriver, sector: int, nb_sectors: int) -> list[Extent]:
    """What the hook yields for a range (of many, only the first), checked for order and gaps."""
    found: Iterable[Extent] = dd.drv.td_extents(dd, sector, nb_sectors)
    asked = f"td_extents of {run_of(sector, nb_sectors)}"
    at, extents = sector, []
    for extent in itertools.islice(found, _ENOUGH):
        if extent.kind not in KINDS:
            broken(f"{asked}: an extent of the kind {extent.kind!r}")
        if extent.nb_sectors < 1:
            broken(f"{asked}: an extent of {extent.nb_sectors} sectors at sector {extent.sector}")
        if extent.sector != at:
            how = "a gap" if extent.sector > at else "an overlap"
            broken(f"{asked}: {how}: sector {extent.sector} follows where {at} was expected")
        at = extent.end
        extents.append(extent)
    if at > sector + nb_sectors or (at < sector + nb_sectors and len(extents) < _ENOUGH):
        broken(f"{asked}: they end at sector {at} instead of {sector + nb_sectors}")
    return extents


class ExtentChecks(Subject):
    """Compared with what is really there."""

    @needs("extents", "write")
    def test_extents_are_true(self, size: int, cache: CacheMode, rng: random.Random) -> None:
        """After every few writes, zeroes and discards; the whole image, and parts of it."""
        with self.session(self.make_image(size), cache=cache) as session:
            self._check(session, 0, session.sectors, self.fresh_content(size))
            for _ in range(6):
                content = self._change(session, rng)
                self._check(session, 0, session.sectors, content)
                for _ in range(10):
                    first = rng.randrange(session.sectors)
                    count = rng.randint(1, min(session.sectors - first, 200))
                    self._check(session, first, count, content)

    @needs("extents")
    def test_extents_of_a_fresh_image(self, size: int, cache: CacheMode) -> None:
        """The same for an image that is only read."""
        with self.session(self.make_image(size), readonly=True, cache=cache) as session:
            self._check(session, 0, session.sectors, self.fresh_content(size))

    @staticmethod
    def _change(session: Session, rng: random.Random) -> bytes:
        for _ in range(3):
            sector, count = session.any_range(rng, 512)
            session.write(sector, rng.randbytes(count * 512))
            session.finish()
        session.zero(*session.any_range(rng, 512))
        session.finish()
        session.discard(*session.any_range(rng, 512))
        session.finish()
        content = b""
        for sector in range(0, session.sectors, 2048):
            read = session.read(sector, min(2048, session.sectors - sector))
            session.finish()
            content += read.read()
        return content

    @staticmethod
    def _check(session: Session, sector: int, nb_sectors: int, content: bytes) -> None:
        for extent in extents_of(session.dd, sector, nb_sectors):
            want = content[extent.sector * 512 : extent.end * 512]
            where = run_of(extent.sector, extent.nb_sectors)
            if extent.kind in ("zero", "unallocated"):
                first = len(want) - len(want.lstrip(b"\0"))
                if first < len(want):
                    broken(
                        f"td_extents calls {where} '{extent.kind}', but there is content in "
                        f"sector {extent.sector + first // 512}"
                    )
            elif extent.kind == "data":
                _compare_with_host_file(extent, want)


def _is_named(fd: int, name: str) -> bool:
    """Whether a file has that name; a file without names, as one in memory, has any."""
    found = os.fstat(fd)
    try:
        return not found.st_nlink or os.path.samestat(found, os.stat(name))
    except OSError:
        return False


def _compare_with_host_file(extent: Extent, want: bytes) -> None:
    """Plain data can be sent from its file straight to a client: it has to lie there."""
    if extent.fd is None:
        return
    where = run_of(extent.sector, extent.nb_sectors)
    try:  # anew: the descriptor may be one of O_DIRECT
        fd = os.open(f"/proc/self/fd/{extent.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        broken(f"td_extents names descriptor {extent.fd} for {where}: {exc.strerror}")
    try:
        if not _is_named(fd, extent.filename):
            broken(f"td_extents says that {where} lies in '{extent.filename}': its fd is another")
        got = os.pread(fd, len(want), extent.offset).ljust(len(want), b"\0")
    finally:
        os.close(fd)
    compare(
        got,
        want,
        extent.sector * 512,
        f"td_extents says that {where} lies at offset {extent.offset} of its file; what is there",
    )
