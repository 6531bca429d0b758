"""The five filters, each by what it does to a disk."""

import errno
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import tapdisk

import tapcore
from tap_filters.limit import Meter
from tap_filters.stats import Stats, Tally, _class_of
from tapcore import Filter, FilterCall, TapError, UsageError
from tapcore.engine import READ, WRITE, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.process import timer

KIB, MIB = 1 << 10, 1 << 20


def statuses(disk: tapcore.Disk, requests: list[tuple[int, int, int]]) -> list[int]:
    """Of requests (op, offset, length) that are under way at once, in the order of their answers'
    coming."""
    found: list[int] = []
    engine = engine_of(disk.state)
    for op, offset, length in requests:
        buf = memoryview(bytearray(length))
        engine.submit(Request(op, offset, length, buf, lambda req: found.append(req.status)))
    EngineLoop(engine).run_until(lambda: len(found) == len(requests))
    return found


def ram(*filters: str | Filter) -> tapcore.Disk:
    return tapcore.open("ram:8M", filters=filters, readonly=False)


# ---- delay -----------------------------------------------------------------------------------


def test_delay_lets_requests_wait_beside_each_other() -> None:
    with ram("delay:read=100ms") as disk:
        began = time.monotonic()
        assert statuses(disk, [(READ, n * 4096, 4096) for n in range(64)]) == [0] * 64
        took = time.monotonic() - began
        assert 0.1 <= took < 64 * 0.1
        disk.pwrite(0, b"x" * 512)  # not this
    with ram("delay:write=5ms,jitter=20ms,seed=3") as disk:
        began = time.monotonic()
        disk.pwrite(0, b"x" * 512)
        assert time.monotonic() - began >= 0.005 + random.Random(3).random() * 0.02


# ---- error -----------------------------------------------------------------------------------


def failures(text: str, count: int = 400) -> list[bool]:
    with ram(text) as disk:
        requests = [(READ, n % 2000 * 4096, 4096) for n in range(count)]
        return [status != 0 for each in requests for status in statuses(disk, [each])]


def test_error_by_rate_and_seed() -> None:
    one, again, other = (failures(f"error:rate=25%,seed={seed}") for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert 60 < sum(one) < 140
    assert not any(failures("error:rate=0"))
    assert all(failures("error"))


def test_error_by_range_operation_and_count() -> None:
    with ram("error:start=1M,end=2M,op=write,errno=ENOSPC,count=2") as disk:
        disk.pwrite(MIB - 4096, bytes(4096))
        disk.pwrite(2 * MIB, bytes(4096))
        disk.pread(MIB, length=4096)
        for at in (MIB, 2 * MIB - 512):
            with pytest.raises(TapError) as caught:
                disk.pwrite(at, b"x" * 512)
            assert caught.value.errno == errno.ENOSPC
        disk.pwrite(MIB, b"y" * 512)  # the third
    disk = ram("error:op=flush,count=1")
    with pytest.raises(TapError):
        disk.sync()
    disk.close()


def test_error_after_the_driver_has_done_it() -> None:
    for when, stored in (("before", bytes(512)), ("after", b"x" * 512)):
        with ram(f"error:op=write,when={when}") as disk:
            with pytest.raises(TapError):
                disk.pwrite(0, b"x" * 512)
            assert disk.pread(0, length=512) == stored


def test_error_of_parents(tmp_path: Path) -> None:
    base, child = f"aio:{tmp_path / 'base.img'}", f"qcow2:{tmp_path / 'child.qcow2'}"
    tapcore.create_image(base, MIB)
    tapcore.create_image(child, None, parent=base)
    with tapcore.open(
        child, filters=("error:start=64K,end=128K,parents=on",), readonly=False
    ) as disk:
        with pytest.raises(TapError):
            disk.pread(64 * KIB, length=512)
        disk.pread(0, length=512)


# ---- limit -----------------------------------------------------------------------------------


def test_a_meter_gives_what_it_has_and_no_more() -> None:
    meter = Meter(rate=100, burst=0.1)
    waits = [meter.wait(1, now=50.0) for _ in range(30)]
    assert waits[:10] == [0.0] * 10
    assert waits[10:] == pytest.approx([n / 100 for n in range(20)], abs=1e-9)
    assert meter.wait(1, now=60.0) == 0.0
    rng, now, taken = random.Random(1), 0.0, 0.0
    meter = Meter(rate=1000, burst=0.05)
    for _ in range(3000):
        now += rng.random() * 0.01
        amount = rng.randrange(1, 20)
        at = now + meter.wait(amount, now)
        assert taken <= at * 1000 + 50 + 1e-6  # what came before fits into the time
        taken += amount


def test_limit_of_bytes_and_of_operations() -> None:
    with ram("limit:bytes=1M,burst=10ms") as disk:
        began = time.monotonic()
        statuses(disk, [(WRITE, n * 4096, 4096) for n in range(64)])
        # a quarter of a second's, less the burst and what begins at its end
        assert time.monotonic() - began >= 0.25 - 0.01 - 0.004 - 0.001
    with ram("limit:ops=200,burst=0s,op=read") as disk:
        began = time.monotonic()
        statuses(disk, [(READ, n * 512, 512) for n in range(21)])
        assert time.monotonic() - began >= 0.1 - 0.001
        statuses(disk, [(WRITE, n * 512, 512) for n in range(400)])  # would be two seconds


class Seen(Filter):
    """Notes which writes come to the driver."""

    title = "notes sectors"

    def __init__(self) -> None:
        self.sectors: list[int] = []

    def request(self, call: FilterCall) -> None:
        if call.op == "write":
            self.sectors.append(call.sector)
        call.go_on()


def _order_behind(limit: str) -> list[int]:
    """The sectors of 50 writes, as they come through."""
    seen, left = Seen(), [50]

    def done(_: Request) -> None:
        left[0] -= 1

    with ram(limit, seen) as disk:
        engine = engine_of(disk.state)
        for n in range(50):
            engine.submit(Request(WRITE, n * 512, 512, memoryview(bytearray(512)), done))
        EngineLoop(engine).run_until(lambda: not left[0])
    return seen.sectors


def test_limit_keeps_the_order() -> None:
    assert _order_behind("limit:ops=2000,burst=0s") == list(range(50))


def test_limit_keeps_the_order_whatever_the_clock_says(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at the clock somebody else may have the processor for a while."""
    monkeypatch.setattr(timer, "monotonic", lambda: time.monotonic() + rng.random() * 0.005)
    assert _order_behind("limit:ops=2000,burst=1ms") == list(range(50))


# ---- stats, trace ----------------------------------------------------------------------------


def test_the_classes_of_a_histogram_are_in_order_and_fine_enough() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        ns = int(2 ** rng.uniform(0, 40))
        number = _class_of(ns)
        assert 2 ** (number / 8) * 0.99 <= ns + 1
        assert ns <= 2 ** ((number + 1) / 8) * 1.01 + 1
    tally = Tally()
    for micro in range(1, 1001):
        tally.add(micro * 1000, 512)
    assert tally.percentile(50) == pytest.approx(500, rel=0.1)
    assert tally.percentile(99) == pytest.approx(990, rel=0.1)


def test_stats_of_answers_that_come_later(tmp_path: Path) -> None:
    """The histogram is of the answers: that is what is a hundred times too small around calls."""
    stats = Stats(file=str(tmp_path / "stats.json"))
    with ram(stats, "error:op=write", "delay:read=20ms") as disk:
        statuses(disk, [(READ, n * 4096, 4096) for n in range(10)])
        with pytest.raises(TapError):
            disk.pwrite(0, bytes(512))
    row = json.loads((tmp_path / "stats.json").read_text())
    reads, writes = row["operations"]["read"], row["operations"]["write"]
    assert (reads["requests"], reads["bytes"], reads["errors"]) == (10, 40960, 0)
    assert writes["errors"] == 1
    latency = reads["latency_us"]
    assert 20_000 <= latency["mean"] <= latency["max"]
    assert latency["p50"] >= 18_000


def test_stats_tell_the_images_of_a_chain_apart(tmp_path: Path) -> None:
    base, child = tmp_path / "base.img", tmp_path / "child.qcow2"
    tapcore.create_image(f"aio:{base}", MIB)
    tapcore.create_image(f"qcow2:{child}", None, parent=f"aio:{base}")
    stats = Stats()
    with tapcore.open(f"qcow2:{child}", filters=(stats,), readonly=False) as disk:
        disk.pread(0, length=64 * KIB)
    found = stats.as_dict()
    assert found[str(child)]["read"]["hole_bytes"] == 64 * KIB
    assert found[str(base)]["read"]["bytes"] == 64 * KIB


def test_trace_writes_every_call_and_every_answer(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    with ram(f"trace:file={file}") as disk:
        disk.pwrite(4096, bytes(512))
        disk.pread(0, length=512)
        disk.sync()
        list(disk.extents(0, length=4096))
        disk.resize(16 * MIB)
    said = [line.partition(": ")[2] for line in file.read_text().splitlines()]
    for wanted in (
        "open",
        "is open: 16384 sectors by ram",
        "#1 write 4096+512",
        "#2 read 0+512",
        "#3 flush",
        "extents 0+4096",
        "resize 16777216",
        "close",
    ):
        assert wanted in said, said
    assert [line.partition(" after")[0] for line in said if " = " in line] == [
        "#1 4096+512 = done",
        "#2 0+512 = done",
        "#3 = done",
        "#4 = done",  # of the end
    ]


# ---- the command line ------------------------------------------------------------------------


def test_formats_lists_the_filters() -> None:
    out, _ = tapdisk("formats", status=0)
    assert "\nFILTER" in out
    out, _ = tapdisk("formats", "--filters", "--json", status=0)
    rows = {row["filter"]: row for row in json.loads(out)}
    assert set(rows) >= {"delay", "error", "limit", "stats", "trace"}
    assert rows["delay"]["parameters"]["read"] == {"value": "SECONDS", "required": False}
    assert rows["delay"]["distribution"] == "tap-filters"
    assert all(row["error"] is None for row in rows.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("delay",), "nothing is to be delayed"),
        (("limit:ops=0",), "a limit has to be more than 0"),
        (("limit",), "needs bytes or ops"),
        (("error:op=reed",), "'reed' is not made of read, write, flush, discard, zero, compressed"),
        (("error:errno=EWHAT",), "'EWHAT' is not the name of an error"),
        (("error:start=2,end=1",), "the range ends before it begins"),
        (("stats:file=/nowhere/x",), "No such file or directory"),
        (("stats", "nope:x=1"), "no filter is named 'nope' (installed: "),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], said: str) -> None:
    options = [word for text in words for word in ("--filter", text)]
    out, err = tapdisk("bench", "ram:1M", "--seconds", "0.01", *options, status=1)
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_convert_and_bench_take_filters(
    tmp_path: Path,
) -> None:
    source = tmp_path / "a.img"
    source.write_bytes(random.Random(1).randbytes(3 * MIB))
    stats = tmp_path / "stats"
    words = ("--filter", f"stats:file={stats}", "--filter", "delay:read=1ms")
    _, err = tapdisk("convert", "-q", source, tmp_path / "b.img", *words, status=0)
    assert not err
    assert (tmp_path / "b.img").read_bytes() == source.read_bytes()
    row: dict[str, Any] = json.loads(stats.read_text())
    assert row["operations"]["read"]["bytes"] == 3 * MIB
    _, err = tapdisk("convert", source, tmp_path / "c.img", "--filter", "error", status=1)
    assert "Input/output error" in err
    assert not (tmp_path / "c.img").exists()
    more = ("--size", "16K", f"aio:{source}", "--filter", "delay:read=5ms")
    out, _ = tapdisk("bench", "--json", *more, status=0)
    assert json.loads(out)["latency_us"]["p50"] >= 5000


def test_a_disk_with_all_filters_is_the_same_disk(tmp_path: Path) -> None:
    name, rng = f"qcow2:{tmp_path / 'd.qcow2'}", random.Random(4)
    tapcore.create_image(name, 4 * MIB)
    words = (
        f"trace:file={tmp_path / 't'},submits=on",
        f"stats:file={tmp_path / 's'}",
        "delay:read=100us,write=200us,jitter=1ms",
        "limit:bytes=1G,ops=100000",
        "error:rate=0",
    )
    model = bytearray(4 * MIB)
    with tapcore.open(name, filters=words, readonly=False) as disk:
        for _ in range(60):
            length = rng.randrange(1, 200 * KIB)
            at = rng.randrange(4 * MIB - length)
            if rng.random() < 0.5:
                model[at : at + length] = content = rng.randbytes(length)
                disk.pwrite(at, content, fua=rng.random() < 0.2)
            else:
                assert disk.pread(at, length=length) == model[at : at + length]
    with tapcore.open(name, readonly=True) as disk:
        assert disk.pread(0, length=4 * MIB) == model


def test_a_filter_is_chosen_by_name_or_given(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        ram("delay:read=often")
