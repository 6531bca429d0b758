"""Checks on the hooks themselves: every sector answered exactly once, in whatever order."""

from __future__ import annotations

import random

from tapcore.interface.options import CacheMode
from tapcore.testkit.asked import Asked
from tapcore.testkit.failing import broken, compare
from tapcore.testkit.needs import needs
from tapcore.testkit.session import Session
from tapcore.testkit.subject import Subject

DEPTH = 32
MANY = 1000


class AnswerChecks(Subject):
    """Queue, submit, callback: the accounts of each request."""

    @needs("read")
    def test_reads_are_answered_exactly_once(
        self, size: int, cache: CacheMode, rng: random.Random
    ) -> None:
        """One at a time and in batches, in runs of every length."""
        with self.session(self.make_image(size), readonly=True, cache=cache) as session:
            want = self.fresh_content(size)
            for depth in (1, 1, 1, DEPTH):
                reads = [session.read(*session.any_range(rng)) for _ in range(depth)]
                session.finish()
                self._compare(reads, want)

    @needs("write")
    def test_every_sector_is_answered_exactly_once(
        self, size: int, cache: CacheMode, rng: random.Random
    ) -> None:
        """Writes, reads, zeroes and flushes one after the other, compared with a model."""
        with self.session(self.make_image(size), cache=cache) as session:
            model = bytearray(self.fresh_content(size))
            for _ in range(40):
                self._one(session, model, rng)
            self._read_back(session, model)

    def _one(self, session: Session, model: bytearray, rng: random.Random) -> None:
        op = rng.choice(("write", "write", "read", "zero", "discard", "flush"))
        sector, count = session.any_range(rng)
        start, end = sector * 512, (sector + count) * 512
        if op == "write":
            content = rng.randbytes(end - start)
            session.write(sector, content)
            model[start:end] = content
        elif op == "read":
            read = session.read(sector, count)
            session.finish()
            self._compare([read], model)
        elif op == "zero":
            session.zero(sector, count, may_unmap=rng.random() < 0.5)
            model[start:end] = bytes(end - start)
        elif op == "discard":
            self._discard(session, model, sector, count)
        else:
            session.flush()
        session.finish()

    def _discard(self, session: Session, model: bytearray, sector: int, count: int) -> None:
        """Afterwards each sector is as it was, or zeroes."""
        session.discard(sector, count)
        session.finish()
        for at in range(sector, sector + count, 2048):
            read = session.read(at, min(2048, sector + count - at))
            session.finish()
            for n, got in enumerate(_sectors(read.read())):
                start = (at + n) * 512
                if got != bytes(512):
                    compare(got, model[start : start + 512], start, "after a discard of it")
                model[start : start + 512] = got

    @needs("write")
    def test_32_requests_before_one_submit(
        self, size: int, cache: CacheMode, rng: random.Random
    ) -> None:
        """Writes that touch each other's units in any order, then reads, in one batch each."""
        with self.session(self.make_image(size), cache=cache) as session:
            model = bytearray(self.fresh_content(size))
            for _ in range(3):
                for sector, count in self._disjoint(session, rng, DEPTH):
                    content = rng.randbytes(count * 512)
                    session.write(sector, content)
                    model[sector * 512 : (sector + count) * 512] = content
                session.finish()
                reads = [session.read(*session.any_range(rng)) for _ in range(DEPTH)]
                session.finish()
                self._compare(reads, model)
            self._read_back(session, model)

    @staticmethod
    def _disjoint(session: Session, rng: random.Random, count: int) -> list[tuple[int, int]]:
        """Neighbouring runs of 1 to 4 units somewhere in the image, in random order."""
        unit = session.unit
        runs: list[tuple[int, int]] = []
        at = rng.randrange(-(-session.sectors // unit)) * unit
        at = max(min(at, session.sectors - count * 2 * unit), 0) // unit * unit
        while at < session.sectors and len(runs) < count:
            end = min(at + rng.choice((1, 1, 2, 4)) * unit, session.sectors)
            runs.append((at, end - at))
            at = end
        rng.shuffle(runs)
        return runs

    @needs("read")
    def test_a_full_queue_is_tried_again(self, cache: CacheMode, rng: random.Random) -> None:
        """A driver takes any number of requests, or says -EBUSY and takes nothing of that one."""
        size = self.sizes[-1]
        with self.session(self.make_image(size), readonly=True, cache=cache) as session:
            reads = [session.read(*session.any_range(rng, 8)) for _ in range(MANY)]
            session.finish()
            self._compare(reads, self.fresh_content(size))

    @needs("write")
    def test_a_flush_beside_writes_is_answered(self, cache: CacheMode) -> None:
        """Flushes before, between and after writes of one batch."""
        with self.session(self.make_image(self.sizes[-1]), cache=cache) as session:
            session.flush()
            for sector in range(0, min(session.unit * 4, session.sectors), session.unit):
                session.write(sector, b"f" * (min(session.unit, session.sectors - sector) * 512))
                session.flush()
            session.finish()

    @staticmethod
    def _compare(reads: list[Asked], want: bytes | bytearray) -> None:
        for read in reads:
            start = read.sector * 512
            part = want[start : start + read.nb_sectors * 512]
            for sector, count in read.holes:
                if any(want[sector * 512 : (sector + count) * 512]):
                    broken(
                        f"{read}: sector {sector} and {count - 1} after it were answered as "
                        "BLK_NOT_ALLOCATED, but something was written there"
                    )
            compare(read.read(), part, start, str(read))

    def _read_back(self, session: Session, model: bytearray) -> None:
        reads = []
        for sector in range(0, session.sectors, 2048):
            reads.append(session.read(sector, min(2048, session.sectors - sector)))
        session.finish()
        self._compare(reads, model)


def _sectors(content: bytes) -> list[bytes]:
    return [content[at : at + 512] for at in range(0, len(content), 512)]
