"""Pages: what a writer shows is what readers see, whatever happens to the file."""

import itertools
import os
import struct
import threading
from pathlib import Path

import pytest
from commandline import tapdisk

from tapcore.cli.statstable import of_disks, of_operations
from tapcore.metrics import layout
from tapcore.metrics.buckets import BUCKETS, STARTS, bucket_of, percentile
from tapcore.metrics.meter import Batch, Meter
from tapcore.metrics.operations import SIZE_BOUNDS, SIZES, size_class
from tapcore.metrics.page import Page
from tapcore.metrics.pages import PageSet
from tapcore.metrics.publishing import Metrics, page_name
from tapcore.metrics.reading import NotAPageError, Snapshot, read_fd, read_page


def meter(name: str = "vm1") -> Meter:
    return Meter(Batch(), name, image="/d.qcow2", driver="qcow2", size=1 << 30)


def count(found: Meter, *, reads: int = 0, length: int = 4096, seconds: float = 10e-6) -> None:
    found.reads += [length] * reads
    found.count_moved(seconds)


def test_every_duration_lies_in_its_bucket() -> None:
    for duration in [
        *range(5000),
        *(1 << n for n in range(40)),
        *((1 << n) - 1 for n in range(40)),
    ]:
        bucket = bucket_of(duration)
        assert STARTS[bucket] <= duration
        assert duration < STARTS[bucket + 1] or bucket == BUCKETS - 1
    assert all(a < b for a, b in itertools.pairwise(STARTS))
    assert all(b - a <= max(a // 8, 1) for a, b in itertools.pairwise(STARTS))


def test_size_classes() -> None:
    assert size_class(0) == 0
    for number, bound in enumerate(SIZE_BOUNDS):
        assert (size_class(bound), size_class(bound + 1)) == (number, number + 1)
    assert len(SIZES) == len(SIZE_BOUNDS) + 1
    assert size_class(1 << 62) == len(SIZES) - 1


def test_percentiles_are_the_ends_of_buckets() -> None:
    counts = [0] * BUCKETS
    counts[10], counts[bucket_of(1000)] = 99, 1
    assert percentile(counts, 50) == percentile(counts, 99) == 11
    assert 1000 < percentile(counts, 99.9) <= 1125
    assert percentile([0] * BUCKETS, 50) == 0


def test_a_page_has_what_was_counted(tmp_path: Path) -> None:
    found = meter()
    page = Page.in_file(found, str(tmp_path / "p"))
    count(found, reads=3, length=65536, seconds=1e-3)
    found.count_told(6, 0, 2e-6, failed=True)
    page.publish()
    seen = read_page(str(tmp_path / "p"))
    page.close()
    assert (seen.name, seen.image, seen.driver, seen.size) == ("vm1", "/d.qcow2", "qcow2", 1 << 30)
    assert (seen.process, seen.torn) == (os.getpid(), False)
    assert seen.operations() == ["read", "status"]
    reads = seen.cells["read", "64k"]
    assert (reads.answered, reads.moved, reads.bytes, reads.total.sum) == (3, 3, 3 << 16, 3000)
    assert seen.of("status").errors == 1
    assert os.stat(tmp_path / "p").st_size == layout.PAGE_SIZE
    assert os.stat(tmp_path / "p").st_blocks * 512 < layout.PAGE_SIZE // 4
    assert os.listdir(tmp_path) == ["p"]


def test_the_layout_is_what_the_page_of_the_manual_says(tmp_path: Path) -> None:
    """By hand, as somebody without Python would."""
    found = meter()
    page = Page.in_file(found, str(tmp_path / "p"))
    count(found, reads=5, seconds=20e-6)
    page.publish()
    page.close()
    data = (tmp_path / "p").read_bytes()
    magic, version, head, cell, operations, sizes, buckets, pid, _ = struct.unpack_from(
        "<8s6I2Q", data
    )
    assert (magic, version, head, operations, sizes, buckets) == (b"TAPMETER", 1, 4096, 8, 6, 200)
    assert pid == os.getpid()
    assert data[256:320].rstrip(b"\0") == b"qcow2"
    answered, errors, size, past = struct.unpack_from("<4Q", data, head)  # the first: read, 4k
    assert (answered, errors, size, past) == (5, 0, 20480, 5)
    total, *counts = struct.unpack_from("<201Q", data, head + 32)
    assert (total, counts.index(5), sum(counts)) == (100, 18, 5)  # 20 to 21 µs
    assert cell == 32 + 4 * 201 * 8
    assert len(data) == 4096 + 48 * cell


def test_a_reader_never_sees_two_states_at_once(tmp_path: Path) -> None:
    """Each publishing adds the same to two cells, and to all of their parts."""
    found = meter()
    page = Page.in_file(found, str(tmp_path / "p"))
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            found.reads += [4096, 65536]
            found.count_moved(50e-6)
            page.publish()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        looks = {_equal_cells(read_page(str(tmp_path / "p"))) for _ in range(300)}
    finally:
        ended.set()
        thread.join()
        page.close()
    assert len(looks) > 1


def _equal_cells(seen: Snapshot) -> int:
    if seen.torn:  # the writer had its turn at every look
        return -1
    small, large = seen.of("read").answered, seen.of("read").total.count
    assert small == large
    found = {counts.answered for counts in seen.cells.values()}
    assert len(found) <= 1
    return found.pop() if found else 0


@pytest.mark.parametrize("damage", ["empty", "short", "other", "version"])
def test_what_is_no_page_is_said_so(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "p"
    page = Page.in_file(meter(), str(path))
    page.close()
    data = path.read_bytes()
    broken = {
        "empty": b"",
        "short": data[:5000],
        "other": bytes(len(data)),
        "version": data[:8] + b"\7" + data[9:],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(NotAPageError):
        read_page(str(path))


def test_a_page_whose_writer_died_in_the_middle_is_told_as_torn(tmp_path: Path) -> None:
    page = Page.in_file(meter(), str(tmp_path / "p"))
    page.close()
    with open(tmp_path / "p", "r+b") as file:
        file.seek(layout.SEQUENCE_AT)
        file.write(struct.pack("<Q", 7))
    assert read_page(str(tmp_path / "p")).torn


def test_a_page_that_cannot_be_written_costs_the_counters_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    metrics.meter("vm1", image="d", driver="aio", size=1)

    def full(fd: int, content: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    metrics.publish()
    metrics.publish()
    assert [record.getMessage() for record in caplog.records] == [
        "vm1: no more counters: No space left on device"
    ]


def test_names_of_files() -> None:
    assert page_name("") == "default.metrics"
    assert page_name("vm1") == "vm1.metrics"
    assert "/" not in page_name("../../etc/passwd")
    assert len(page_name("ä" * 4096)) < 255


# ---- tables -------------------------------------------------------------------------------------


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Two disks, of which one has a long name and errors."""
    for name in ("vm1", "a-disk-with-a-name-that-is-much-too-long-for-a-table"):
        found = meter(name)
        page = Page.in_file(found, str(tmp_path / page_name(name)))
        count(found, reads=1000)
        if name != "vm1":
            found.count_told(6, 0, 2e-6, failed=True)
        page.publish()
        page.close()
    return tmp_path


@pytest.mark.parametrize("columns", [60, 120])
def test_tables_fit(columns: int, pages: Path) -> None:
    pairs = PageSet([str(pages)]).look()
    table = of_disks(pairs, columns, "u")
    lines = table.lines(columns)
    assert len(lines) == 3
    assert max(map(len, lines)) <= columns
    assert all(line.isascii() for line in lines)
    assert table.bad == {0}
    assert ".." in lines[1]
    assert lines[0].split()[-3:] == ["P50", "P99", "P99.9"]
    assert lines[2].split()[-3:] == ["11us"] * 3
    rows = of_operations(*pairs[0], "u")
    assert [row[0] for row in rows.rows] == ["read", "status"]


def test_rates_are_of_what_came_between_two_looks(tmp_path: Path) -> None:
    found = meter()
    page = Page.in_file(found, str(tmp_path / "p"))
    looks = PageSet([str(tmp_path / "p")])
    count(found, reads=5)
    page.publish()
    ((_, first),) = looks.look()
    count(found, reads=7, seconds=1.0)
    page.publish()
    ((before, now),) = looks.look()
    page.close()
    assert before == first
    new = now.since(before).of("read")
    assert (new.answered, new.total.sum) == (7, 7_000_000)


def test_stats_from_pages(pages: Path) -> None:
    out, _ = tapdisk("stats", "--page", pages, status=0)
    assert len(out.splitlines()) == 3
    again = ("--watch", "--interval", "0.1", "--count", "2")
    out, _ = tapdisk("stats", "vm1", "--page", pages, *again, status=0)
    assert out.count("OPERATION") == 2
    assert "no disk of this name" in tapdisk("stats", "vm7", "--page", pages, status=1)[1]
    page = read_fd(os.open(pages / "vm1.metrics", os.O_RDONLY))
    assert page.of("read").answered == 1000
