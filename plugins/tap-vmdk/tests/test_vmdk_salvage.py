"""What is left of a disk that cannot be opened whole: extents lost, streams without end."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import tapcore
from tapcore.engine.salvage import Salvage

KIB, MIB = 1 << 10, 1 << 20
GRAIN = 64 * KIB
EXTENT = 2047 * MIB
"""Of each file of a split disk."""


def salvaged(image: Path, want: bytes) -> list[tuple[int, int, str]]:
    """What is lost of an image; all else is right, and no extent hides something."""
    with tapcore.open(f"vmdk:{image}", readonly=True, salvage=True) as disk:
        got = disk.pread(0, length=len(want))
        zeroes = [run for run in disk.extents() if run.kind == "zero"]
        assert disk.salvage is not None
        left = bytearray(want)
        for lost in disk.salvage.ranges:
            left[lost.start : lost.end] = bytes(lost.length)
        assert got == left
        assert not any(any(want[run.start : run.end]) for run in zeroes)
        return [(run.start, run.length, run.reason) for run in disk.salvage.ranges]


def refused(image: Path, words: str) -> None:
    """Nobody opens it without asking for what is left; and is told that this can be asked for."""
    with pytest.raises(tapcore.TapError, match=words) as caught:
        tapcore.open(f"vmdk:{image}", readonly=True)
    assert "convert --salvage copies what is left" in str(caught.value)
    with pytest.raises(tapcore.TapError, match=words):
        tapcore.open(f"vmdk:{image}", readonly=False)


# ---- extents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3 * MIB, 3 * MIB + 100, 0])
def test_a_flat_extent_that_is_too_short(tmp_path: Path, rng: random.Random, length: int) -> None:
    want = rng.randbytes(4 * MIB)
    image = tmp_path / "a.vmdk"
    tapcore.create_image(f"vmdk:{image}", len(want), options={"subformat": "monolithicFlat"})
    (tmp_path / "a-flat.vmdk").write_bytes(want[:length])
    refused(image, "shorter than its descriptor says")
    kept = length // 512 * 512
    ((start, lost, reason),) = salvaged(image, want)
    assert (start, lost) == (kept, len(want) - kept)
    assert reason.endswith(f"past the end of its extent {tmp_path}/a-flat.vmdk")
    found = Salvage()
    tapcore.convert_image(f"vmdk:{image}", f"aio:{tmp_path}/b.img", salvage=found)
    assert found.lost == len(want) - kept
    assert (tmp_path / "b.img").read_bytes() == want[:kept].ljust(len(want), b"\0")


# what is done to the second of three extents, and what is said of it
SPLIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (os.unlink, "does not exist"),
    "empty": (lambda path: os.truncate(path, 0), "is not a sparse file"),
    "something else": (lambda path: path.write_bytes(b"hello" * 999), "is not a sparse file"),
}


@pytest.mark.parametrize("what", SPLIT)
def test_an_extent_that_is_lost_costs_no_other(tmp_path: Path, what: str) -> None:
    image = tmp_path / "a.vmdk"
    options = {"subformat": "twoGbMaxExtentSparse"}
    tapcore.create_image(f"vmdk:{image}", 5 << 30, options=options)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for number in range(3):
            disk.pwrite(number * EXTENT + MIB, bytes([number + 1]) * GRAIN)
    harm, said = SPLIT[what]
    harm(tmp_path / "a-s002.vmdk")
    refused(image, said)
    with tapcore.open(f"vmdk:{image}", readonly=True, salvage=True) as disk:
        for number in (0, 2):
            got = disk.pread(number * EXTENT + MIB, length=GRAIN)
            assert got == bytes([number + 1]) * GRAIN
        assert disk.pread(EXTENT - 512, length=2 * MIB) == bytes(2 * MIB)
        missing = [run for run in disk.extents() if run.missing]
        assert (missing[0].start, sum(run.length for run in missing)) == (EXTENT, EXTENT)
        assert disk.salvage is not None
        (lost,) = disk.salvage.ranges
    assert lost.start == EXTENT
    assert said in lost.reason


def test_what_the_policy_refuses_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for folder in ("in", "out"):
        name = f"vmdk:{tmp_path / folder}/a.vmdk"
        tapcore.create_image(name, MIB, options={"subformat": "monolithicFlat"})
    image = tmp_path / "in" / "a.vmdk"
    text = image.read_text().replace('"a-flat', '"../out/a-flat')
    image.write_text(text)
    with pytest.raises(tapcore.ReferencePolicyError):
        tapcore.open(f"vmdk:{image}", readonly=True, salvage=True)


# ---- streams -------------------------------------------------------------------------------------


def stream(image: Path, rng: random.Random, *, grains: int = 24) -> bytes:
    """Noise, text and holes, with a hole at the end."""
    parts = [rng.randbytes(GRAIN), rng.randbytes(512) * 128, bytes(GRAIN)]
    want = b"".join(parts[number % 3] for number in range(grains)) + bytes(3 * GRAIN)
    raw = image.with_suffix(".img")
    raw.write_bytes(want)
    options = {"subformat": "streamOptimized"}
    tapcore.convert_image(f"aio:{raw}", f"vmdk:{image}", options=options)
    return want


def test_a_stream_without_its_footer_has_lost_nothing(tmp_path: Path, rng: random.Random) -> None:
    want = stream(tmp_path / "a.vmdk", rng)
    os.truncate(tmp_path / "a.vmdk", (tmp_path / "a.vmdk").stat().st_size - 1024)
    refused(tmp_path / "a.vmdk", "cut short")
    assert salvaged(tmp_path / "a.vmdk", want) == []


def test_of_a_stream_that_is_cut_anywhere_the_rest_is_lost(
    tmp_path: Path, rng: random.Random
) -> None:
    """What lies behind the last grain that is there; holes before it are known to be holes."""
    want = stream(tmp_path / "a.vmdk", rng)
    content = (tmp_path / "a.vmdk").read_bytes()
    lost = []
    for length in sorted(rng.randrange(70000, len(content) - 2100) for _ in range(8)):
        (tmp_path / "a.vmdk").write_bytes(content[:length])
        ((start, count, reason),) = salvaged(tmp_path / "a.vmdk", want)
        assert start + count == len(want)
        assert reason == "its grain is not in what is left of the stream"
        lost.append(count)
    assert lost == sorted(lost, reverse=True)
    assert len(set(lost)) > 3


def test_a_stream_of_several_tables(tmp_path: Path, rng: random.Random) -> None:
    """Tables that are whole, one that is cut, and one of which nothing is left."""
    image = tmp_path / "a.vmdk"
    piece = rng.randbytes(GRAIN)
    tapcore.create_image(f"vmdk:{image}", 128 * MIB, options={"subformat": "streamOptimized"})
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for at in (0, 5 * MIB, 40 * MIB, 70 * MIB, 100 * MIB):
            disk.write_compressed(at, piece)
    content = image.read_bytes()
    at = content.index((100 * MIB // 512).to_bytes(8, "little"), GRAIN)
    image.write_bytes(content[: at + 4096])
    with tapcore.open(f"vmdk:{image}", readonly=True, salvage=True) as disk:
        for place in (0, 5 * MIB, 40 * MIB, 70 * MIB):
            assert disk.pread(place, length=GRAIN) == piece
        known = 70 * MIB + GRAIN
        assert disk.pread(70 * MIB, length=58 * MIB).rstrip(b"\0") == piece.rstrip(b"\0")
        assert disk.salvage is not None
        assert [(run.start, run.end) for run in disk.salvage.ranges] == [(known, 128 * MIB)]


def test_a_stream_that_was_changed_and_cut_is_read_as_before(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    image = tmp_path / "a.vmdk"
    want = stream(image, rng)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.write_compressed(0, b"new" * 20480 + bytes(4096))
        disk.zero(GRAIN, length=GRAIN)
    os.truncate(image, image.stat().st_size - 3000)
    assert salvaged(image, want) == []
    assert "is read as it was before" in caplog.text
