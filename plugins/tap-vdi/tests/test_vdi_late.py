"""Requests that meet while the host is late: none is lost, none damages another, none is early."""

import errno
import random
from pathlib import Path

import attrs
import pytest

import tapcore
from latetrials import AnyMeetings, Trial
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DIFFERENCING, DYNAMIC, STORED_AT
from tap_vdi.parents import new_parent
from tapcore import DiskId, ImageFile
from vditools import KIB, problems

BLOCK = 8 * KIB
SIZE = 8 * BLOCK


@pytest.fixture
def trial(tmp_path: Path, rng: random.Random) -> Trial:
    """Of an empty disk of eight blocks, over a parent with content."""
    parent, image, below = tmp_path / "parent.vdi", tmp_path / "disk.vdi", rng.randbytes(SIZE)
    tapcore.create_image(f"vdi:{parent}", SIZE)
    with tapcore.open(f"vdi:{parent}", readonly=False) as disk:
        disk.pwrite(0, below)
    found = new_parent(str(tmp_path), DiskId("parent.vdi", "vdi"))
    header = new_header(SIZE, BLOCK, DIFFERENCING)
    header = attrs.evolve(header, parent=found.id, parent_modified=found.modified)
    write_image(str(image), header)
    trial = Trial("vdi", image, rng, SIZE, below)
    trial.problems = lambda content: problems(content, closed=False)
    return trial


class TestMeetings(AnyMeetings):
    cluster = BLOCK


def test_a_count_that_is_perhaps_not_safe_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel could not write it has forgotten."""
    image = tmp_path / "disk.vdi"
    write_image(str(image), new_header(SIZE, BLOCK, DYNAMIC))
    written: list[int] = []
    write = ImageFile.write_metadata

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        written.append(offset)
        write(file, offset, data)

    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * BLOCK)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "flush_blocking", lambda _: -errno.EIO)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        monkeypatch.setattr(ImageFile, "write_metadata", noted)
        disk.sync()
    assert STORED_AT in written


def test_a_new_block_shows_nothing_of_what_a_crash_left_in_its_place(tmp_path: Path) -> None:
    """The file is longer than the places that its header counts."""
    image = tmp_path / "disk.vdi"
    write_image(str(image), header := new_header(SIZE, BLOCK, DYNAMIC))
    with image.open("r+b") as file:
        file.seek(header.where(0))
        file.write(b"?" * 2 * BLOCK)
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(BLOCK + 512, b"x" * 512)
        shown = disk.pread(BLOCK, length=BLOCK)
    assert shown == bytes(512) + b"x" * 512 + bytes(BLOCK - 1024)
