"""Converting to and from formats that can do more: compressed, snapshots, parents, passphrases."""

import errno
import os
import random
from pathlib import Path

import pytest
from drivers.toy import BLOCK, CLUSTER, ToyDriver, change_head, content, fill, head_of

import tapcore
from tapcore import Keys, create_image, hookimpl
from tapcore.tools.convert import convert_image

MIB = 1 << 20


def blocks_of(path: str, kind: str = "blocks") -> set[int]:
    return set(head_of(path).get(kind, ()))


def source(rng: random.Random, size: int = 2 * MIB + 512) -> str:
    """A toy with data in places, some of it zeroes."""
    create_image("a.toy", size)
    pieces = [(rng.randrange(0, size - 9000), rng.randbytes(9000)) for _ in range(5)]
    fill("toy:a.toy", *pieces, (CLUSTER * 3, bytes(2 * CLUSTER)), (size - 512, b"x" * 512))
    return "a.toy"


# ---- compressed ------------------------------------------------------------------------------


def test_compressed_is_whole_clusters_and_the_same_content(toys: Path, rng: random.Random) -> None:
    convert_image(source(rng), "b.toy", compressed=True)
    assert content("toy:b.toy") == content("toy:a.toy")
    assert blocks_of("b.toy", "compressed") == blocks_of("b.toy")
    per = CLUSTER // BLOCK
    whole = {block // per * per + n for block in blocks_of("b.toy") for n in range(per)}
    last = (2 * MIB + 512) // BLOCK
    assert {block for block in whole if block <= last} == blocks_of("b.toy")


def test_compressed_onto_a_parent(toys: Path, rng: random.Random) -> None:
    source(rng)
    convert_image("a.toy", "base.toy")
    fill("toy:a.toy", (MIB, b"different"))
    convert_image("a.toy", "b.toy", parent="base.toy", compressed=True)
    assert content("toy:b.toy") == content("toy:a.toy")
    assert blocks_of("b.toy", "compressed") == set(range(MIB // BLOCK, (MIB + CLUSTER) // BLOCK))


@pytest.mark.parametrize("size", [512, CLUSTER - 512, CLUSTER, 5 * CLUSTER + 512])
def test_the_last_cluster_may_be_cut(toys: Path, rng: random.Random, size: int) -> None:
    Path("a.img").write_bytes(rng.randbytes(size))
    convert_image("a.img", "b.toy", compressed=True)
    assert content("toy:b.toy") == Path("a.img").read_bytes()


# ---- snapshots, keys -------------------------------------------------------------------------


def test_a_snapshot_is_copied_as_it_was(toys: Path, rng: random.Random) -> None:
    source(rng)
    before = content("toy:a.toy")
    with tapcore.open("toy:a.toy", readonly=False) as disk:
        disk.state.disks.drv.td_snapshot_create(disk.state.disks, "then")
        disk.pwrite(0, b"now")
    for name in ("then", "1"):
        convert_image("a.toy", "b.img", snapshot=name, force=True)
        assert Path("b.img").read_bytes() == before
    with pytest.raises(tapcore.UsageError, match=r"a\.toy: has no snapshot 'later'"):
        convert_image("a.toy", "c.img", snapshot="later")
    assert not os.path.exists("c.img")


def test_passphrases_of_source_and_target(toys: Path) -> None:
    create_image("a.toy", MIB, options={"passphrase": "one"})
    keys = Keys.of({"a.toy": b"one", "b.toy": b"two"})
    convert_image("a.toy", "b.toy", options={"passphrase": "two"}, keys=keys)
    with pytest.raises(tapcore.UsageError, match=r"b\.toy: is encrypted"):
        content("toy:b.toy")
    with pytest.raises(tapcore.UsageError, match=r"c\.toy: is encrypted"):
        convert_image("b.toy", "c.toy", options={"passphrase": "three"}, keys=keys)
    assert not os.path.exists("c.toy")


# ---- what it asks of drivers -----------------------------------------------------------------


def test_the_target_does_not_wait_for_the_disk_unless_asked(
    toys: Path, toy_driver: ToyDriver, rng: random.Random
) -> None:
    source(rng)
    for sync in (False, True):
        convert_image("a.toy", f"{sync}.toy", sync=sync, metadata_cache=12345)
        _, flags, options = toy_driver.opened[-1]
        assert (flags, options.durable) == (0, sync)
        assert options.metadata_cache == 12345


def test_holes_are_never_read(
    toys: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(rng)
    held = blocks_of("a.toy")
    read: set[int] = set()
    real = ToyDriver.td_queue_read

    @hookimpl
    def watching(self: ToyDriver, dd, sector, nb_sectors, buf, cb, id, prv):  # type: ignore[no-untyped-def]
        read.update(range(sector // 8, -(-(sector + nb_sectors) // 8)))
        return real(self, dd, sector, nb_sectors, buf, cb, id, prv)

    monkeypatch.setattr(ToyDriver, "td_queue_read", watching)
    registry = tapcore.Registry()
    registry.register(ToyDriver())
    convert_image("a.toy", "b.toy", registry=registry)
    per = CLUSTER // BLOCK
    assert held <= read <= {block // per * per + n for block in held for n in range(per)}


def test_a_terabyte_of_nothing_is_quick(toys: Path) -> None:
    create_image("a.toy", 1 << 40)
    fill("toy:a.toy", (1 << 39, b"in the middle"))
    convert_image("a.toy", "b.toy")
    with tapcore.open("toy:b.toy", readonly=True) as disk:
        assert disk.pread(1 << 39, length=13) == b"in the middle"
    assert len(blocks_of("b.toy")) == CLUSTER // BLOCK


# ---- when it goes wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_left_of_a_copy_that_failed(
    toys: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    source(rng)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("drivers.toy.Toy.keep", full)
    with pytest.raises(tapcore.IOFailedError, match=r"b\.toy: write failed: No space left"):
        convert_image("a.toy", "b.toy", keep_partial=keep)
    assert sorted(os.listdir()) == sorted(["a.toy", *(["b.toy.partial"] if keep else [])])


def test_a_target_that_cannot_be_opened_is_not_left(toys: Path, rng: random.Random) -> None:
    source(rng)
    with pytest.raises(tapcore.UsageError, match="is encrypted"):
        convert_image("a.toy", "b.toy", options={"passphrase": "x"})
    assert not os.path.exists("b.toy")


def test_a_parent_that_is_missing_is_said_before_anything_is_made(
    toys: Path, rng: random.Random
) -> None:
    source(rng)
    change_head("a.toy", parent="gone.toy", parent_handle="toy")
    with pytest.raises(tapcore.ImageOpenError, match=r"'gone\.toy' does not exist"):
        convert_image("a.toy", "b.toy")
    assert not os.path.exists("b.toy")
