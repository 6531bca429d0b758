"""Disks of a format that has everything: compressed writes, snapshots, bitmaps, passphrases."""

import errno
import random
from pathlib import Path

import pytest
from drivers.toy import CLUSTER, ToyDriver, change_head, content, fill, head_of

import tapcore
from tapcore import Bitmap, create_image
from tapcore.engine import READ, WRITE_COMPRESSED, Request, engine_of

MIB = 1 << 20


# ---- compressed writes -----------------------------------------------------------------------


def test_compressed_writes_of_whole_clusters(toys: Path, rng: random.Random) -> None:
    create_image("a.toy", MIB + 512)
    data = rng.randbytes(4 * CLUSTER)
    with tapcore.open("toy:a.toy", readonly=False) as disk:
        assert disk.cluster_size == CLUSTER
        assert disk.write_compressed(CLUSTER, data) == len(data)
        assert disk.write_compressed(MIB, b"x" * 512) == 512  # the last one, cut by the end
        assert [run.kind for run in disk.extents(CLUSTER, length=len(data))] == ["compressed"]
        assert disk.pread(CLUSTER, length=len(data)) == data
        assert disk.pread(MIB, length=512) == b"x" * 512
    assert len(head_of("a.toy")["compressed"]) == 17


def test_long_ones_are_split_at_clusters(toys: Path, rng: random.Random) -> None:
    create_image("a.toy", 20 * MIB)
    data = rng.randbytes(10 * MIB)
    with tapcore.open("toy:a.toy", readonly=False) as disk:
        assert disk.write_compressed(0, data) == len(data)
        assert disk.pread(0, length=len(data)) == data
        assert disk.state.disks.private.writes == 10


@pytest.mark.parametrize(
    ("offset", "length", "code"),
    [
        (512, CLUSTER, errno.EINVAL),
        (0, CLUSTER - 512, errno.EINVAL),
        (CLUSTER, CLUSTER + 4096, errno.EINVAL),
        (MIB, CLUSTER, errno.ENOSPC),
    ],
)
def test_parts_of_clusters_are_refused(toys: Path, offset: int, length: int, code: int) -> None:
    create_image("a.toy", MIB + 512)
    with tapcore.open("toy:a.toy", readonly=False) as disk:
        told: list[Request] = []
        buf = memoryview(bytearray(length))
        request = Request(WRITE_COMPRESSED, offset, length, buf, told.append)
        engine_of(disk.state).call(request)
        assert [req.status for req in told] == [-code]
        assert head_of("a.toy")["blocks"] == []


def test_a_format_that_stores_everything_plain(toys: Path) -> None:
    (toys / "a").write_bytes(bytes(MIB))
    with tapcore.open("aio:a", readonly=False) as disk:
        with pytest.raises(tapcore.NotSupportedError, match="'aio' cannot store compressed data"):
            disk.write_compressed(0, b"x" * 4096)
        told: list[Request] = []
        request = Request(WRITE_COMPRESSED, 0, 512, memoryview(bytearray(512)), told.append)
        engine_of(disk.state).call(request)
        assert [req.status for req in told] == [-errno.EOPNOTSUPP]


def test_compressed_writes_wait_for_what_holds_their_range(toys: Path) -> None:
    """An unaligned write reads, merges and writes; a compressed one in between would be lost."""
    create_image("a.toy", MIB)
    with tapcore.open("toy:a.toy", readonly=False) as disk:
        engine = engine_of(disk.state)
        hold = engine.order.hold(0, 8)
        told: list[Request] = []
        data = memoryview(bytearray(b"x" * CLUSTER))
        engine.call(Request(WRITE_COMPRESSED, 0, CLUSTER, data, told.append))
        assert told == []
        engine.order.release(hold)
        engine.turn()
        assert [req.status for req in told] == [0]


def test_a_compressed_write_to_a_read_only_disk_is_refused(toys: Path) -> None:
    create_image("a.toy", MIB)
    with (
        tapcore.open("toy:a.toy", readonly=True) as disk,
        pytest.raises(tapcore.ReadOnlyError),
    ):
        disk.write_compressed(0, bytes(CLUSTER))


# ---- snapshots -------------------------------------------------------------------------------


def test_a_snapshot_is_opened_read_only_and_only_of_the_child(
    toys: Path, toy_driver: ToyDriver
) -> None:
    create_image("base.toy", MIB)
    fill("toy:base.toy", (0, b"base"))
    create_image("a.toy", MIB, parent="base.toy")
    fill("toy:a.toy", (CLUSTER, b"then"))
    with tapcore.open("toy:a.toy", readonly=False) as disk:
        made = disk.state.disks.drv.td_snapshot_create(disk.state.disks, "first")
        assert disk.snapshots() == [made]
    fill("toy:a.toy", (CLUSTER, b"now!"))
    toy_driver.opened.clear()
    for name in ("first", "1"):
        with tapcore.open("toy:a.toy", snapshot=name, readonly=True) as disk:
            assert disk.read_only
            assert disk.pread(0, length=4) == b"base"
            assert disk.pread(CLUSTER, length=4) == b"then"
    assert [options.snapshot for _, _, options in toy_driver.opened] == ["first", "", "1", ""]
    assert content("toy:a.toy")[CLUSTER : CLUSTER + 4] == b"now!"


def test_what_cannot_be_opened_as_a_snapshot(toys: Path) -> None:
    create_image("a.toy", MIB)
    (toys / "a").write_bytes(bytes(512))
    with pytest.raises(tapcore.UsageError, match="only for reading"):
        tapcore.open("toy:a.toy", snapshot="x", readonly=False)
    with pytest.raises(tapcore.UsageError, match="has no snapshot 'x'"):
        tapcore.open("toy:a.toy", snapshot="x", readonly=True)
    with pytest.raises(tapcore.NotSupportedError, match="'aio' has no internal snapshots"):
        tapcore.open("aio:a", snapshot="x", readonly=True)
    with tapcore.open("aio:a", readonly=False) as disk:
        assert disk.snapshots() == []


# ---- bitmaps ---------------------------------------------------------------------------------


def test_bitmaps(toys: Path) -> None:
    create_image("a.toy", MIB)
    change_head("a.toy", bitmaps={"day": [[0, 4096], [65536, 8192]], "bad": None})
    with tapcore.open("toy:a.toy", readonly=True) as disk:
        assert disk.bitmaps() == [
            Bitmap("day", 4096, True),
            Bitmap("bad", 4096, True, inconsistent=True),
        ]
        assert disk.bitmap_ranges("day") == [(0, 4096), (65536, 8192)]
        with pytest.raises(tapcore.UsageError, match="has no bitmap 'night'"):
            disk.bitmap_ranges("night")
        with pytest.raises(tapcore.UsageError, match="'bad' was not saved properly"):
            disk.bitmap_ranges("bad")


# ---- options of opening ----------------------------------------------------------------------


def test_passphrases_reach_every_image_of_a_chain(toys: Path) -> None:
    create_image("base.toy", MIB, options={"passphrase": "one"})
    create_image("a.toy", MIB, parent="base.toy", options={"passphrase": "two"})
    tapcore.open(
        "toy:a.toy", keys={"base.toy": b"one", "toy:a.toy": b"two"}, readonly=False
    ).close()
    for keys, message in (
        (None, "a.toy: is encrypted"),
        (b"one", "a.toy: the passphrase is wrong"),
        (b"two", f"a.toy: its parent {toys}/base.toy: the passphrase is wrong"),
        ({f"{toys}/a.toy": b"two"}, f"a.toy: its parent {toys}/base.toy: is encrypted"),
    ):
        with pytest.raises(tapcore.UsageError, match=message):
            tapcore.open("toy:a.toy", keys=keys, readonly=False)


def test_the_metadata_cache_reaches_the_driver(toys: Path, toy_driver: ToyDriver) -> None:
    create_image("a.toy", MIB)
    tapcore.open("toy:a.toy", metadata_cache=1 << 16, readonly=False).close()
    assert toy_driver.opened[-1][2].metadata_cache == 1 << 16


def test_a_cluster_size_must_be_possible(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_image("a.toy", MIB)
    for size in (100, -512, (64 << 20) + 512):
        monkeypatch.setattr("drivers.toy.CLUSTER", size)
        with pytest.raises(tapcore.DriverError, match=f"impossible cluster size of {size} bytes"):
            tapcore.open("toy:a.toy", readonly=False)


def test_reading_beside_a_compressed_write(toys: Path) -> None:
    create_image("a.toy", MIB)
    with tapcore.open("toy:a.toy", readonly=False) as disk:
        engine = engine_of(disk.state)
        told: list[Request] = []
        data = memoryview(bytearray(b"x" * CLUSTER))
        engine.submit(Request(WRITE_COMPRESSED, 0, CLUSTER, data, told.append))
        buf = memoryview(bytearray(CLUSTER))
        engine.call(Request(READ, 0, CLUSTER, buf, told.append))
        assert [req.status for req in told] == [0, 0]
        assert buf == data
