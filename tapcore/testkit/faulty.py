"""Checks with host files that fail, answer late, or do less than they were asked for."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence

from tapcore.errors import TapError
from tapcore.testkit.asked import Asked
from tapcore.testkit.failing import broken, compare, error_name, nothing_left_open
from tapcore.testkit.faults import Faults, Kind
from tapcore.testkit.needs import left_out, needs
from tapcore.testkit.possible import Possible
from tapcore.testkit.recording import Recording, UnrecordedError
from tapcore.testkit.session import Session
from tapcore.testkit.subject import Subject

_FOR_EVER = 1 << 60
_WRITE_FAULTS: tuple[tuple[Kind, int], ...] = (
    ("write", errno.ENOSPC),
    ("write", errno.EIO),
    ("flush", errno.EIO),
    ("size", errno.ENOSPC),
)


class FaultChecks(Subject):
    """An error is told to whoever is concerned, spoils nothing else, and is over when it is."""

    @needs("read", "file")
    def test_failed_reads_are_told(self, rng: random.Random) -> None:
        """EIO from the host: those sectors fail; nothing is made up, nothing else is lost."""
        image, content = self.filled(rng)
        with (
            Faults(*self.host_files(image), rng=rng, late=0.6) as faults,
            self.session(image, readonly=True, errors=True) as session,
        ):
            for number in range(12):
                if number % 3 == 2:
                    faults.heal()
                else:
                    faults.fail("read", errno.EIO, after=rng.randrange(3), times=rng.choice((1, 9)))
                reads = [session.read(*session.any_range(rng)) for _ in range(rng.choice((1, 4)))]
                session.finish()
                for read in reads:
                    self._check_read(read, content, healthy=number % 3 == 2)

    @staticmethod
    def _check_read(read: Asked, content: bytes, *, healthy: bool) -> None:
        if healthy and read.error:
            broken(f"{read} failed though its file had become readable again")
        got, start = bytearray(read.read()), read.sector * 512
        want = content[start : start + len(got)]
        for sector, count in read.failed:
            at = (sector - read.sector) * 512
            got[at : at + count * 512] = want[at : at + count * 512]
        compare(got, want, start, f"{read}, while reads of the host file fail")

    @needs("read", "file")
    def test_opening_a_file_that_cannot_be_read(self, rng: random.Random) -> None:
        """A TapError or OSError; nothing stays open."""
        image, _ = self.filled(rng)
        self.session(image, readonly=True).close()  # one-time costs
        with Faults(*self.host_files(image), rng=rng) as faults, nothing_left_open("td_open"):
            for after in range(3):
                faults.fail("read", errno.EIO, after=after)
                try:
                    self.session(image, readonly=True).close()
                except (TapError, OSError):
                    continue
                except Exception as exc:
                    broken(f"td_open of an unreadable file raised {type(exc).__name__}: {exc}")

    @needs("write", "file", "lasting")
    def test_failed_writes_are_told(self, rng: random.Random) -> None:
        """ENOSPC, EIO: what was answered with 0 is there; the rest is what it was, or should be."""
        parent, below = "", b""
        if "parents" in self.info().capabilities:
            parent, below = self.filled(rng, "parent", whole=True)
        for number, (kind, code) in enumerate(_WRITE_FAULTS):
            if parent and number % 2:
                image = self.make_child(parent, None, f"child{number}")
                model = Possible(below, below)
            else:
                image = self.make_image(self.small, f"image{number}")
                model = Possible(self.fresh_content(self.small))
            with Faults(*self.host_files(image), rng=rng, late=0.3) as faults:
                session = self.session(image, errors=True)
                try:
                    self._fail_a_while(session, model, faults, (kind, code), rng)
                finally:
                    self._close(session)
            with self.open(image, readonly=True) as disk:
                got = disk.pread(0, length=self.small)
            what = f"after {errno.errorcode[code]} of a {kind}, and opened again"
            model.check(got, what, reopened=True)

    def _fail_a_while(
        self,
        session: Session,
        model: Possible,
        faults: Faults,
        fault: tuple[Kind, int],
        rng: random.Random,
    ) -> None:
        self._steps(session, model, rng, 3)
        self._flush(session, model)
        for _ in range(3):
            session.told.clear()
            faults.fail(*fault, after=rng.randrange(5), times=rng.choice((1, 3, _FOR_EVER)))
            self._race(session, model, rng)
            self._steps(session, model, rng, 5)
            self._flush(session, model)
            faults.heal()
            self._check_errno(session, fault[1])
            what = f"while the host answers {errno.errorcode[fault[1]]}"
            model.check(self._content(session, model.below), what)
            self._steps(session, model, rng, 2)
            self._flush(session, model)
        model.check(self._content(session, model.below), "after errors of the host, which are over")

    @staticmethod
    def _check_errno(session: Session, code: int) -> None:
        """A full disk is something else than a broken one: who serves a machine stops it then."""
        for op in ("write", "flush"):
            told = {res for each, res in session.told if each == op}
            if told and -code not in told:
                said = ", ".join(sorted(map(error_name, told)))
                broken(f"the host answered {error_name(code)}, and a {op} that failed of it {said}")

    @staticmethod
    def _race(session: Session, model: Possible, rng: random.Random) -> None:
        """What is written is zeroed again while a flush of it is under way."""
        sector, nb_sectors = session.any_range(rng, 64)
        write = session.write(sector, rng.randbytes(nb_sectors * 512))
        session.finish()
        model.learn([write])
        session.flush()
        session.zero(sector, nb_sectors)
        asked = list(session.asked)
        session.finish()
        model.learn([each for each in asked if each.error != -errno.EOPNOTSUPP])

    @staticmethod
    def _steps(session: Session, model: Possible, rng: random.Random, count: int) -> None:
        for _ in range(count):
            sector, nb_sectors = session.any_range(rng, 64)
            op = rng.choice(("write", "write", "write", "zero", "discard"))
            if op == "write":
                session.write(sector, rng.randbytes(nb_sectors * 512))
            elif op == "zero":
                session.zero(sector, nb_sectors)
            else:
                session.discard(sector, nb_sectors)
            asked = [each for each in session.asked if each.error != -errno.EOPNOTSUPP]
            session.finish()
            model.learn([each for each in asked if each.error != -errno.EOPNOTSUPP])

    @staticmethod
    def _flush(session: Session, model: Possible) -> Asked:
        flush = session.flush()
        session.finish()
        model.learn([flush])
        return flush

    @staticmethod
    def _content(session: Session, below: bytes = b"") -> bytes:
        content = b""
        for sector in range(0, session.sectors, 2048):
            read = session.read(sector, min(2048, session.sectors - sector))
            session.finish()
            if read.error:
                broken(f"{read} fails with {read.error} though the host file is well again")
            content += read.read(below)
        return content

    @staticmethod
    def _close(session: Session) -> None:
        """What could not be saved before may make it fail."""
        try:
            session.close()
        except (TapError, OSError):
            return

    # ---- flushes ----------------------------------------------------------------------------

    @needs("write", "file", "lasting")
    def test_a_failed_flush_is_told(self, rng: random.Random) -> None:
        """And made up for: the next one that succeeds covers everything."""
        kinds: tuple[Kind, ...] = ("flush", "flush", "write", "write")
        for after, kind in enumerate(kinds):
            self._fail_a_flush(self.make_image(self.small, f"image{after}"), kind, after % 2, rng)

    def _fail_a_flush(self, image: str, kind: Kind, after: int, rng: random.Random) -> None:
        files = self.host_files(image)
        model = Possible(self.fresh_content(self.small))
        moments: list[int] = []
        try:
            with Recording(*files) as recording, Faults(*files, rng=rng) as faults:
                session = self.session(image, errors=True)
                try:
                    self._steps(session, model, rng, 3)
                    faults.fail(kind, errno.EIO, after=after, times=1)
                    for _ in range(2):
                        before = faults.failed["flush"]
                        flush = self._flush(session, model)
                        if faults.failed["flush"] > before and not flush.error:
                            broken("an fdatasync failed, and the flush was answered with 0")
                        if not flush.error:
                            moments.append(recording.now())
                        faults.heal()
                finally:
                    faults.heal()
                    self._close(session)
        except UnrecordedError:
            left_out("the driver writes to its files in ways that cannot be recorded")
        copy = self.copied(image, f"{kind}{after}")
        for moment in moments:
            state = recording.state(rng, moment, lambda change: False)
            state.write({path: self._beside(copy, path) for path in files})
            with self.open(copy, readonly=True) as disk:
                got = disk.pread(0, length=self.small)
            what = f"a {kind} of the host file failed, a flush was answered with 0, then power loss"
            model.check(got, what)

    @staticmethod
    def _beside(copy: str, path: str) -> str:
        return os.path.join(os.path.dirname(copy), os.path.basename(path))

    @needs("write", "file", "lasting")
    def test_closing_tells_of_what_failed(self, rng: random.Random) -> None:
        """`td_close` raises when not all can be made safe, and releases all the same."""
        faults_of: Sequence[tuple[Kind, int]] = (("flush", errno.EIO), ("write", errno.ENOSPC))
        for kind, code in faults_of:
            image = self.make_image(self.small, f"image{kind}")
            with Faults(*self.host_files(image), rng=rng) as faults:
                with nothing_left_open("a td_close that failed"):
                    session = self.session(image, errors=True)
                    session.write(0, rng.randbytes(min(session.unit, session.sectors) * 512))
                    session.finish()
                    faults.fail(kind, code)
                    told = self._closing_fails(session)
                if faults.failed[kind] and not told:
                    broken(f"td_close said nothing though a {kind} of the host file failed")

    @staticmethod
    def _closing_fails(session: Session) -> bool:
        try:
            session.close()
        except (TapError, OSError):
            return True
        except Exception as exc:
            broken(f"td_close raised {type(exc).__name__}: {exc}")
        return False

    # ---- late -------------------------------------------------------------------------------

    @needs("write", "file")
    def test_a_host_that_is_late(self, rng: random.Random) -> None:
        """Nothing at once, -EBUSY, short reads and writes; flushes between; closed in the midst."""
        image = self.make_image(self.small)
        model = Possible(self.fresh_content(self.small))
        with (
            self.session(image) as session,
            Faults(*self.host_files(image), rng=rng, late=0.8, short=0.3, busy=0.3),
        ):
            for _ in range(6):
                model.learn(self._late_batch(session, rng))
                session.finish()
            model.check(self._content(session), "on a host that is late")
            writes = self._late_batch(session, rng)
            session.submit()
            session.withdraw()
            asked = list(session.asked)
            model.learn([each for each in writes if each in asked])
            session.close()
            session.check()
        if not self.volatile:
            with self.open(image, readonly=True) as disk:
                got = disk.pread(0, length=self.small)
            model.check(got, f"closed with {len(asked)} requests in flight, and opened again")

    @staticmethod
    def _late_batch(session: Session, rng: random.Random) -> list[Asked]:
        """Reads and writes, of different sectors, with flushes between; returns the writes."""
        taken, writes = set[int](), list[Asked]()
        for _ in range(8):
            sector, count = session.any_range(rng, 64)
            if not taken.isdisjoint(range(sector, sector + count)):
                session.flush()
                continue
            taken.update(range(sector, sector + count))
            if rng.random() < 0.7:
                writes.append(session.write(sector, rng.randbytes(count * 512)))
            else:
                session.read(sector, count)
        return writes

    # ---- parents ----------------------------------------------------------------------------

    @needs("parents", "write", "file")
    def test_a_parent_that_cannot_be_read(self, rng: random.Random) -> None:
        """A write that needs the parent's content fails; zeroes are not written in its place."""
        parent, below = self.filled(rng, "parent")
        child, content = self.make_child(parent, None), bytearray(below)
        doubtful: set[int] = set()
        with Faults(*self.host_files(parent), rng=rng) as faults, self.open(child) as disk:
            for number in range(8):
                faults.fail("read", errno.EIO, after=number % 2)
                at = rng.randrange(disk.size)
                piece = rng.randbytes(min(rng.choice((100, 700, 5000)), disk.size - at))
                try:
                    disk.pwrite(at, piece)
                except (TapError, OSError):
                    doubtful.update(range(at, at + len(piece)))
                else:
                    content[at : at + len(piece)] = piece
                    doubtful.difference_update(range(at, at + len(piece)))
            faults.heal()
            got = bytearray(disk.pread(0, length=disk.size))
        for at in doubtful:
            got[at] = content[at]
        compare(got, content, 0, "a child whose parent could not be read for a while")
