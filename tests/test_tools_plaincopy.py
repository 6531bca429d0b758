"""Plain data into a plain file: short runs go together, and each byte to its place."""

import os
import random
from pathlib import Path
from unittest.mock import patch

import tapcore
from tapcore.engine import MappedExtent
from tapcore.files.reserving import NEW_WRITE
from tapcore.process.workers import Lane
from tapcore.tools.plaincopy import PlainCopier
from tapcore.tools.plan import Job

RUN = 8 << 10
put = Lane.put


def test_short_runs_that_lie_apart_are_copied_together(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(96 * RUN)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    target.touch()
    os.truncate(target, len(content))
    places = list(range(96))
    rng.shuffle(places)
    fd = os.open(source, os.O_RDONLY)
    jobs = [
        Job(at, at + RUN, "copy", MappedExtent(at, RUN, 0, "data", True, fd=fd, offset=place * RUN))
        for at, place in zip(range(0, len(content), RUN), places, strict=True)
    ]
    copier = PlainCopier("source", str(target), None, len(content))
    with patch.object(Lane, "put", autospec=True, side_effect=put) as puts:
        assert list(copier.filter(jobs)) == []
    copier.close()
    os.close(fd)
    assert target.read_bytes() == b"".join(content[p * RUN : (p + 1) * RUN] for p in places)
    assert copier.written == len(content)
    assert len({id(call.args[2][0]) for call in puts.call_args_list if call.args[2]}) == 2


def test_what_lies_close_behind_compressed_content_goes_its_way(tmp_path: Path) -> None:
    """And what lies far behind, or is long, does not."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * (64 << 20))
    target.touch()
    os.truncate(target, 64 << 20)
    fd = os.open(source, os.O_RDONLY)

    def plain(start: int, end: int) -> Job:
        extent = MappedExtent(start, end - start, 0, "data", True, fd=fd, offset=start)
        return Job(start, end, "copy", extent)

    near, far, long = plain(1 << 20, 2 << 20), plain(8 << 20, 9 << 20), plain(33 << 20, 50 << 20)
    packed = Job(0, 1 << 20, "copy"), Job(32 << 20, 33 << 20, "copy")
    copier = PlainCopier("source", str(target), None, 64 << 20)
    left = list(copier.filter([packed[0], near, far, packed[1], long]))
    copier.close()
    os.close(fd)
    assert [(job.start, job.end) for job in left] == [
        (job.start, job.end) for job in (packed[0], near, packed[1])
    ]
    assert copier.written == (1 << 20) + (17 << 20)


def test_new_ground_is_written_by_calls_that_are_not_too_long(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "disk.raw").write_bytes(content)
    lengths = []
    pwritev = os.pwritev

    def noted(fd: int, views: list[memoryview], offset: int) -> int:
        lengths.append(sum(map(len, views)))
        return pwritev(fd, views, offset)

    with patch("os.pwritev", noted):
        for target in ("copy.raw", "copy.qcow2"):
            tapcore.convert_image(tmp_path / "disk.raw", tmp_path / target)
    assert max(lengths) == NEW_WRITE
    assert (tmp_path / "copy.raw").read_bytes() == content
    with tapcore.open(tmp_path / "copy.qcow2") as disk:
        assert disk.pread(0, length=disk.size) == content
