"""Blocks for long writes, asked for before: only where it helps, and never seen in a file."""

import errno
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostfs import mounted, small_ext4
from tapcore.files.imagefile import ImageFile
from tapcore.files.reserving import LONG_WRITE, BlockReserver
from tapcore.tools.convert import convert_image

MIB = 1 << 20


@contextmanager
def a_file(where: Path) -> Iterator[int]:
    fd = os.open(where / "file", os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


def taken(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_on_ext4_blocks_are_taken_and_the_file_keeps_its_size(tmp_path: Path) -> None:
    with small_ext4(tmp_path, 64 * MIB) as where, a_file(where) as fd:
        BlockReserver(fd).take(0, 4 * MIB)
        assert taken(fd) >= 4 * MIB
        assert os.fstat(fd).st_size == 0


def test_a_short_write_is_not_worth_asking(tmp_path: Path) -> None:
    with small_ext4(tmp_path, 64 * MIB) as where, a_file(where) as fd:
        BlockReserver(fd).take(0, LONG_WRITE - 1)
        assert taken(fd) == 0


def test_other_file_systems_are_not_asked(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "mnt") as where, a_file(where) as fd:
        BlockReserver(fd).take(0, 4 * MIB)
        assert taken(fd) == 0


def test_ext3_cannot_and_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(fd: int, mode: int, offset: int, length: int) -> None:
        asked.append(offset)
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("tapcore.files.reserving.fallocate", refuse)
    with small_ext4(tmp_path, 64 * MIB) as where, a_file(where) as fd:
        blocks = BlockReserver(fd)
        for at in range(3):
            blocks.take(at * MIB, MIB)
    assert asked == [0]


def test_blocks_are_not_taken_where_few_are_left(tmp_path: Path) -> None:
    with small_ext4(tmp_path, 16 * MIB) as where, a_file(where) as fd:
        assert not BlockReserver(fd).take(0, 8 * MIB)
        assert taken(fd) == 0
        assert BlockReserver(fd).take(0, 2 * MIB)


def test_a_full_file_system_is_left_for_the_write_to_tell(tmp_path: Path) -> None:
    with small_ext4(tmp_path, 8 * MIB) as where, a_file(where) as fd:
        file = ImageFile(os.dup(fd), str(where / "file"), read_only=False)
        try:
            content = memoryview(b"x" * (16 * MIB))
            assert file.write_blocking(0, content) == -errno.ENOSPC
            assert file.write_now(file.size, content) in (-errno.ENOSPC, None)
        finally:
            file.close()


def test_a_long_write_past_the_end_reserves_and_a_rewrite_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        BlockReserver,
        "take",
        lambda self, offset, length: asked.append((offset, length)),
    )
    # else a busy machine's second write could be sent to a thread
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", math.inf)
    with a_file(tmp_path) as fd:
        file = ImageFile(os.dup(fd), str(tmp_path / "file"), read_only=False)
        content = memoryview(b"x" * MIB)
        assert file.write_now(0, content) == 0
        assert file.write_blocking(MIB, content) == 0
        assert file.write_blocking(0, content) == 0
        assert file.write_now(MIB // 2, content) == 0
        file.close()
    assert asked == [(0, MIB), (MIB, MIB)]
    assert (tmp_path / "file").read_bytes() == b"x" * (2 * MIB)


def test_nothing_is_held_past_the_end_of_a_file(tmp_path: Path) -> None:
    """Of an image in many files each would keep some from the others."""
    with small_ext4(tmp_path, 64 * MIB) as where, a_file(where) as fd:
        file = ImageFile(os.dup(fd), str(where / "file"), read_only=False)
        file.durable = False
        for at in range(3):
            assert file.write_blocking(at * MIB, memoryview(b"x" * MIB)) == 0
            assert taken(fd) == (at + 1) * MIB
        file.close()


@pytest.mark.parametrize("how", ["falloc", "full"])
def test_a_preallocated_copy_keeps_all_its_blocks(tmp_path: Path, how: str) -> None:
    with small_ext4(tmp_path, 64 * MIB) as where:
        source = tmp_path / "source.raw"
        source.write_bytes(b"a" * (2 * MIB) + bytes(6 * MIB))
        options = {"preallocation": how}
        convert_image(f"aio:{source}", f"aio:{where / 'copy.raw'}", options=options)
        assert (where / "copy.raw").stat().st_blocks * 512 >= 8 * MIB
        assert (where / "copy.raw").read_bytes() == source.read_bytes()


def test_scattered_zeroes_are_given_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    give_back = BlockReserver.give_back

    def count(self: BlockReserver, offset: int, length: int) -> None:
        given.append((offset, length))
        give_back(self, offset, length)

    monkeypatch.setattr(BlockReserver, "give_back", count)
    with small_ext4(tmp_path, 64 * MIB) as where:
        source = tmp_path / "source.raw"
        source.write_bytes((b"a" * 4096 + bytes(4096)) * (2 * MIB // 8192))
        convert_image(f"aio:{source}", f"aio:{where / 'copy.raw'}")
        assert (where / "copy.raw").read_bytes() == source.read_bytes()
        os.sync()
        blocks = (where / "copy.raw").stat().st_blocks * 512
    assert sorted(given) == [(0, MIB), (MIB, MIB)]
    assert blocks <= MIB + 64 * 1024


def test_a_python_without_ctypes_writes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    with small_ext4(tmp_path, 64 * MIB) as where, a_file(where) as fd:
        file = ImageFile(os.dup(fd), str(where / "file"), read_only=False)
        assert file.write_blocking(0, memoryview(b"x" * MIB)) == 0
        file.close()
        assert not BlockReserver(fd).take(0, MIB)


def test_a_copy_that_just_fits_is_made(tmp_path: Path) -> None:
    """Zeroes that a source holds as data take no blocks from what is left."""
    with mounted("tmpfs", tmp_path / "tmp") as elsewhere, small_ext4(tmp_path, 16 * MIB) as where:
        source = elsewhere / "source.raw"
        with open(source, "wb") as file:
            for _ in range(24):  # 48 MiB, of which 12 are to be stored
                file.write(b"a" * (MIB // 2) + bytes(MIB + MIB // 2))
        convert_image(f"aio:{source}", f"aio:{where / 'copy.raw'}")
        assert (where / "copy.raw").read_bytes() == source.read_bytes()
        assert os.stat(where / "copy.raw").st_blocks * 512 <= 12 * MIB + 64 * 1024


def test_a_raw_copy_lies_in_few_places(tmp_path: Path) -> None:
    with small_ext4(tmp_path, 128 * MIB) as where:
        source = tmp_path / "source.raw"
        source.write_bytes(b"a" * (48 * MIB))
        convert_image(f"aio:{source}", f"aio:{where / 'copy.raw'}")
        os.sync()
        command = ["filefrag", str(where / "copy.raw")]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert int(found.rsplit(":", 1)[1].split()[0]) <= 8, found


def test_zeroes_stay_holes_in_a_converted_file(tmp_path: Path) -> None:
    """What is reserved is what is written, so a sparse copy takes no more than its data."""
    with small_ext4(tmp_path, 64 * MIB) as where:
        source = where / "source.raw"
        with open(source, "wb") as file:
            for piece in (b"a" * MIB, bytes(2 * MIB), b"b" * (MIB // 2), bytes(MIB // 2)):
                file.write(piece)
            file.truncate(32 * MIB)
        convert_image(f"aio:{source}", f"aio:{where / 'copy.raw'}")
        os.sync()
        assert (where / "copy.raw").stat().st_blocks * 512 == MIB + MIB // 2
        assert subprocess.run(["cmp", source, where / "copy.raw"], check=False).returncode == 0
