"""Small writes of a batch go to their places by one call; what does not go so goes as usual."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_client import EIO, FLUSH, READ, WRITE
from nbdwire import LateDisk, Wire, finish, opened

import tapcore
from peers import missing
from tapcore.files.carried import CARRIED, SIZE
from tapcore.files.imagefile import ImageFile
from tapcore.files.mappable import maps_well, writes_pay

KIB, MIB = 1 << 10, 1 << 20
DISK = 4 * MIB


class Calls(list[int]):
    """How many places each call has had, those between writes among them."""


@pytest.fixture(autouse=True)
def _on_ext4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no write wait, and all is written often."""
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))
    monkeypatch.setattr("tapcore.files.windows.OFTEN", 0)
    (probe := tmp_path / "probe").write_bytes(b"p")
    with open(probe, "rb") as file:
        if not (maps_well(file.fileno()) and writes_pay(file.fileno())):
            missing(f"{tmp_path} does not lie on ext4")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    fill = ImageFile.fill

    def counted(
        file: ImageFile, carrier: int, places: list[memoryview], *rest: int, end: int
    ) -> bool:
        found.append(len(places))
        return fill(file, carrier, places, *rest, end=end)

    monkeypatch.setattr(ImageFile, "fill", counted)
    return found


class Served:
    """A disk, a client of it whose writes are together from now on, and what it has to hold."""

    def __init__(self, wire: Wire, disk: LateDisk, content: bytes) -> None:
        self.wire = wire
        self.disk = disk
        self.model = bytearray(content)

    def write(self, at: int, length: int = 4 * KIB) -> bytes:
        """A request with random content."""
        content = random.Random(at).randbytes(length)
        self.model[at : at + length] = content
        return self.wire.make(WRITE, at, payload=content)

    def feed(self, *requests: bytes) -> None:
        self.wire.feed(b"".join(requests))
        finish(self.wire, self.disk)

    def check(self) -> None:
        """What a client reads is what it has written."""
        assert not any(self.wire.errors())
        parts = [self.wire.make(READ, at, MIB) for at in range(0, DISK, MIB)]
        first = self.wire._cookies - len(parts) + 1
        self.feed(*parts)
        for number in range(len(parts)):
            answer = self.wire.parser.answers[first + number]
            at = number * MIB
            assert answer.content(at, MIB) == self.model[at : at + MIB]


@pytest.fixture(params=["aio", "qcow2", "vmdk twoGbMaxExtentFlat"])
def served(request: pytest.FixtureRequest, tmp_path: Path, calls: Calls) -> Iterator[Served]:
    handle, _, kind = request.param.partition(" ")
    name, content = f"{handle}:{tmp_path / 'disk'}", random.Random(1).randbytes(DISK)
    tapcore.create_image(name, DISK, options={"subformat": kind} if kind else {})
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, content)
    with opened(name) as state:
        wire = Wire(state)
        here = Served(wire, LateDisk(wire), content)
        for _ in range(20):  # the first change, and memory that is a file as well
            here.feed(here.write(0))
            here.feed(here.write(MIB))
        assert wire.side.parser.received.carried is not None
        calls.clear()
        yield here
        here.check()
        assert wire.side.held == 0
        wire.end()


def test_a_batch_is_one_call(served: Served, calls: Calls) -> None:
    served.feed(*(served.write(at) for at in range(0, 512 * KIB, 16 * KIB)))
    assert calls == [63]  # 32 writes, and the headers between them


def test_reads_between_them_do_not_part_them(served: Served, calls: Calls) -> None:
    wire = served.wire
    served.feed(
        served.write(0), wire.make(READ, MIB, 8 * KIB), wire.make(READ, 0, 512),
        served.write(8 * KIB, 512), served.write(8 * KIB, 1 * KIB), served.write(MIB, 8 * KIB),
    )  # fmt: skip
    assert calls == [7]


def test_what_goes_another_way_finds_them_done(served: Served, calls: Calls) -> None:
    """A longer write, one that has to read first, one that comes in pieces, a flush."""
    served.feed(
        served.write(0), served.write(0, 64 * KIB), served.write(4 * KIB),
        served.write(4 * KIB + 100, 100), served.write(8 * KIB), served.wire.make(FLUSH),
        served.write(12 * KIB), served.write(0, 300 * KIB), served.write(16 * KIB),
    )  # fmt: skip
    assert calls[:2] == [1, 1]  # one that has to read first is not followed by more


def test_a_batch_that_the_kernel_does_not_do_goes_as_usual(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def cut_short(fd: int, places: list[memoryview], at: int, *flags: int) -> int:
        return preadv(fd, places, at, *flags) - (fd == CARRIED._fd)

    monkeypatch.setattr(os, "preadv", cut_short)
    served.feed(*(served.write(at) for at in range(0, 128 * KIB, 4 * KIB)))


def test_no_memory_that_is_a_file_as_well(
    served: Served, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client finds none: its writes are done one by one."""
    monkeypatch.setattr(CARRIED, "take", _none_left)
    wire = Wire(served.wire.export.disk)
    for at in range(0, 64 * KIB, 4 * KIB):
        content = random.Random(at).randbytes(4 * KIB)
        served.model[at : at + 4 * KIB] = content
        assert not wire.call(WRITE, at, payload=content).error
    assert set(calls) == {1}
    assert wire.side.parser.received.carried is None
    wire.end()


def _none_left() -> None:
    raise OSError("none")


def test_a_file_that_became_shorter_is_one_error_for_each(tmp_path: Path, calls: Calls) -> None:
    (path := tmp_path / "disk").write_bytes(bytes(DISK))
    with opened(f"aio:{path}") as state:
        wire = Wire(state)
        places = [0, MIB, 2 * MIB - 4 * KIB, 2 * MIB, 3 * MIB]
        for at in (*places, *places):
            wire.call(WRITE, at, payload=b"1" * 4 * KIB)
        os.truncate(path, 2 * MIB)
        calls.clear()
        wire.feed(b"".join(wire.make(WRITE, at, payload=b"2" * 4 * KIB) for at in places))
        finish(wire, LateDisk(wire))
        assert calls == [9]
        assert wire.errors()[-5:] == [0, 0, 0, EIO, EIO]
        wire.end()
    content = path.read_bytes()
    assert len(content) == 2 * MIB
    assert all(content[at : at + 4 * KIB] == b"2" * 4 * KIB for at in places[:3])


def test_memory_that_nobody_has_is_given_back_beyond_a_limit() -> None:
    pieces = [CARRIED.take() for _ in range(70)]
    for number, piece in enumerate(pieces):
        piece.view[:] = bytes([number]) * SIZE
    assert all(os.pread(p.fd, 4, p.origin) == bytes([n]) * 4 for n, p in enumerate(pieces))
    for piece in pieces:
        CARRIED.give(piece)
    occupied = os.fstat(pieces[0].fd).st_blocks * 512
    assert 0 < occupied <= 65 * SIZE


def test_a_forked_child_has_none_of_it() -> None:
    piece = CARRIED.take()
    CARRIED.give(piece)
    child = os.fork()
    if not child:
        os._exit(int(CARRIED._fd >= 0 or bool(CARRIED._free)))
    assert os.waitpid(child, 0)[1] == 0
    assert CARRIED._fd == piece.fd
