"""Runs of data and holes of a host file: joined, never empty, never a hole where data is."""

import errno
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapcore.files.holes import HoleMap
from tapcore.files.hostfile import punch_hole
from tapcore.files.imagefile import ImageFile

PAGE = 4096


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def test_runs_are_exact_joined_and_cut_to_the_range(fd: int, rng: random.Random) -> None:
    pages = [rng.random() < 0.5 for _ in range(64)]
    os.ftruncate(fd, 64 * PAGE)
    for n, data in enumerate(pages):
        if data:
            os.pwrite(fd, b"x" * PAGE, n * PAGE)
    os.fsync(fd)
    holes = HoleMap(fd)
    for _ in range(200):
        start, end = sorted(rng.randrange(64 * PAGE + 1) for _ in range(2))
        runs = list(holes.runs(start, end))
        at = start
        for index, (lo, hi, data) in enumerate(runs):
            assert lo == at < hi
            assert index == 0 or runs[index - 1][2] != data
            assert all(pages[n] == data for n in range(lo // PAGE, -(-hi // PAGE)))
            at = hi
        assert at == end


def test_past_the_end_of_the_file_is_a_hole(fd: int) -> None:
    os.pwrite(fd, b"x" * 1000, 0)
    holes = HoleMap(fd)
    assert list(holes.runs(0, 5000)) == [(0, 1000, True), (1000, 5000, False)]
    assert list(holes.runs(3000, 5000)) == [(3000, 5000, False)]
    assert list(holes.runs(7, 7)) == []


def test_a_hole_that_is_punched_between_two_questions_makes_no_empty_run(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A discard in a thread, between SEEK_DATA and SEEK_HOLE."""
    os.pwrite(fd, b"x" * 16 * PAGE, 0)
    os.fsync(fd)
    real = os.lseek

    def lseek(number: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_HOLE and offset == 4 * PAGE:
            punch_hole(fd, 4 * PAGE, 4 * PAGE)
        return real(number, offset, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    runs = list(HoleMap(fd).runs(4 * PAGE, 16 * PAGE))
    assert all(lo < hi for lo, hi, _ in runs)
    assert runs[0][0] == 4 * PAGE
    assert (runs[-1][1], runs[-1][2]) == (16 * PAGE, True)
    assert all(b[0] == a[1] and a[2] != b[2] for a, b in itertools.pairwise(runs))


def test_what_is_remembered_is_never_a_hole(fd: int) -> None:
    """Data written into a hole after it was asked about is seen at once."""
    os.ftruncate(fd, 16 * PAGE)
    holes = HoleMap(fd)
    assert holes.run(0, 16 * PAGE) == (16 * PAGE, False)
    os.pwrite(fd, b"x" * PAGE, 8 * PAGE)
    assert holes.run(0, 16 * PAGE) == (8 * PAGE, False)
    assert holes.run(8 * PAGE, 16 * PAGE) == (9 * PAGE, True)
    os.pwrite(fd, b"x" * PAGE, 9 * PAGE)
    assert holes.run(9 * PAGE, 16 * PAGE) == (10 * PAGE, True)


def test_finding_the_end_of_a_long_run_is_asked_only_once(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.pwrite(fd, b"x" * 64 * PAGE, 0)
    asked: list[tuple[object, ...]] = []
    real = os.lseek

    def noting(*args: Any) -> int:
        asked.append(args)
        return real(*args)

    monkeypatch.setattr(os, "lseek", noting)
    holes = HoleMap(fd)
    for n in range(64):
        assert holes.run(n * PAGE, (n + 1) * PAGE) == ((n + 1) * PAGE, True)
    assert len(asked) == 2


def test_where_holes_cannot_be_asked_for_everything_is_data(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.ftruncate(fd, 4 * PAGE)

    def no_lseek(*_: int) -> int:
        raise OSError(errno.EINVAL, "no SEEK_DATA here")

    monkeypatch.setattr(os, "lseek", no_lseek)
    assert list(HoleMap(fd).runs(0, 4 * PAGE)) == [(0, 4 * PAGE, True)]


@pytest.mark.parametrize("size", [1, 700, 1300, 5000])
def test_a_sector_that_is_data_in_part_is_data(size: int, tmp_path: Path) -> None:
    path = tmp_path / "tail.img"
    path.write_bytes(b"x" * size)
    file = ImageFile(os.open(path, os.O_RDWR), str(path), read_only=False)
    sectors = file.sectors
    for first in range(sectors):
        found = list(file.extents(first, sectors - first))
        assert [(e.sector, e.nb_sectors, e.kind) for e in found] == [
            (first, sectors - first, "data")
        ]
        assert (found[0].offset, found[0].fd) == (first * 512, file.fd)
    file.close()
