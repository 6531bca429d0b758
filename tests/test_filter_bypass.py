"""Nothing passes a filter unseen: each way by which content moves without a driver is tried.

What clients ask for is counted in bytes, and so is what a filter sees: the two are the same.
"""

import random
from collections import Counter
from pathlib import Path

import pytest
from nbd_client import CACHE, READ, WRITE, WRITE_ZEROES
from nbdwire import Wire, opened
from servedhere import served_here

import tapcore
from tapcore import Filter, FilterCall
from tapcore.engine import engine_of
from tapcore.interface.access import Access
from tapcore.tools.bench import Workload, bench_disk
from tapcore.tools.openimage import open_image

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
FORMATS: list[tuple[str, dict[str, str]]] = [
    ("aio", {}),
    ("sync", {}),
    ("qcow2", {}),
    ("vmdk", {"subformat": "monolithicFlat"}),
    ("vhd", {"subformat": "fixed"}),
]


class Counts(Filter):
    """Bytes of each operation, called and answered."""

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self.answered_with_success: Counter[str] = Counter()

    def request(self, call: FilterCall) -> None:
        self.called[call.op] += call.length
        call.go_on()

    def answered(self, call: FilterCall, res: int, sector: int, nb_sectors: int) -> None:
        if not res:
            self.answered_with_success[call.op] += nb_sectors * 512
        call.answer(res, sector, nb_sectors)


def made(folder: Path, handle: str, options: dict[str, str]) -> tuple[str, bytes]:
    """An image whose first half holds content."""
    name = f"{handle}:{folder / f'disk.{handle}'}"
    tapcore.create_image(name, SIZE, options=options)
    content = random.Random(5).randbytes(SIZE // 2)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, content)
    return name, content + bytes(SIZE // 2)


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(("handle", "options"), FORMATS, ids=str)
def test_nbd(handle: str, options: dict[str, str], structured: bool, tmp_path: Path) -> None:
    """Small reads and writes (the lane), long ones (files' own pages, holes), streamed writes."""
    name, content = made(tmp_path, handle, options)
    counts = Counts()
    lengths = [512, 4 * KIB, 64 * KIB, 300 * KIB, MIB]
    with served_here(name, filters=(counts,)) as here, here.client(structured=structured) as client:
        assert not here.engines[0].lane.reads
        assert not here.engines[0].lane.writes
        for _ in range(2):  # the second time all is in memory
            for length in lengths:
                for at in (0, SIZE // 2 + MIB // 2, SIZE // 2 - length // 2 // 512 * 512):
                    before = counts.called["read"]
                    assert client.read(at, length) == content[at : at + length]
                    assert counts.called["read"] - before == length
        for length in lengths:
            before = counts.called["write"]
            client.call(WRITE, 0, payload=content[MIB : MIB + length])
            assert counts.called["write"] - before == length
        client.call(WRITE_ZEROES, 0, MIB)
        assert counts.called["zero"] >= MIB
        assert client.read(0, MIB) == bytes(MIB)


def test_no_answer_of_a_server_comes_from_elsewhere(tmp_path: Path) -> None:
    """Neither a part of a file, nor memory that is one, nor what tables tell of a hole."""
    name, _ = made(tmp_path, "aio", {})
    counts = Counts()
    with opened(name, filters=(counts,)) as disk:
        wire = Wire(disk)
        assert not wire.export.file_spans
        for at, length in ((0, MIB), (SIZE - MIB, MIB), (0, 64 * KIB)):
            assert wire.export.extents(at, length) is None
            answer = wire.call(READ, at, length)
            assert answer.content(at, length)
            assert not any(isinstance(piece, int) for _, piece in answer.pieces)  # a hole
        assert counts.answered_with_success["read"] == 2 * MIB + 64 * KIB
        wire.call(CACHE, 0, MIB)
        wire.end()


@pytest.mark.parametrize(("handle", "options"), FORMATS, ids=str)
def test_neither_tables_nor_places_tell_of_a_file(
    handle: str, options: dict[str, str], tmp_path: Path
) -> None:
    name, _ = made(tmp_path, handle, options)
    with tapcore.open(name, filters=(Counts(),), readonly=False) as disk:
        assert {run.fd for run in disk.extents()} == {None}
        leaf = disk.state.disks
        assert leaf.drv.td_places(leaf) is None
    with tapcore.open(name, readonly=False) as disk:
        assert {run.fd for run in disk.extents()} - {None}


@pytest.mark.parametrize("target", ["copy.img", "copy.qcow2"])
@pytest.mark.parametrize(("handle", "options"), FORMATS, ids=str)
def test_convert(handle: str, options: dict[str, str], target: str, tmp_path: Path) -> None:
    """Neither shares blocks nor copies from file to file: all data is read through the filter."""
    name, content = made(tmp_path, handle, options)
    counts = Counts()
    tapcore.convert_image(name, tmp_path / target, filters=(counts,))
    assert counts.answered_with_success["read"] >= SIZE // 2
    with tapcore.open(tmp_path / target, readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == content


def test_a_copy_of_what_two_disks_share_is_compared_through_the_filter(tmp_path: Path) -> None:
    """A common parent lies in the same place of the same file: nobody would read it."""
    base, _ = made(tmp_path, "aio", {})
    child = f"qcow2:{tmp_path / 'child.qcow2'}"
    tapcore.create_image(child, None, parent=base)
    counts = Counts()
    new = tmp_path / "new.qcow2"
    tapcore.convert_image(child, new, parent=base, filters=(counts,))
    assert counts.answered_with_success["read"] >= SIZE // 2


def test_python_and_bench(tmp_path: Path) -> None:
    name, content = made(tmp_path, "qcow2", {})
    counts = Counts()
    with tapcore.open(name, filters=(counts,), readonly=False) as disk:
        assert disk.pread(0, length=SIZE) == content
        assert counts.called["read"] == SIZE
        disk.pwrite(0, content[:MIB])
        assert counts.called["write"] == MIB
        disk.sync()
        assert "flush" in counts.called
    counts = Counts()
    access = Access(filters=(counts,))
    with open_image(name, access=access) as disk:
        result = bench_disk(disk, Workload(seconds=0.05, depth=4))
    assert counts.called["read"] == result.requests * 4096


def test_a_disk_without_filters_has_the_drivers_own_functions(tmp_path: Path) -> None:
    name, _ = made(tmp_path, "aio", {})
    with tapcore.open(name, readonly=False) as disk:
        own = tapcore.Registry().operations("aio")
        layer = engine_of(disk.state).layers[0]
        assert layer.read == own.td_queue_read
        assert layer.submit == own.td_submit
        assert disk.state.disks.io_fd == disk.state.disks.io_fd[: tapcore.MAX_IOFD]
