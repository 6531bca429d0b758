"""A write whose content comes piece by piece, while its client is still sending."""

import errno
import random

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import Bench, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from tapcore.constants import TD_RDONLY
from tapcore.engine import FLUSH, READ, WRITE, Request


class Stream:
    """A client's write on its way."""

    def __init__(self, disk: Bench, offset: int, data: bytes, *, fua: bool = False) -> None:
        self.answers = 0
        self.data = data
        self.sent = 0
        self.disk = disk
        self.req = Request(WRITE, offset, len(data), None, self._done, fua=fua)

    def _done(self, req: Request) -> None:
        self.answers += 1

    def begin(self) -> bool:
        return self.disk.engine.begin_write(self.req)

    def send(self, sectors: int) -> None:
        """The next piece; its buffer is wiped as soon as the segment says that it may be."""
        count = min(sectors * 512, len(self.data) - self.sent)
        buf = bytearray(self.data[self.sent : self.sent + count])
        sector = self.req.sector + self.sent // 512
        segment = self.disk.engine.write_piece(self.req, sector, memoryview(buf))
        self.sent += count
        self.disk.engine.turn()
        self.disk.wait_for(lambda: not segment.pending)
        buf[:] = b"\xbb" * count

    def cut(self) -> None:
        self.disk.engine.cut_short(self.req, (len(self.data) - self.sent) // 512)

    @property
    def complete(self) -> bool:
        return self.sent == len(self.data)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.one_of(st.none(), st.integers(0, 11)),
    st.booleans(),
    st.integers(),
)
def test_a_write_in_pieces_is_one_write(
    pieces: list[int], cut: int | None, late: bool, seed: int
) -> None:
    rng = random.Random(seed)
    image = LateImage(128, cluster=4, now=0.0 if late else 0.5, seed=seed)
    data = rng.randbytes(sum(pieces) * 512)
    model = bytearray(128 * 512)
    with bench([image], rng=rng) as disk:
        stream = Stream(disk, 1024, data)
        assert stream.begin()
        small = [disk.write(1024 + 512 * n + 5, b"x") for n in range(0, sum(pieces), 5)]
        elsewhere = disk.write(126 * 512, b"e" * 512)
        for number, sectors in enumerate(pieces):
            if number == cut:
                stream.cut()
                break
            stream.send(sectors)
        disk.drain()
        assert stream.answers == 1
        assert stream.req.status == (0 if stream.complete else -errno.ESHUTDOWN)
        assert {op.status for op in [*small, elsewhere]} == {0}
        model[1024 : 1024 + stream.sent] = data[: stream.sent]
        model[126 * 512 : 127 * 512] = b"e" * 512
        content = bytearray(disk.content())
        for n in range(0, sum(pieces), 5):  # two writes of one byte: either may be the last
            at = 1024 + 512 * n + 5
            assert content[at] in (ord("x"), model[at])
            content[at] = model[at]
        assert content == model


def test_a_cut_before_the_first_piece_lets_go_of_the_range() -> None:
    image = FaultyImage(64)
    with bench([image], "faulty") as disk:
        stream = Stream(disk, 0, bytes(4096))
        assert stream.begin()
        waiting = disk.write(3, b"x")
        stream.cut()
        disk.drain()
        assert stream.answers == 1
        assert waiting.status == 0


def test_a_failed_piece_fails_the_write_when_all_has_come() -> None:
    image = FaultyImage(64, late=True, bad={9: errno.ENOSPC})
    with bench([image], "faulty") as disk:
        stream = Stream(disk, 0, b"d" * 8192)
        assert stream.begin()
        for _ in range(4):
            assert stream.answers == 0
            stream.send(4)
        disk.drain()
        assert stream.req.status == -errno.ENOSPC
        assert stream.answers == 1
    assert image.data[: 9 * 512] == b"d" * (9 * 512)


def test_fua_is_kept_for_a_write_in_pieces() -> None:
    image = FaultyImage(64, late=True)
    with bench([image], "faulty") as disk:
        stream = Stream(disk, 0, bytes(2048), fua=True)
        assert stream.begin()
        stream.send(4)
        disk.drain()
        assert stream.answers == 1
    assert image.flush_calls == 1


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 512), (0, 511), (0, 1 << 20), (4096, 512), (0, 0), (-512, 512)]
)
def test_what_is_not_whole_units_inside_the_disk_has_to_come_as_a_whole(
    offset: int, length: int
) -> None:
    image = FaultyImage(8)
    with bench([image], "faulty") as disk:
        assert not Stream(disk, offset, bytes(length)).begin()
        assert disk.engine.in_flight == 0


def test_a_read_only_disk_and_a_held_range_take_nothing_in_pieces() -> None:
    with bench([LateImage(8)], flags=TD_RDONLY) as disk:
        assert not Stream(disk, 0, bytes(512)).begin()
    image = FaultyImage(8, late=True)
    with bench([image], "faulty") as disk:
        disk.write(3, b"x")
        assert not Stream(disk, 0, bytes(512)).begin()
        disk.drain()
        stream = Stream(disk, 0, bytes(512))
        assert stream.begin()
        stream.send(1)
        disk.drain()
        assert stream.answers == 1


def test_a_stream_that_stands_still_holds_up_nothing_else() -> None:
    image = FaultyImage(64, late=True)
    with bench([image], "faulty") as disk:
        stream = Stream(disk, 0, bytes(4096))
        assert stream.begin()
        others = [disk.write(8192 + n, b"x") for n in range(5)]
        others += [disk.read(0, 4096), disk.submit(FLUSH)]
        disk.wait_for(lambda: all(op.done for op in others))
        stream.cut()
        disk.drain()


def test_a_writer_that_stops_in_the_middle_keeps_no_unaligned_write_waiting() -> None:
    """What has arrived is ordered piece by piece; the rest of its range is nobody's."""
    image = LateImage(256)
    with bench([image]) as disk:
        stalled = Stream(disk, 0, b"s" * 65536)
        assert stalled.begin()
        stalled.send(8)
        other = disk.write((1 << 15) + 3, b"other")
        for _ in range(1000):
            if other.done:
                break
            disk.step()
        assert other.status == 0
        assert not stalled.answers
        disk.engine.cut_short(stalled.req, 128 - 8)
        disk.drain()
        assert stalled.answers == 1
        assert disk.engine.in_flight == 0


def test_a_piece_waits_for_an_unaligned_write_under_way_in_its_place() -> None:
    image = LateImage(256)
    with bench([image]) as disk:
        stream = Stream(disk, 0, b"s" * 8192)
        assert stream.begin()
        other = disk.write(4096 + 3, b"other")
        stream.send(16)
        disk.drain()
        assert (stream.answers, other.status) == (1, 0)
        content = disk.run(READ, 4096, 512).buf
        assert content is not None
        assert bytes(content[:3]) == b"sss"
        assert bytes(content[8:]) == b"s" * 504
