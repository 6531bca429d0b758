"""Persistent bitmaps after failures and crashes: never wrong."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qcow2bitmaps import Ranges, add, assert_same, dirty, listed

import tapcore
from qcow2tools import MIB, assert_clean, create, qemu_io
from qcow2walk import walk
from tapcore.testkit import Recording

# ---- failures and crashes ----------------------------------------------------------------------


def test_a_failure_to_save_costs_only_the_bitmaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tap_qcow2.bitmaps import store

    def no_space(*_: object) -> None:
        raise OSError(28, "no space")

    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    monkeypatch.setattr(store._Filling, "_write_table", no_space)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB, b"x")
    assert "inconsistent now: No space left" in caplog.text
    assert listed(image)["one"].inconsistent
    assert_clean(image)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(MIB, length=1) == b"x"


def test_an_image_that_cannot_be_marked_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tap_qcow2.bitmaps import tracker

    def failing(*_: object) -> None:
        raise OSError(5, "broken")

    image = create(tmp_path / "disk.qcow2", 8 * MIB)
    add(image, "one")
    before = image.read_bytes()
    monkeypatch.setattr(tracker, "write_flags", failing)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk, pytest.raises(tapcore.TapError):
        disk.pwrite(MIB, b"x")
    assert image.read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"lazy_refcounts": "on"}])
def test_after_a_crash_a_bitmap_says_nothing_or_the_truth(
    options: dict[str, Any], tmp_path: Path, rng: random.Random
) -> None:
    size = MIB
    image = create(tmp_path / "disk.qcow2", size, **options)
    crashed = tmp_path / "crashed.qcow2"
    qemu_io(image, "write -q -P 1 0 1M")
    for name, granularity in (("a", 512), ("b", 65536)):
        add(image, name, granularity)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(MIB // 2, b"\2" * (MIB // 4))  # bits that are there before
    before = {name: dirty(image, name) for name in "ab"}
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        old = disk.pread(0, length=size)
    with Recording(image) as recording, tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        for _ in range(4):
            for _ in range(6):
                disk.pwrite(rng.randrange(size - 9000), rng.randbytes(rng.choice((512, 9000))))
            disk.sync()
        if not rng.randrange(2):
            disk.resize(3 * MIB)
    states = [*recording.prefixes(2), *recording.states(rng, 50)]
    said = 0
    for state in states:
        state.write({image: crashed})
        found = walk(crashed.read_bytes())
        problems = [p for p in found.problems if not (found.incompatible & 1 and "refcount" in p)]
        assert not problems, f"{state}: {problems[:3]}"
        with tapcore.open(f"qcow2:{crashed}", readonly=True) as disk:
            now = disk.pread(0, length=size)
            for bitmap in disk.bitmaps():
                if bitmap.inconsistent:
                    continue
                said += 1
                ranges = disk.bitmap_ranges(bitmap.name)
                _covers(ranges, before[bitmap.name])
                _covers(ranges, list(_changed(old, now)))
    assert said > 4
    assert_clean(image)
    assert_same(image, "a", "b")


def _changed(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    for at in range(0, len(old), 512):
        if old[at : at + 512] != new[at : at + 512]:
            yield at, 512


def _covers(ranges: Ranges, wanted: Ranges) -> None:
    for start, length in wanted:
        assert any(s <= start and start + length <= s + n for s, n in ranges), (start, length)
