"""The crash recorder itself: what it says can be lost, and whether it finds mistakes."""

import importlib.util
import itertools
import os
import random
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from docpages import DOCS
from tapcore.interface.options import CacheMode
from tapcore.testkit import NEVER, Recording, UnrecordedError, Workload

SIZE = 1 << 20
MODES = pytest.mark.parametrize("cache", ["writeback", "none"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"-" * SIZE)
    return path


@MODES
def test_what_was_flushed_is_in_every_state_and_nothing_else_is(
    image: Path, rng: random.Random, cache: CacheMode
) -> None:
    with (
        Recording(image) as recording,
        tapcore.open(f"aio:{image}", cache=cache, readonly=False) as disk,
    ):
        disk.pwrite(0, b"a" * 8192)
        disk.sync()
        flushed = recording.now()
        disk.pwrite(16384, b"b" * 4096)
        disk.pwrite(65536, b"c" * 4096)
        written = recording.now()
    seen = set()
    states = [recording.state(rng, written) for _ in range(200)]
    for state in states:
        content = state.contents[str(image)]
        assert content[:8192] == b"a" * 8192
        assert {*content[16384 : 16384 + 4096]} <= {*b"-b"}
        b, c = content[16384 : 16384 + 4096], content[65536 : 65536 + 4096]
        seen.add((len({*b}) > 1, *({*b} == {*b"b"}, {*c} == {*b"c"})))
    # each alone, both, none, and one torn
    assert {(False, True, False), (False, False, True), (False, True, True)} <= seen
    assert (False, False, False) in seen
    assert (True, False, False) in seen
    before = recording.state(rng, flushed).contents[str(image)]
    assert before == b"a" * 8192 + b"-" * (SIZE - 8192)


def test_the_last_prefix_is_what_the_file_holds(image: Path, rng: random.Random) -> None:
    with Recording(image) as recording, tapcore.open(f"aio:{image}", readonly=False) as disk:
        work = Workload(disk, recording, rng, [(0, SIZE)])
        work.run(30)
    *_, last = recording.prefixes()
    assert last.contents[str(image)] == image.read_bytes()
    assert not work.wrong(last.moment, 0, image.read_bytes())


def test_a_part_of_a_sector_is_never_there_without_the_parts_written_before(
    image: Path, rng: random.Random
) -> None:
    """The page cache holds whole sectors, and so does the disk."""
    with Recording(image) as recording:
        file = tapcore.open_image_file(str(image), 0, tapcore.OpenOptions())
        file.write_metadata(0, b"first")
        file.write_metadata(100, b"second")
        written = recording.now()
        file.close()
    for _ in range(50):
        content = recording.state(rng, written).contents[str(image)]
        if content[100:106] == b"second":
            assert content[:5] == b"first"


def test_a_flush_does_not_cover_what_was_under_way_when_it_began(
    image: Path, rng: random.Random
) -> None:
    with Recording(image) as recording:
        file = tapcore.open_image_file(str(image), 0, tapcore.OpenOptions())
        change = recording.begin(file, "write", 0, 512, b"w" * 512)
        assert file.flush_blocking() == 0
        assert os.pwrite(file.fd, b"w" * 512, 0) == 512
        recording.finish(change, True)
        written = recording.now()
        file.close()
    found = {bytes(recording.state(rng, written).contents[str(image)][:1]) for _ in range(50)}
    assert found == {b"-", b"w"}
    assert recording.state(rng, recording.now()).contents[str(image)][:1] == b"w"


def test_a_way_around_the_recorder_is_noticed(image: Path) -> None:
    def work() -> None:
        with (
            Recording(image),
            tapcore.open(f"aio:{image}", readonly=False),
            open(image, "r+b") as file,
        ):
            file.write(b"x")

    with pytest.raises(UnrecordedError, match="other ways"):
        work()


def test_what_a_driver_writes_by_its_descriptor_is_recorded_too(
    image: Path, rng: random.Random
) -> None:
    with Recording(image) as recording:
        fd = os.open(image, os.O_RDWR)
        os.pwrite(fd, b"x" * 512, 0)
        os.fsync(fd)
        safe = recording.now()
        os.pwritev(fd, [b"y" * 256, b"z" * 256], 512)
        os.write(fd, b"w" * 512)
        os.ftruncate(fd, 4096)
        written = recording.now()
        os.close(fd)
    kinds = [(change.kind, change.offset) for change in recording.changes]
    assert kinds == [("write", 0), ("write", 512), ("write", 0), ("size", 4096)]
    assert recording.state(rng, safe).contents[str(image)][:512] == b"x" * 512
    found = {recording.state(rng, written).contents[str(image)][:1024] for _ in range(50)}
    assert len(found) > 3
    assert image.read_bytes()[:1024] == b"w" * 512 + b"y" * 256 + b"z" * 256


def test_what_nobody_flushed_is_waited_for_by_nobody(image: Path) -> None:
    with Recording(image) as recording:
        fd = os.open(image, os.O_RDWR)
        os.pwrite(fd, b"x", 0)
        os.close(fd)
    assert [change.safe for change in recording.changes] == [NEVER]


# ---- with a driver that has metadata -----------------------------------------------------------


def _example() -> Any:
    """docs/examples/tap-chunkio, loaded anew."""
    path = DOCS / "examples/tap-chunkio/tap_chunkio/driver.py"
    spec = importlib.util.spec_from_file_location("tap_chunkio_recorded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _crashes(driver: Any, folder: Path, rng: random.Random) -> list[str]:
    """What is wrong after crashes during random work."""
    registry = tapcore.Registry()
    registry.register(driver, handle="chunkio")
    image, copy = folder / "disk", folder / "copy"
    driver.td_create(str(image), SIZE, None, {})
    with (
        Recording(image) as rec,
        tapcore.open(f"chunkio:{image}", registry=registry, readonly=False) as disk,
    ):
        work = Workload(disk, rec, rng, [(0, SIZE)])
        work.run(40)
    found = []
    for state in itertools.chain(rec.prefixes(3), rec.states(rng, 150)):
        state.write({image: copy})
        try:
            with tapcore.open(f"chunkio:{copy}", readonly=True, registry=registry) as disk:
                wrong = work.wrong(state.moment, 0, disk.pread(0, length=SIZE))
        except tapcore.TapError as exc:
            wrong = str(exc)
        if wrong:
            found.append(f"{state}: {wrong}")
    return found


def test_an_example_survives_crashes(tmp_path: Path, rng: random.Random) -> None:
    assert not _crashes(_example(), tmp_path, rng)


def test_a_driver_that_writes_its_table_before_its_data_is_found_out(
    tmp_path: Path, rng: random.Random
) -> None:
    hasty = _example()
    picture = hasty.Image.picture

    def with_the_data(image: Any) -> Any:
        data, table = (found := picture(image)).stages
        return attrs.evolve(found, stages=[data + table])

    hasty.Image.picture = with_the_data
    assert any("cannot be true" in wrong for wrong in _crashes(hasty, tmp_path, rng))
