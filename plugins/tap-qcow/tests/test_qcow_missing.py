"""Clusters that lie wholly past the end of their file are lost, and nobody carries on zeroes."""

import hashlib
import io
import os
import random
from pathlib import Path

import pytest
from commandline import tapdisk
from cutimages import cut_anywhere, cut_beside_qemu, mixed_content, random_writes
from served import served

import tapcore
from qcowtools import qemu_img, qemu_io
from tapcore.tools.commit import commit_image
from tapcore.tools.inspect import inspect_image
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image

MIB = 1 << 20
CLUSTER = 4096
PLACES = (0, 5, 200)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The last two of three clusters are lost."""
    image = tmp_path / "a.qcow"
    qemu_img("create", "-q", "-f", "qcow", image, 4 * MIB)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        for n, at in enumerate(PLACES):
            disk.pwrite(at * CLUSTER, bytes([n + 1]) * CLUSTER)
    os.truncate(image, image.stat().st_size - 2 * CLUSTER)
    return image


def test_reads_fail_with_the_place_and_salvage_goes_on(damaged: Path, tmp_path: Path) -> None:
    _, said = tapdisk("convert", damaged, tmp_path / "b.img", status=1)
    place = f"tapdisk: {damaged}: read failed at {5 * CLUSTER}: its cluster, at offset 0x"
    assert said.startswith(place)
    assert said.count("\n") == 1
    _, said = tapdisk("convert", "--salvage", damaged, tmp_path / "b.img", status=3)
    assert said.splitlines()[-1].startswith("tapdisk: 8 KiB in 2 ranges")
    assert (tmp_path / "b.img").read_bytes() == (b"\1" * CLUSTER).ljust(4 * MIB, b"\0")
    with tapcore.open(f"qcow:{damaged}", readonly=True) as disk:
        assert [run.start // CLUSTER for run in disk.extents() if run.missing] == [5, 200]


def test_inspect_says_it(damaged: Path) -> None:
    def said() -> list[str]:
        found = inspect_image(f"qcow:{damaged}")
        return [each.message for each in found.findings if each.code == "content-lost"]

    assert said() == ["2 clusters lie past the end of the file: their content is lost"]
    os.truncate(damaged, 4200)
    assert len(said()) == 1
    assert "all content" in said()[0] or "what they map is lost" in said()[0]


def test_a_read_that_begins_before_what_is_lost_fails(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow"
    qemu_img("create", "-q", "-f", "qcow", image, MIB)
    with tapcore.open(f"qcow:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 8 * CLUSTER)
    os.truncate(image, image.stat().st_size - 5 * CLUSTER + 100)
    with tapcore.open(f"qcow:{image}", readonly=True) as disk:
        kept = b"x" * (3 * CLUSTER + 100)
        assert disk.pread(0, length=4 * CLUSTER) == kept.ljust(4 * CLUSTER, b"\0")
        for start, length in ((0, 5 * CLUSTER), (3 * CLUSTER, 2 * CLUSTER), (100, 8 * CLUSTER)):
            with pytest.raises(tapcore.LostContentError, match=rf"failed at {4 * CLUSTER}: "):
                disk.pread(start, length=length)
        with pytest.raises(tapcore.LostContentError):
            io.BufferedReader(disk).read()


def test_no_tool_lets_the_file_grow_over_what_is_lost(damaged: Path, tmp_path: Path) -> None:
    """New clusters would lie where the table says that others are."""
    (tmp_path / "p.img").write_bytes(bytes(4 * MIB))
    before = digest(damaged)
    with (
        tapcore.open(f"qcow:{damaged}", readonly=False) as disk,
        pytest.raises(tapcore.TapError, match=r"2 clusters that lie past the end .* not written"),
    ):
        disk.pwrite(99 * CLUSTER, b"x" * CLUSTER)
    for change in (
        lambda: resize_image(f"qcow:{damaged}", "+1M"),
        lambda: rebase_image(f"qcow:{damaged}", f"aio:{tmp_path}/p.img", unsafe=True),
    ):
        with pytest.raises(tapcore.TapError):
            change()
    assert digest(damaged) == before


def test_commit_leaves_the_parent_as_it_was(tmp_path: Path) -> None:
    parent, child = tmp_path / "p.img", tmp_path / "c.qcow"
    parent.write_bytes(b"\7" * 4 * MIB)
    tapcore.create_image(f"qcow:{child}", None, parent=f"aio:{parent}")
    with tapcore.open(f"qcow:{child}", readonly=False) as disk:
        disk.pwrite(MIB, b"x" * MIB)
    os.truncate(child, child.stat().st_size - MIB // 2)
    before = digest(parent)
    with pytest.raises(tapcore.LostContentError, match=r"c\.qcow: has lost 512 KiB"):
        commit_image(f"qcow:{child}")
    assert digest(parent) == before


def test_a_server_goes_on_with_zeroes_and_puts_nothing_in_their_place(damaged: Path) -> None:
    socket = damaged.with_name("s")
    with (
        served(f"qcow:{damaged}", "--socket", socket, quiet=False) as server,
        server.client() as client,
    ):
        assert client.read(5 * CLUSTER, CLUSTER) == bytes(CLUSTER)
        for at in range(300, 310):
            client.write(at * CLUSTER, bytes([at - 200]) * CLUSTER)
        client.write(5 * CLUSTER + 512, b"\5" * 512)
    assert len([line for line in server.messages if "past the end" in line]) == 1
    with tapcore.open(f"qcow:{damaged}", readonly=True) as disk:
        assert disk.pread(0, length=CLUSTER) == b"\1" * CLUSTER
        assert disk.pread(5 * CLUSTER, length=1024) == bytes(512) + b"\5" * 512
        assert disk.pread(200 * CLUSTER, length=CLUSTER) == bytes(CLUSTER)
        for at in range(300, 310):
            assert disk.pread(at * CLUSTER, length=CLUSTER) == bytes([at - 200]) * CLUSTER


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_anywhere_it_fails_or_is_right(
    tmp_path: Path, rng: random.Random, compressed: bool
) -> None:
    want = mixed_content(rng, 512 << 10, CLUSTER)
    (tmp_path / "a.img").write_bytes(want)
    image = f"qcow:{tmp_path}/a.qcow"
    tapcore.convert_image(f"aio:{tmp_path}/a.img", image, compressed=compressed)
    cut_anywhere("qcow", tmp_path / "a.qcow", want, rng)


def test_cut_anywhere_it_is_what_qemu_says(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "a.qcow"
    qemu_img("create", "-q", "-f", "qcow", image, 4 * MIB)
    qemu_io(image, random_writes(rng, 4 * MIB))
    cut_beside_qemu("qcow", image, rng)
