"""A raw disk that was found by probing stays one, whatever a guest writes to it, in what steps."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from foreignfiles import (
    DISKS,
    FOREIGN,
    WITH_DRIVERS,
    dmg_trailer,
    iso,
    mbr,
    padded,
    vhd_footer,
)

import tapcore
from tapcore.engine import engine_of
from tapcore.formats.foreign import HEAD_BYTES, TAIL_BYTES
from tapcore.interface.registry import default_registry
from tapcore.opening.guard import ContentGuard
from tapcore.opening.probe import probe
from tapcore.tools.openimage import open_image

SIZE = 1 << 20
END = SIZE - 512


def write_all(disk: tapcore.Disk, content: bytes) -> None:
    disk.pwrite(0, content)


def in_sectors(disk: tapcore.Disk, content: bytes) -> None:
    for at in reversed(range(0, len(content), 512)):
        disk.pwrite(at, content[at : at + 512])


def in_odd_pieces(disk: tapcore.Disk, content: bytes) -> None:
    pieces = [(at, content[at : at + 301]) for at in range(0, len(content), 301)]
    random.Random(7).shuffle(pieces)
    for at, piece in pieces:
        disk.pwrite(at, piece)


@pytest.fixture(params=["writeback", "none"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tapcore.Disk]:
    """A raw disk, opened without its handle."""
    path = tmp_path / "disk"
    path.write_bytes(mbr().ljust(SIZE, b"x"))
    with open_image(str(path), writing=True, cache=request.param) as opened:
        assert opened.handle == "aio"
        yield opened
    assert probe(str(path), default_registry()) == "aio"


def refused(write: Callable[[], object]) -> None:
    with pytest.raises(tapcore.TapError) as caught:
        write()
    assert caught.value.errno == errno.EPERM


HEADS = {
    name: content
    for name, (_, content) in (FOREIGN | WITH_DRIVERS).items()
    if not name.startswith(("vhd-fixed", "vhd-of", "vhd-with", "vhd-dynamic-w", "dmg-of"))
    and not name.startswith("zip-behind")
    and name not in ("dmg", "dmg-encrypted-of-old")
}
"""What is told by its head alone."""


@pytest.mark.parametrize("how", [write_all, in_sectors, in_odd_pieces])
@pytest.mark.parametrize("name", HEADS)
def test_a_guest_cannot_turn_it_into_another_format(
    name: str, how: Callable[[tapcore.Disk, bytes], None], tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(mbr().ljust(SIZE, b"x"))
    with open_image(str(path), writing=True) as disk:
        refused(lambda: how(disk, HEADS[name].ljust(HEAD_BYTES, b"\0")))
    assert probe(str(path), default_registry()) == "aio"


@pytest.mark.parametrize("footer", [vhd_footer(END), dmg_trailer(END)])
def test_nor_at_its_end(disk: tapcore.Disk, footer: bytes) -> None:
    refused(lambda: disk.pwrite(END, footer))
    refused(lambda: disk.pwrite(END - 700, bytes(700) + footer))
    disk.pwrite(END, footer[:60])
    refused(lambda: disk.pwrite(END + 60, footer[60:]))
    disk.pwrite(END - 4096, footer)
    disk.pwrite(0, b"no partitions".ljust(512))


def test_nor_at_the_end_of_what_shows_nothing_else(disk: tapcore.Disk) -> None:
    disk.pwrite(END, vhd_footer(1 << 30, 3))  # the file system may keep one in a file
    refused(lambda: disk.pwrite(0, b"no partitions".ljust(512)))
    disk.pwrite(END, bytes(512))
    disk.pwrite(0, b"no partitions".ljust(512))
    refused(lambda: disk.pwrite(END, vhd_footer(1 << 30, 3)))


def test_nor_by_taking_away_what_makes_it_a_disk(disk: tapcore.Disk) -> None:
    disk.pwrite(32768, iso(more=b"\xffCD001\1")[32768:36864])  # left on a partitioned stick
    refused(lambda: disk.pwrite(0, bytes(512)))
    refused(lambda: disk.zero(0, length=512))
    refused(lambda: disk.zero(500, length=20))
    refused(lambda: disk.discard(0, length=4096))
    refused(lambda: disk.pwrite(0, mbr(64)))
    disk.zero(32768, length=4096)
    disk.pwrite(0, bytes(512))


def test_nor_by_shrinking(disk: tapcore.Disk) -> None:
    disk.pwrite(SIZE // 2, vhd_footer(SIZE // 2))
    with pytest.raises(tapcore.UsageError, match="look like a VHD image"):
        disk.resize(SIZE // 2 + 512)
    assert disk.size == SIZE
    disk.resize(SIZE // 2)
    assert disk.size == SIZE // 2


@pytest.mark.parametrize("short", [0, 1, 100, 511])
def test_nor_where_the_file_ends_inside_a_sector(short: int, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    end = SIZE - short
    path.write_bytes(mbr().ljust(end, b"x"))
    with open_image(str(path), writing=True) as disk:
        refused(lambda: disk.pwrite(end - 512, vhd_footer(end - 512)))
    assert probe(str(path), default_registry()) == "aio"


def test_what_is_a_disk_may_be_written(disk: tapcore.Disk) -> None:
    for content in (each for each in DISKS.values() if len(each) <= SIZE):
        disk.pwrite(0, content)
        assert disk.pread(0, length=len(content)) == content
    disk.pwrite(0, padded(b"LUKS\xba\xbe\0\2"))
    disk.zero(0, length=SIZE)
    assert disk.pread(0, length=SIZE) == bytes(SIZE)


def test_who_names_the_handle_may_write_anything(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    with open_image(f"raw:{path}", writing=True) as disk:
        disk.pwrite(0, FOREIGN["qed"][1])
        disk.pwrite(END, vhd_footer(END))


def test_only_what_touches_an_end_is_looked_at(
    disk: tapcore.Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies between costs nothing: no read, no question."""
    asked: list[int] = []
    real = ContentGuard.reason

    def reason(self: ContentGuard, head: bytes, tail: bytes, size: int) -> str:
        asked.append(size)
        assert len(head) == HEAD_BYTES
        assert len(tail) == TAIL_BYTES
        return real(self, head, tail, size)

    monkeypatch.setattr(ContentGuard, "reason", reason)
    engine = engine_of(disk.state)
    before = engine._dispatcher.serial
    for at in range(HEAD_BYTES, SIZE - TAIL_BYTES, 4096):
        disk.pwrite(at, bytes(4096))
    assert not asked
    assert engine._dispatcher.serial - before == (SIZE - TAIL_BYTES - HEAD_BYTES) // 4096
    disk.pwrite(HEAD_BYTES - 512, bytes(1024))
    disk.pwrite(SIZE - TAIL_BYTES - 1, bytes(2))
    disk.pwrite(0, bytes(SIZE))
    assert asked == [SIZE] * 3


@pytest.mark.parametrize("seed", range(4))
def test_it_stays_raw_and_right_under_many_writes_at_once(seed: int, tmp_path: Path) -> None:
    """Against a model: what is not refused is there, what is refused is not, at any moment."""
    from tapcore.engine import WRITE, Request

    rng = random.Random(seed)
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    parts = [b"KDMV", b"QFI\xfb", b"\0\0\0\2", b"\1CD001\1", mbr(), bytes(512), b"conectix", b"x"]
    with open_image(str(path), writing=True) as disk:
        engine = engine_of(disk.state)
        for _ in range(12):
            done: list[Request] = []
            for _ in range(8):
                data = bytearray(rng.choice(parts).ljust(rng.choice((8, 512, 1024, 4096)), b"\0"))
                at = rng.choice((0, 0, 4, 512, 32768, 32768, END, HEAD_BYTES - 512))
                data = data[: SIZE - at]
                engine.submit(Request(WRITE, at, len(data), memoryview(data), done.append))
            disk._calls.finish()
            assert len(done) == 8
            assert all(req.status in (0, -errno.EPERM) for req in done)
            assert probe(str(path), default_registry()) == "aio", f"seed {seed}"
    assert os.path.getsize(path) == SIZE
