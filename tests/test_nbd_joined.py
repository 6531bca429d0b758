"""Requests of a batch that follow each other on the disk are one for it; each has its answer."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_client import EIO, ENOSPC, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES
from nbdwire import LateDisk, Wire, finish, opened

import tapcore
from tapcore.engine import DISCARD, ZERO, Engine, Request
from tapcore.engine import WRITE as ENGINE_WRITE
from tapcore.files.imagefile import ImageFile
from tapcore.interface.models import TdState
from tapcore.metrics.meter import Batch, Meter
from tapcore.nbd.constants import CMD_FLAG_FUA
from tapcore.nbd.exports import Export

KIB, MIB = 1 << 10, 1 << 20
DISK = 8 * MIB
BAD = b"this is not to be written"


class Served:
    """An empty disk, a client of it, and what it has to hold."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.disk = LateDisk(wire)
        self.model = bytearray(DISK)
        self.asked: list[int] = []
        self.cleared: list[tuple[int, int]] = []
        self.bad = -1
        self._count = 0

    def write(self, at: int, length: int = 4 * KIB, flags: int = 0, begin: bytes = b"") -> bytes:
        """A request whose content begins so."""
        self._count += 1
        content = begin + random.Random(self._count).randbytes(length - len(begin))
        if not begin:
            self.model[at : at + length] = content
        return self.wire.make(WRITE, at, flags=flags, payload=content)

    def fill(self, at: int, stop: int, step: int = 4 * KIB) -> list[bytes]:
        """Requests that go on from one place of the disk up to another."""
        return [self.write(place, step) for place in range(at, stop, step)]

    def feed(self, *requests: bytes) -> None:
        """A batch; `asked` has the lengths of the writes that the engine was then given.

        And `cleared` the ranges of what was to be trimmed or zeroed, which fails at `bad`.
        """
        self.asked.clear()
        self.cleared.clear()
        self.wire.feed(b"".join(requests))
        finish(self.wire, self.disk)

    def clear(self, command: int, at: int, stop: int, flags: int = 0) -> list[bytes]:
        """Requests of 64 KiB that trim, or zero, from one place up to another."""
        if command == WRITE_ZEROES:
            self.model[at:stop] = bytes(stop - at)
        places = range(at, stop, 64 * KIB)
        return [self.wire.make(command, place, 64 * KIB, flags) for place in places]

    def check(self) -> None:
        """What a client reads is what it has written."""
        for at in range(0, DISK, MIB):
            self.feed(self.wire.make(READ, at, MIB))
            assert self.wire.answer().content(at, MIB) == self.model[at : at + MIB]


@pytest.fixture(params=["qcow2", "qcow", "vmdk", "vhdx", "vdi", "vhd"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    """Of each format that takes space for what is new."""
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))
    tapcore.create_image(f"{request.param}:{tmp_path / 'disk'}", DISK)
    submit = Engine.submit

    def counted(engine: Engine, req: Request) -> None:
        if req.op == ENGINE_WRITE:
            here.asked.append(req.length)
        elif req.op in (DISCARD, ZERO):
            here.cleared.append((req.offset // KIB, req.length // KIB))
            if req.offset <= here.bad < req.offset + req.length:
                engine.refuse(req, EIO)
                return
        submit(engine, req)

    with opened(f"{request.param}:{tmp_path / 'disk'}") as state:
        here = Served(Wire(state))
        monkeypatch.setattr(Engine, "submit", counted)
        here.feed(here.write(0))  # what comes first is loaded, and where it ends the next may begin
        yield here
        here.check()
        assert here.wire.side.held == 0
        here.wire.end()


def test_those_that_follow_each_other_are_one(served: Served) -> None:
    served.feed(*served.fill(4 * KIB, 132 * KIB))
    assert served.asked in ([128 * KIB], [])  # in a format of large blocks it has its place
    served.feed(*served.fill(132 * KIB, 140 * KIB, 512))
    served.feed(*served.fill(4 * MIB, 4 * MIB + 64 * KIB))
    assert served.asked in ([4 * KIB, 60 * KIB], [])
    assert not any(served.wire.errors())


def test_what_lies_between_them_parts_them(served: Served) -> None:
    """A read, a flush, a flag, a gap, going back; and whoever is too long to be moved."""
    wire, at = served.wire, 4 * MIB
    served.feed(
        *served.fill(at, at + 16 * KIB), wire.make(READ, 0, 512),
        *served.fill(at + 16 * KIB, at + 32 * KIB), wire.make(FLUSH),
        *served.fill(at + 32 * KIB, at + 48 * KIB), served.write(at + 48 * KIB, flags=CMD_FLAG_FUA),
        *served.fill(at + 52 * KIB, at + 60 * KIB), *served.fill(at + 70 * KIB, at + 80 * KIB, 512),
        *served.fill(at + 72 * KIB, at + 76 * KIB), served.write(at + 76 * KIB, 68 * KIB),
        *served.fill(at + 144 * KIB, at + 152 * KIB),
    )  # fmt: skip
    assert not any(wire.errors())
    assert 4 * KIB in served.asked or not served.asked


def test_what_is_refused_is_refused_by_itself(served: Served) -> None:
    end = DISK - 8 * KIB
    served.feed(served.write(end - 4 * KIB))
    served.feed(
        *served.fill(end, DISK), served.wire.make(WRITE, DISK, payload=bytes(4 * KIB)),
        *served.fill(0, 8 * KIB),
    )  # fmt: skip
    assert served.wire.errors()[-5:] == [0, 0, ENOSPC, 0, 0]


def _cannot_be_written(content: bytes | memoryview) -> bool:
    return BAD in bytes(content)


@pytest.mark.parametrize("late", [False, True])
def test_each_is_answered_as_if_it_were_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Of one that the disk does not take, others do not hear."""
    write_now, write_blocking = ImageFile.write_now, ImageFile.write_blocking

    def now(file: ImageFile, offset: int, buf: memoryview) -> int | None:
        if late:
            return None
        return -5 if _cannot_be_written(buf) else write_now(file, offset, buf)

    def blocking(file: ImageFile, offset: int, buf: memoryview) -> int:
        return -5 if _cannot_be_written(buf) else write_blocking(file, offset, buf)

    monkeypatch.setattr(ImageFile, "write_now", now)
    monkeypatch.setattr(ImageFile, "write_blocking", blocking)
    at = 4 * MIB
    served.feed(served.write(at))
    served.feed(
        *served.fill(at + 4 * KIB, at + 16 * KIB), served.write(at + 16 * KIB, begin=BAD),
        *served.fill(at + 20 * KIB, at + 84 * KIB), served.write(at + 84 * KIB, begin=BAD),
        *served.fill(at + 88 * KIB, at + 96 * KIB),
    )  # fmt: skip
    assert served.wire.errors()[-23:] == [0] * 3 + [EIO] + [0] * 16 + [EIO] + [0] * 2


def test_who_has_gone_is_told_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is in flight gives its memory back."""
    monkeypatch.setattr(ImageFile, "write_now", lambda *_: None)
    monkeypatch.setattr(ImageFile, "write_blocking", lambda *_: -5)
    model, side = bytes(served.model), served.wire.side
    served.wire.feed(b"".join(served.fill(4 * KIB, 132 * KIB)))
    assert (side.in_flight, side.held) == (32, 128 * KIB)
    side.gone()
    served.wire.ended = True
    while side.in_flight:
        served.disk.answer()
        side.engine.turn()
    assert side.held == 0
    monkeypatch.undo()
    served.model[:] = model
    served.wire = Wire(served.wire.export.disk)


def test_each_is_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, of = served.wire.export.disk, Export.of
    served.wire.end()
    meter = Meter(Batch(), "disk")

    def metered(disk: TdState, name: str) -> Export:
        export = of(disk, name)
        export.meter = meter
        return export

    monkeypatch.setattr(Export, "of", metered)
    served.wire = Wire(disk)
    served.feed(*served.fill(4 * KIB, 132 * KIB))
    served.feed(*served.fill(4 * MIB, 4 * MIB + 64 * KIB))
    meter.batch.count()
    cells = [cell for operation, _, cell in meter.cells() if operation == ENGINE_WRITE]
    assert [(cell.answered, cell.bytes) for cell in cells] == [(48, 192 * KIB)]


def test_what_is_cleared_is_one_range(served: Served) -> None:
    served.feed(served.write(0, MIB), served.write(4 * MIB, MIB))
    served.feed(*served.clear(WRITE_ZEROES, 0, MIB))
    assert served.cleared == [(0, 1024)]
    served.feed(
        *served.clear(WRITE_ZEROES, 4 * MIB, 4 * MIB + 256 * KIB),
        *served.clear(WRITE_ZEROES, 4 * MIB + 256 * KIB, 4 * MIB + 512 * KIB, CMD_FLAG_FUA),
        *served.clear(TRIM, 6 * MIB, 7 * MIB), *served.clear(WRITE_ZEROES, 7 * MIB, DISK),
        served.wire.make(WRITE_ZEROES, DISK, 64 * KIB), *served.clear(WRITE_ZEROES, 0, 128 * KIB),
    )  # fmt: skip
    assert served.cleared == [
        (4096, 256), (4096 + 256, 256), (6144, 1024), (7168, 1024), (0, 128)
    ]  # fmt: skip
    assert [error for error in served.wire.errors() if error] == [ENOSPC]


@pytest.mark.parametrize("command", [TRIM, WRITE_ZEROES])
def test_what_cannot_be_cleared_is_told_of_by_itself(served: Served, command: int) -> None:
    at = 4 * MIB
    served.bad = at + 3 * 64 * KIB
    served.feed(*served.clear(command, at, at + 512 * KIB))
    assert served.wire.errors()[-8:] == [0] * 3 + [EIO] + [0] * 4
    each = [(4096 + place, 64) for place in range(0, 512, 64)]
    assert served.cleared == [(4096, 512), *each]


def test_any_mixture_of_them_does_what_it_says(served: Served) -> None:
    rng = random.Random(os.environ.get("TAPCORE_SEED", "7"))
    at, requests = 0, list[bytes]()
    for _ in range(400):
        if rng.random() < 0.2:  # what is in flight must not be met again
            served.feed(*requests)
            requests.clear()
            at = rng.randrange(DISK // 512) * 512
        length = min(rng.choice([512, 4 * KIB, 4 * KIB, 16 * KIB, 64 * KIB]), DISK - at)
        if rng.random() < 0.3 and at + 256 * KIB <= DISK:
            length = 256 * KIB
            requests += served.clear(WRITE_ZEROES, at, at + length)
        else:
            requests.append(served.write(at, length))
        at += length
        if at == DISK or rng.random() < 0.05:
            served.feed(*requests)
            requests.clear()
            at %= DISK
    served.feed(*requests)
    assert not any(served.wire.errors())
