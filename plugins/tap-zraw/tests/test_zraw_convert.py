"""Converting to seekable zstd, in parallel; what converts from there is sparse again."""

import json
import os
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from served import served

import tapcore
from peers import peer
from tap_zraw import writing
from tapcore import UsageError
from tapcore.cli.main import main
from tapcore.tools.measure import measure_image, measure_size
from zrawtools import KIB, MIB, content_of, some_content, unpacked

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
TAPDISK = Path(sys.executable).parent / "tapdisk"


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    content = some_content(random.Random(1), 2 * MIB)
    (tmp_path / "disk.img").write_bytes(content)
    return content


def test_frames_are_as_large_as_asked_for(tmp_path: Path, disk: bytes) -> None:
    image = tmp_path / "disk.raw.zst"
    tapcore.convert_image(tmp_path / "disk.img", image, options={"frame": "32K", "level": "9"})
    packed = image.read_bytes()
    count, has, magic = struct.unpack("<IBI", packed[-9:])
    assert (count, has, magic) == (64, 0, 0x8F92EAB1)
    entries = struct.unpack(f"<{2 * count}I", packed[-9 - 8 * count : -9])
    assert set(entries[1::2]) == {32 * KIB}
    assert sum(entries[::2]) + 8 + 8 * count + 9 == len(packed)


def test_they_are_compressed_by_several_threads(
    tmp_path: Path, disk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks meet, which one thread could not make them."""
    both = threading.Barrier(2)
    compress = writing.Wish.compress

    def meeting(wish: writing.Wish, content: object) -> bytes:
        if threading.current_thread().name.startswith("tapcore-zraw"):
            both.wait(30)
        return compress(wish, content)

    monkeypatch.setattr(writing, "_processors", lambda: 2)
    monkeypatch.setattr(writing.Wish, "compress", meeting)
    (tmp_path / "full.img").write_bytes(b"x" * (16 * MIB))
    tapcore.convert_image(tmp_path / "full.img", tmp_path / "disk.raw.zst", options={"frame": "4M"})
    assert content_of(tmp_path / "disk.raw.zst") == b"x" * (16 * MIB)


def test_a_failure_in_a_thread_leaves_nothing(
    tmp_path: Path, disk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = writing.Wish.compress

    def failing(wish: writing.Wish, content: object) -> bytes:
        if threading.current_thread().name.startswith("tapcore-zraw"):
            raise MemoryError
        return compress(wish, content)

    monkeypatch.setattr(writing.Wish, "compress", failing)
    with pytest.raises(MemoryError):
        tapcore.convert_image(tmp_path / "disk.img", tmp_path / "disk.raw.zst")
    assert os.listdir(tmp_path) == ["disk.img"]


def test_it_goes_through_a_pipe(tmp_path: Path, disk: bytes) -> None:
    with open(tmp_path / "piped.raw.zst", "wb") as file:
        subprocess.run(
            [TAPDISK, "convert", tmp_path / "disk.img", "zraw:-"], stdout=file, check=True
        )
    tapcore.convert_image(tmp_path / "disk.img", tmp_path / "disk.raw.zst")
    assert (tmp_path / "piped.raw.zst").read_bytes() == (tmp_path / "disk.raw.zst").read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("new.raw.zst", {"frame": "100K"}, "frame is a power of two from 4K to 32M"),
        ("new.raw.zst", {"frame": "64M"}, "frame is a power of two from 4K to 32M"),
        ("new.raw.zst", {"level": "0"}, "level is a number from 1 to 19"),
        ("new.raw.zst", {"level": "fast"}, "level is a number from 1 to 19"),
        ("zraw:new.raw.xz", {}, "what is made is compressed with zstd: call it NAME.raw.zst"),
        ("new.raw.xz", {}, "cannot tell the format of a new image from its name"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_made(
    name: str,
    options: dict[str, str],
    text: str,
    tmp_path: Path,
    disk: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=text):
        tapcore.convert_image("disk.img", name, options=options)
    assert os.listdir() == ["disk.img"]


def test_what_was_there_is_kept_until_the_copy_is_whole(tmp_path: Path, disk: bytes) -> None:
    image = tmp_path / "disk.raw.zst"
    image.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists already; --force replaces it"):
        tapcore.convert_image(tmp_path / "disk.img", image)

    def stop(done: int, _: int) -> None:
        if done:
            raise InterruptedError

    with pytest.raises((InterruptedError, tapcore.TapError)):
        tapcore.convert_image(tmp_path / "disk.img", image, force=True, progress=stop)
    assert image.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["disk.img", "disk.raw.zst"]
    tapcore.convert_image(tmp_path / "disk.img", image, force=True, sync=True)
    assert content_of(image) == disk


def test_zeroes_are_found_again_in_both_directions(tmp_path: Path) -> None:
    """A huge disk with eight bytes: tables and frames of zeroes are all that costs."""
    size = 1 << (33 if THOROUGH == 1 else 40)
    with open(tmp_path / "disk.img", "wb") as file:
        file.truncate(size)
        for at in (0, size // 3):
            file.seek(at)
            file.write(b"here")
    image = tmp_path / "disk.raw.zst"
    tapcore.convert_image(tmp_path / "disk.img", image)
    assert image.stat().st_size < 50 * MIB
    tapcore.convert_image(image, tmp_path / "copy.img")
    assert (tmp_path / "copy.img").stat().st_blocks * 512 < 16 * MIB
    with tapcore.open(image, readonly=True) as disk:
        assert disk.size == size
        assert disk.pread(size // 3 - 2, length=8) == b"\0\0here\0\0"
        held = [run.length for run in disk.extents() if run.kind != "zero"]
    assert sum(held) <= 2 * (4 * MIB)


def test_measure_is_never_too_low(tmp_path: Path, disk: bytes) -> None:
    worst = random.Random(2).randbytes(MIB)
    (tmp_path / "worst.img").write_bytes(worst)
    os.truncate(tmp_path / "worst.img", 2 * MIB)
    for frame in ("4K", "64K", "1M"):
        image = tmp_path / f"{frame}.raw.zst"
        tapcore.convert_image(tmp_path / "worst.img", image, options={"frame": frame})
        found = measure_image(tmp_path / "worst.img", "zraw", options={"frame": frame})
        assert MIB < image.stat().st_size <= found.required < MIB + 64 * KIB
        most = measure_size(2 * MIB, "zraw", options={"frame": frame}).fully_allocated
        assert found.fully_allocated == most > 2 * MIB


def test_info_and_map(tmp_path: Path, disk: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(tmp_path / "disk.raw.zst")
    tapcore.convert_image(tmp_path / "disk.img", image, options={"frame": "64K"})
    assert main(["info", "--json", image]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["format"] == {
        "compression": "zstd",
        "pieces": 32,
        "largest_piece": 64 * KIB,
        "random_access": True,
        "seek_table": True,
    }
    assert main(["check", image]) == 0
    assert main(["inspect", image]) == 0
    assert "32 pieces of 65536 bytes at most" in capsys.readouterr().out


def test_it_is_served(tmp_path: Path, disk: bytes) -> None:
    image = tmp_path / "disk.raw.zst"
    tapcore.convert_image(tmp_path / "disk.img", image, options={"frame": "64K"})
    with served(f"zraw:{image}", "--read-only") as server:
        copied = subprocess.run(
            [peer("nbdcopy"), server.uri, "-"], check=True, capture_output=True, timeout=60
        ).stdout
    assert copied == disk == unpacked("zstd", image)
