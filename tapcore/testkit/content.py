"""Checks on the content: a disk is a bytearray, and what was flushed is safe."""

from __future__ import annotations

import itertools
import random

from tapcore.disk import Disk
from tapcore.engine import READ, WRITE, ZERO, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.interface.options import CacheMode
from tapcore.testkit.failing import compare
from tapcore.testkit.needs import needs
from tapcore.testkit.subject import Subject

STEPS = 60


class Model:
    """A disk and what it should hold.

    Args:
        disk: open for writing.
        content: of the whole disk.
        below: what shows through a sector that is given up (a parent's content).
    """

    def __init__(self, disk: Disk, content: bytes, below: bytes = b"") -> None:
        self.disk = disk
        self.data = bytearray(content)
        self.below = below.ljust(len(content), b"\0")

    def step(self, rng: random.Random) -> None:
        """Do one random thing, of any offset and length, to both."""
        offset, length = self._place(rng)
        end = offset + length
        op = rng.choice(("write", "write", "write", "read", "zero", "discard", "sync"))
        if op == "write":
            content = rng.randbytes(length)
            self.disk.pwrite(offset, content, fua=rng.random() < 0.1)
            self.data[offset:end] = content
        elif op == "zero":
            self.disk.zero(offset, length=length, unmap=rng.random() < 0.5)
            self.data[offset:end] = bytes(length)
        elif op == "discard":
            self.disk.discard(offset, length=length)
            self._discarded(offset, end)
        elif op == "sync":
            self.disk.sync()
        else:
            what = f"a read of {length} bytes at {offset}"
            compare(self.disk.pread(offset, length=length), self.data[offset:end], offset, what)

    def _place(self, rng: random.Random) -> tuple[int, int]:
        size, whole = len(self.data), self.disk.state.sector_size
        if rng.random() < 0.3:  # whole units of the driver, which reach it as they are
            offset = rng.randrange(size) // whole * whole
            return offset, min(rng.randint(1, 3) * whole, size - offset)
        unit = rng.choice((1, 1, 512, 4096, 65536))
        offset = min(rng.randrange(size) // unit * unit, size - 1)
        if rng.random() < 0.1:
            offset = max(size - rng.randint(1, 2000), 0)
        length = rng.choice((1, 511, 512, 513, 4096, rng.randint(1, 200_000)))
        return offset, min(length, size - offset)

    def _discarded(self, offset: int, end: int) -> None:
        """Each whole sector inside is as it was, zeroes, or what lies below."""
        first, last = -(-offset // 512) * 512, end // 512 * 512
        if first >= last:
            return
        got = self.disk.pread(first, length=last - first)
        for at in range(first, last, 512):
            now = got[at - first : at - first + 512]
            if now not in (bytes(512), self.below[at : at + 512]):
                compare(now, self.data[at : at + 512], at, "after a discard of it")
            self.data[at : at + 512] = now

    def check(self, what: str) -> None:
        """Compare everything."""
        compare(self.disk.pread(0, length=len(self.data)), self.data, 0, what)


class ContentChecks(Subject):
    """Through the engine, as clients see it."""

    @needs("write")
    def test_behaves_as_a_bytearray(self, size: int, cache: CacheMode, rng: random.Random) -> None:
        """Any offset, any length; the core reads, modifies and writes where a unit is larger."""
        with self.open(self.make_image(size), cache=cache) as disk:
            model = Model(disk, self.fresh_content(size))
            for _ in range(STEPS):
                model.step(rng)
            model.check("after random reads, writes, zeroes and discards")

    @needs("write")
    def test_discards_and_zeroes_stay_inside(
        self, size: int, cache: CacheMode, rng: random.Random
    ) -> None:
        """In a full image: what lies beside the range keeps its content."""
        with self.open(self.make_image(size), cache=cache) as disk:
            unit = disk.state.sector_size
            for offset, length in ((0, unit), (unit, unit), (size // 3 + 1, size // 3), (0, size)):
                start, end = min(offset, size), min(offset + length, size)
                content = rng.randbytes(size)
                disk.pwrite(0, content)
                disk.discard(start, length=end - start)
                got = disk.pread(0, length=size)
                where = f"a discard of {end - start} bytes at {start}"
                compare(got[:start], content[:start], 0, f"before {where}")
                compare(got[end:], content[end:], end, f"behind {where}")
                disk.zero(start, length=end - start, unmap=rng.random() < 0.5)
                want = got[:start] + bytes(end - start) + got[end:]
                compare(
                    disk.pread(0, length=size), want, 0, f"after {end - start} zeroes at {start}"
                )

    @needs("write")
    def test_many_requests_at_once(self, cache: CacheMode, rng: random.Random) -> None:
        """Slices of any length in one batch; neighbours share sectors, and units."""
        size = self.sizes[-1]
        with self.open(self.make_image(size), cache=cache) as disk:
            model = bytearray(self.fresh_content(size))
            for _ in range(3):
                self._batch(disk, model, rng)
            compare(disk.pread(0, length=size), model, 0, "after batches of requests")

    def _batch(self, disk: Disk, model: bytearray, rng: random.Random) -> None:
        base = rng.randrange(len(model))
        cuts = sorted({min(base + rng.randrange(300_000), len(model)) for _ in range(33)})
        engine = engine_of(disk.state)
        loop = EngineLoop(engine)
        reads: list[tuple[Request, bytes]] = []
        finished: list[Request] = []
        slices = list(itertools.pairwise(cuts))
        rng.shuffle(slices)
        for start, end in slices:
            op = rng.choice((READ, WRITE, WRITE, ZERO))
            buf = bytearray(rng.randbytes(end - start))
            view = None if op == ZERO else memoryview(buf)
            request = Request(op, start, end - start, view, finished.append)
            if op == READ:
                reads.append((request, bytes(model[start:end])))
            else:
                model[start:end] = buf if op == WRITE else bytes(end - start)
            engine.submit(request)
        loop.run_until(lambda: len(finished) == len(slices))
        for request, want in reads:
            assert request.buf is not None
            compare(request.buf, want, request.offset, "a read beside others in one batch")

    @needs("write", "lasting")
    def test_content_persists(self, size: int, cache: CacheMode, rng: random.Random) -> None:
        """Closed and opened again, three times."""
        image, content = self.make_image(size), self.fresh_content(size)
        for _ in range(3):
            with self.open(image, cache=cache) as disk:
                model = Model(disk, content)
                model.check("after opening again")
                for _ in range(STEPS // 3):
                    model.step(rng)
                content = bytes(model.data)
        with self.open(image, readonly=True, cache=cache) as disk:
            compare(disk.pread(0, length=size), content, 0, "after opening again for reading")

    @needs("write", "lasting", "file")
    def test_what_was_flushed_is_safe(
        self, size: int, cache: CacheMode, rng: random.Random
    ) -> None:
        """A copy of the files, made while they are written, opens and holds what was flushed.

        That is what a crash of the process leaves. Sectors that were written after the flush may
        hold anything of theirs, old or new.
        """
        image = self.make_image(size)
        with self.open(image, cache=cache) as disk:
            model = Model(disk, self.fresh_content(size))
            for round_ in range(4):
                for _ in range(STEPS // 4):
                    model.step(rng)
                disk.sync()
                flushed = bytes(model.data)
                later = self._write_more(disk, model, rng)
                copy = self.copied(image, f"crash{round_}")
                with self.open(copy, readonly=True) as after:
                    got = bytearray(after.pread(0, length=size))
                for start, end in later:
                    got[start:end] = flushed[start:end]
                what = "after a flush, then a crash (in a copy of the image's files)"
                compare(got, flushed, 0, what)

    @staticmethod
    def _write_more(disk: Disk, model: Model, rng: random.Random) -> list[tuple[int, int]]:
        """Writes without a flush; returns the sectors that they touch, in bytes."""
        touched = []
        for _ in range(3):
            offset = rng.randrange(len(model.data))
            content = rng.randbytes(min(rng.randint(1, 5000), len(model.data) - offset))
            disk.pwrite(offset, content)
            end = offset + len(content)
            model.data[offset:end] = content
            touched.append((offset // 512 * 512, -(-end // 512) * 512))
        return touched
