"""`zstd`, `xz` and `gzip` read what is written here, and what they write is read here."""

import os
import random
from pathlib import Path

import pytest

import tapcore
from zrawtools import KIB, KINDS, MIB, content_of, packed, some_content, unpacked

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

COMMANDS = {
    "zstd -q -c": ".zst",
    "zstd -q -c -19 --no-check": ".zst",
    "zstd -q -c --long=27": ".zst",
    "zstd -q -c -T2 -1": ".zst",
    "pzstd -q -c -p 2": ".zst",
    "xz -c -1": ".xz",
    "xz -c -0 --block-size=64KiB -C sha256": ".xz",
    "xz -c -T2 -0 --block-size=100000 -C none": ".xz",
    "gzip -c": ".gz",
    "gzip -c -1": ".gz",
}


def random_reads(image: Path, content: bytes, rng: random.Random, count: int) -> None:
    with tapcore.open(f"zraw:{image}", readonly=True) as disk:
        assert disk.size == -(-len(content) // 512) * 512
        for _ in range(count):
            at = rng.randrange(len(content))
            length = min(rng.choice((1, 512, 4096, 70_000)), len(content) - at)
            assert disk.pread(at, length=length) == content[at : at + length], (at, length)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_they_write_is_read(command: str, tmp_path: Path) -> None:
    for seed in range(THOROUGH):
        rng = random.Random(f"{command} {seed}")
        content = some_content(rng, rng.choice((0, 1, 511, 4097, 2 * MIB + 100)) or 2 * MIB)
        image = tmp_path / ("disk.img" + COMMANDS[command])
        image.write_bytes(packed(command, content))
        random_reads(image, content, rng, 40)
        assert content_of(image) == content + bytes(-len(content) % 512)


def test_streams_and_members_that_were_put_together_are_one_disk(tmp_path: Path) -> None:
    rng = random.Random(2)
    content = some_content(rng, MIB + 700)
    one, other = content[:400_001], content[400_001:]
    for suffix, first, second, padding in (
        ("zst", "zstd -q -c -1", "zstd -q -c --no-check", b""),
        ("xz", "xz -c -0 -C crc32", "xz -c -0 -C sha256", bytes(8)),
        ("gz", "gzip -c -1", "gzip -c -9", bytes(100)),
    ):
        image = tmp_path / f"disk.img.{suffix}"
        image.write_bytes(packed(first, one) + packed(second, other) + padding)
        random_reads(image, content, rng, 40)


@pytest.mark.parametrize("frame", ["4K", "64K", "1M", ""])
def test_what_is_written_they_read(frame: str, tmp_path: Path) -> None:
    for seed in range(THOROUGH):
        rng = random.Random(f"{frame} {seed}")
        size = 512 * rng.randint(0, 3 * MIB // 512)
        content = bytearray(some_content(rng, size))
        for _ in range(3):
            at = rng.randrange(size + 1)
            content[at : at + 300_000] = bytes(len(content[at : at + 300_000]))
        (tmp_path / "disk.img").write_bytes(content)
        options = {"frame": frame, "level": str(rng.randint(1, 9))} if frame else {}
        image = tmp_path / "disk.raw.zst"
        tapcore.convert_image(tmp_path / "disk.img", image, options=options, force=True)
        assert unpacked("zstd", image) == content
        assert content_of(image) == content
        with tapcore.open(image, readonly=True) as disk:
            assert disk.state.disks.private.facts["seek_table"]


def test_the_kinds_made_in_tests_are_what_they_seem(tmp_path: Path) -> None:
    content = some_content(random.Random(3), 300 * KIB)
    for name, make in KINDS.items():
        (tmp_path / name).write_bytes(make(content))
        tool = {".zst": "zstd", ".xz": "xz", ".gz": "gzip"}[Path(name).suffix]
        assert unpacked(tool, tmp_path / name) == content, name
