"""Grains that lie past the end of their file are lost, and nobody carries on zeroes."""

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest
from commandline import tapdisk
from cutimages import (
    cut_anywhere,
    cut_beside_qemu,
    cut_inside_the_last_cluster,
    mixed_content,
    random_writes,
)
from served import served

import tapcore
from peers import peer
from tapcore.tools.check import check_image
from tapcore.tools.commit import commit_image
from tapcore.tools.inspect import inspect_image

MIB = 1 << 20
GRAIN = 65536
PLACES = (0, 5, 20)


def qemu_img(*words: object) -> None:
    subprocess.run([peer("qemu-img"), *map(str, words)], timeout=120, check=True)


def written(image: Path, *, parent: str = "", **options: str) -> Path:
    given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    size = ["-b", parent] if parent else ["4M"]
    tapdisk("create", "-q", f"vmdk:{image}", *size, *given, status=0)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for n, at in enumerate(PLACES):
            disk.pwrite(at * GRAIN, bytes([n + 1]) * GRAIN)
    return image


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The last two of three grains are lost."""
    image = written(tmp_path / "a.vmdk")
    os.truncate(image, image.stat().st_size - 2 * GRAIN)
    return image


@pytest.mark.parametrize("target", ["b.img", "b.qcow2", "b.vmdk"])
def test_reads_fail_with_the_place_and_salvage_goes_on(
    damaged: Path, tmp_path: Path, target: str
) -> None:
    _, said = tapdisk("convert", damaged, tmp_path / target, status=1)
    assert said.startswith(f"tapdisk: {damaged}: read failed at {5 * GRAIN}: its grain, at sector")
    assert said.count("\n") == 1
    _, said = tapdisk("convert", "--salvage", damaged, tmp_path / target, status=3)
    assert said.splitlines()[-1].startswith("tapdisk: 128 KiB in 2 ranges")
    with tapcore.open(str(tmp_path / target), readonly=True) as disk:
        assert disk.pread(0, length=4 * MIB) == (b"\1" * GRAIN).ljust(4 * MIB, b"\0")


def test_inspect_says_it(damaged: Path) -> None:
    def said() -> list[str]:
        found = inspect_image(f"vmdk:{damaged}")
        return [each.message for each in found.findings if each.code == "content-lost"]

    assert said() == ["2 grains lie past the end of the file: their content is lost"]
    os.truncate(damaged, 12000)
    assert len(said()) == 1
    assert "all content" in said()[0] or "what they map is lost" in said()[0]


def test_no_tool_lets_the_file_grow_over_what_is_lost(damaged: Path) -> None:
    """New grains would lie where the table says that others are."""
    before = digest(damaged)
    with (
        tapcore.open(f"vmdk:{damaged}", readonly=False) as disk,
        pytest.raises(tapcore.TapError, match=r"2 grains that lie past the end .* not written"),
    ):
        disk.pwrite(40 * GRAIN, b"x" * GRAIN)
    assert digest(damaged) == before
    assert check_image(f"vmdk:{damaged}").corruptions == 2


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_server_goes_on_with_zeroes_and_one_line(damaged: Path, cache: str) -> None:
    socket = damaged.with_name("s")
    arguments = (f"vmdk:{damaged}", "--cache", cache, "--socket", socket)
    with served(*arguments, quiet=False) as server, server.client() as client:
        for _ in range(2):
            assert client.read(0, 30 * GRAIN) == (b"\1" * GRAIN).ljust(30 * GRAIN, b"\0")
        client.write(40 * GRAIN, b"\4" * GRAIN)  # a new grain
        client.write(5 * GRAIN + 4096, b"\5" * 4096)  # into a lost one
        client.write(41 * GRAIN + 512, b"\6" * 512)
        want = (bytes(4096) + b"\5" * 4096).ljust(GRAIN, b"\0")
        assert client.read(5 * GRAIN, GRAIN) == want
        assert client.read(20 * GRAIN, GRAIN) == bytes(GRAIN)
    assert len(server.messages) == 1
    assert str(damaged) in server.messages[0]
    assert "past the end" in server.messages[0]
    found = check_image(f"vmdk:{damaged}")
    assert (found.corruptions, found.leaks) == (0, 0), found.messages
    with tapcore.open(f"vmdk:{damaged}", readonly=True) as disk:
        assert disk.pread(0, length=GRAIN) == b"\1" * GRAIN
        assert disk.pread(5 * GRAIN, length=GRAIN) == want
        assert disk.pread(20 * GRAIN, length=GRAIN) == bytes(GRAIN)
        assert disk.pread(40 * GRAIN, length=GRAIN) == b"\4" * GRAIN
        assert disk.pread(41 * GRAIN, length=1024) == bytes(512) + b"\6" * 512


def test_commit_leaves_the_parent_as_it_was(tmp_path: Path) -> None:
    parent = written(tmp_path / "p.vmdk")
    child = written(tmp_path / "c.vmdk", parent=str(parent))
    os.truncate(child, child.stat().st_size - GRAIN)
    before = digest(parent)
    with pytest.raises(tapcore.LostContentError, match=r"c\.vmdk: has lost 64 KiB"):
        commit_image(f"vmdk:{child}")
    assert digest(parent) == before


def test_a_cut_stream_names_each_damaged_grain_once(tmp_path: Path) -> None:
    raw = tmp_path / "a.img"
    raw.write_bytes(random.Random(1).randbytes(GRAIN) * 32)
    image = tmp_path / "a.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk",
        "-o", "subformat=streamOptimized", raw, image,
    )  # fmt: skip
    length = image.stat().st_size * 3 // 4
    os.truncate(image, length)
    _, said = tapdisk("convert", image, tmp_path / "b.img", status=1)
    assert said.count("\n") == 1
    assert f"{image}: read failed at " in said
    _, said = tapdisk("convert", "--salvage", image, tmp_path / "b.img", status=3)
    got, want = (tmp_path / "b.img").read_bytes(), raw.read_bytes()
    kept = 0
    for at in range(0, len(want), GRAIN):
        part = got[at : at + GRAIN]
        assert part in (want[at : at + GRAIN], bytes(GRAIN))
        kept += part != bytes(GRAIN)
    assert kept >= 20


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_cut_anywhere_it_fails_or_is_right(
    tmp_path: Path, rng: random.Random, subformat: str
) -> None:
    want = mixed_content(rng, 2 * MIB, GRAIN)
    (tmp_path / "a.img").write_bytes(want)
    words = ("-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}")
    qemu_img("convert", *words, tmp_path / "a.img", tmp_path / "a.vmdk")
    cut_anywhere("vmdk", tmp_path / "a.vmdk", want, rng, whole=True)


def test_what_the_last_grain_lacks_is_lost(tmp_path: Path) -> None:
    image = written(tmp_path / "a.vmdk")
    want = bytearray(21 * GRAIN)
    for n, at in enumerate(PLACES):
        want[at * GRAIN : (at + 1) * GRAIN] = bytes([n + 1]) * GRAIN
    cut_inside_the_last_cluster("vmdk", image, bytes(want))
    repaired = check_image(f"vmdk:{image}", repair="all")
    assert repaired.corruptions_fixed == 1
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        assert disk.pread(0, length=len(want)) == want[:-700] + bytes(700)
        disk.pwrite(30 * GRAIN, b"x")


def test_the_last_grain_may_be_as_short_as_the_disk(tmp_path: Path) -> None:
    image, size = tmp_path / "a.vmdk", 4 * MIB + 512
    tapcore.create_image(f"vmdk:{image}", size)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(size - 512, b"x" * 512)
    os.truncate(image, image.stat().st_size - GRAIN + 512)
    assert check_image(f"vmdk:{image}").corruptions == 0
    assert not inspect_image(f"vmdk:{image}").findings
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        assert disk.pread(size - 512, length=512) == b"x" * 512
        disk.pwrite(0, b"y")


def test_cut_anywhere_it_is_what_qemu_says(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "a.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", image, 4 * MIB)
    words = [word for command in random_writes(rng, 4 * MIB) for word in ("-c", command)]
    subprocess.run([peer("qemu-io"), "-f", "vmdk", *words, image], capture_output=True, check=True)
    cut_beside_qemu("vmdk", image, rng)
