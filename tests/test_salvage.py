"""Reading what is left of a damaged disk."""

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore import UsageError
from tapcore.engine.salvage import MOST_RANGES, Salvage

MIB = 1 << 20
PAGE = 4096


# ---- the list of what is lost ------------------------------------------------------------------


def test_ranges_are_joined_and_counted_once() -> None:
    """Whatever the order in which they are found; compared with a set of blocks."""
    rng = random.Random(5)
    for _ in range(200):
        salvage = Salvage()
        lost: set[int] = set()
        for _ in range(rng.randint(1, 30)):
            start = rng.randrange(60)
            end = start + rng.randint(1, 9)
            salvage.note(start * 512, end * 512, "a.img", f"its cluster, at 0x{start:x}, is lost")
            lost.update(range(start, end))
        assert salvage.lost == 512 * len(lost)
        listed = [block for r in salvage.ranges for block in range(r.start // 512, r.end // 512)]
        assert listed == sorted(lost)
        assert all(
            a.end < b.start for a, b in zip(salvage.ranges, salvage.ranges[1:], strict=False)
        )
        assert salvage.count == len(salvage.ranges)


def test_reasons_and_images_are_kept_apart() -> None:
    salvage = Salvage()
    salvage.note(0, 512, "a.img", "Input/output error")
    salvage.note(512, 1024, "a.img", "compressed data is damaged")
    salvage.note(1024, 1536, "b.img", "compressed data is damaged")
    assert [(r.start, r.image) for r in salvage.ranges] == [
        (0, "a.img"),
        (512, "a.img"),
        (1024, "b.img"),
    ]


def test_the_list_is_bounded_and_the_sums_are_not() -> None:
    salvage = Salvage()
    for number in range(MOST_RANGES + 500):
        salvage.note(number * 1024, number * 1024 + 512, "a.img", "Input/output error")
    assert len(salvage.ranges) == MOST_RANGES
    assert salvage.count == MOST_RANGES + 500
    assert salvage.lost == (MOST_RANGES + 500) * 512


# ---- a disk of which parts fail -----------------------------------------------------------------


class BadPages:
    """Reads of some pages of a file fail, as those of a worn-out disk."""

    def __init__(self, path: Path, pages: set[int]) -> None:
        self.inode = path.stat().st_ino
        self.pages = pages
        self._preadv = os.preadv

    def preadv(self, fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        length = sum(len(buffer) for buffer in buffers)
        pages = range(offset // PAGE, -(-(offset + length) // PAGE))
        if os.fstat(fd).st_ino == self.inode and any(page in self.pages for page in pages):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._preadv(fd, buffers, offset, flags)


@pytest.fixture
def worn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes, set[int]]:
    content = random.Random(3).randbytes(2 * MIB)
    image = tmp_path / "a.img"
    image.write_bytes(content)
    pages = {1, 17, 18, 19, 255, 256, 300}
    monkeypatch.setattr(os, "preadv", BadPages(image, pages).preadv)
    return image, content, pages


def without(content: bytes, pages: set[int]) -> bytes:
    left = bytearray(content)
    for page in pages:
        left[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    return bytes(left)


def test_all_but_the_bad_pages_is_read(worn: tuple[Path, bytes, set[int]]) -> None:
    path, content, pages = worn
    with tapcore.open(f"aio:{path}", readonly=True) as disk, pytest.raises(OSError, match="error"):
        disk.pread(0, length=MIB)
    with tapcore.open(f"aio:{path}", readonly=True, salvage=True) as disk:
        assert disk.pread(0, length=2 * MIB) == without(content, pages)
        assert disk.salvage is not None
        assert [(r.start // PAGE, r.length // PAGE) for r in disk.salvage.ranges] == [
            (1, 1),
            (17, 3),
            (255, 2),
            (300, 1),
        ]
        before = disk.salvage.lost
        assert disk.pread(17 * PAGE + 100, length=50) == bytes(50)  # known already
        assert disk.salvage.lost == before


@pytest.mark.parametrize("target", ["b.img", "b.qcow2", "b.vmdk"])
def test_a_convert_salvages(
    worn: tuple[Path, bytes, set[int]],
    tmp_path: Path,
    target: str,
) -> None:
    path, content, pages = worn
    with pytest.raises(tapcore.IOFailedError, match="read failed between"):
        tapcore.convert_image(f"aio:{path}", str(tmp_path / target))
    assert not (tmp_path / target).exists()
    lost = Salvage()
    tapcore.convert_image(f"aio:{path}", str(tmp_path / target), salvage=lost)
    assert lost.lost == len(pages) * PAGE
    with tapcore.open(str(tmp_path / target), readonly=True) as disk:
        assert disk.pread(0, length=2 * MIB) == without(content, pages)


@pytest.mark.parametrize("salvage", [True, False, 1, "all"])
def test_what_is_no_salvage_is_refused(
    worn: tuple[Path, bytes, set[int]], tmp_path: Path, salvage: Any
) -> None:
    """`True`, as `tapcore.open` takes it, would fail at the first lost page."""
    with pytest.raises(UsageError, match=r"must be a tapcore\.Salvage"):
        tapcore.convert_image(f"aio:{worn[0]}", str(tmp_path / "copy.img"), salvage=salvage)
    assert not (tmp_path / "copy.img").exists()


def test_salvage_is_for_reading(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(512))
    with pytest.raises(tapcore.UsageError, match="only by reading"):
        tapcore.open(f"aio:{tmp_path}/a.img", salvage=True, readonly=False)
