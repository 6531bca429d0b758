"""What is repeated many times, as the zeroes of a large empty disk are, is passed over together."""

import random
import struct
from array import array
from collections import Counter
from pathlib import Path

import pytest
from backports import zstd

import tapcore
from tap_zraw.forward import PART, ForwardOnly
from tap_zraw.kept import KeptParts
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tap_zraw.zstd import frames as frames_module
from tap_zraw.zstd.frames import frames_of
from tap_zraw.zstd.library import FrameForward
from zrawtools import KIB, content_of, frames, seekable

BLOCK = 128 * KIB
Block = tuple[int, bytes]
"""Kind and content: 0 as it is, 1 one byte many times."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the file is read."""
    found = Counter[str]()
    read = PackedFile.read

    def counted(file: PackedFile, offset: int, length: int) -> bytes:
        found["calls"] += 1
        found["bytes"] += length
        return read(file, offset, length)

    monkeypatch.setattr(PackedFile, "read", counted)
    return found


def frame(blocks: list[Block]) -> bytes:
    """A frame that says how much it holds."""
    size = sum(len(content) for _, content in blocks)
    out = bytearray(frames_module.MAGIC + bytes((0xC0, 7 << 3)) + struct.pack("<Q", size))
    for number, (kind, content) in enumerate(blocks, 1):
        word = len(content) << 3 | kind << 1 | (number == len(blocks))
        out += word.to_bytes(3, "little") + (content[:1] if kind else content)
    return bytes(out)


def some_blocks(rng: random.Random) -> list[Block]:
    """Runs of blocks that are the same, or nearly."""
    found: list[Block] = []
    for _ in range(rng.randint(1, 12)):
        size = rng.choice((2000, 2000, 300, 1))
        block = rng.choice(((1, bytes(size)), (1, b"A" * size), (0, rng.randbytes(size & 0xFF))))
        found += [block] * rng.choice((1, 1, 2, 3, 50))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_runs_of_blocks_are_counted_as_they_are_unpacked(seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"runs {seed}")
    parts = [some_blocks(rng) for _ in range(3)]
    packed = [frame(blocks) * rng.choice((1, 2, 9)) for blocks in parts]
    whole = b"".join(packed)
    with (tmp_path / "disk.img.zst").open("w+b") as file:
        file.write(whole)
        file.flush()
        found = list(frames_of(PackedFile(file.fileno(), len(whole))))
    assert sum(each.length * each.count for each in found) == len(whole)
    at = 0
    for each in found:
        assert (each.place, each.content) == (at, each.most)
        at += each.length * each.count
    assert sum(each.most * each.count for each in found) == len(zstd.decompress(whole))


def test_blocks_of_zeroes_without_end_take_some_reads(tmp_path: Path, reads: Counter[str]) -> None:
    """As `zstd` makes them of an empty disk of 32 GiB: 262,144."""
    block, last = (BLOCK << 3 | 2).to_bytes(3, "little"), (BLOCK << 3 | 3).to_bytes(3, "little")
    image = tmp_path / "disk.img.zst"
    head = frames_module.MAGIC + bytes((0xC0, 7 << 3)) + struct.pack("<Q", 1 << 35)
    image.write_bytes(head + (block + b"\0") * ((1 << 18) - 1) + last + b"\0")
    with tapcore.open(f"zraw:{image}", readonly=True) as disk:
        assert disk.size == 1 << 35
    assert reads["calls"] < 100, reads


def test_an_empty_disk_is_told_by_some_reads(tmp_path: Path, reads: Counter[str]) -> None:
    image = f"zraw:{tmp_path}/disk.raw.zst"
    tapcore.create_image(image, 4 << 30, options={"frame": "256K"})
    with tapcore.open(image, readonly=True) as disk:
        [run] = disk.extents()
        assert (run.start, run.length, run.kind) == (0, 4 << 30, "zero")
    assert reads["calls"] < 100, reads
    assert reads["bytes"] < 3 * (tmp_path / "disk.raw.zst").stat().st_size


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("table", [True, False])
def test_pieces_that_look_alike_are_told_apart(seed: int, table: bool, tmp_path: Path) -> None:
    """Frames of zeroes and of a letter have the same lengths."""
    rng = random.Random(f"alike {seed}")
    kinds = [frame([(1, each * 2000)] * 4) for each in (b"\0", b"A")] + [frame([(1, b"B")])]
    order = [kind for _ in range(20) for kind in [rng.choice(kinds)] * rng.choice((1, 2, 7, 30))]
    contents = [zstd.decompress(kind) for kind in order]
    image = tmp_path / "disk.raw.zst"
    image.write_bytes(seekable(order, list(map(len, contents))) if table else b"".join(order))
    whole = b"".join(contents)
    with tapcore.open(f"zraw:{image}", readonly=True) as disk:
        runs = [run for run in disk.extents() if run.kind == "zero"]
        zeroes = [range(run.start, run.start + run.length) for run in runs]
        assert disk.pread(0, length=disk.size).rstrip(b"\0") == whole.rstrip(b"\0")
    at = 0
    for content in contents:
        sectors = range(-(-at // 512) * 512, (at + len(content)) // 512 * 512)
        if sectors:
            known = any(sectors[0] in run and sectors[-1] in run for run in zeroes)
            assert known == (not content[0])
        at += len(content)


def test_a_table_may_have_frames_without_content(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(300 * KIB)
    packed = frames(content, 100_000, 0, 0, 100_000)
    image = tmp_path / "disk.raw.zst"
    image.write_bytes(seekable(packed, [100_000, 0, 0, 100_000, 300 * KIB - 200_000]))
    assert content_of(image) == content


@pytest.mark.parametrize("seed", range(6))
def test_a_row_of_pieces_is_what_each_alone_makes(seed: int) -> None:
    rng = random.Random(f"row {seed}")
    rows = [
        (rng.randint(1, 9), rng.choice((0, 1, 1 << 20)), rng.choice((1, 2, 40))) for _ in "abcdef"
    ]
    one, several = Pieces(), Pieces()
    place = 0
    for length, content, count in rows:
        several.add(place, length, content, count)
        for _ in range(count):
            one.add(place, length, content)
            place += length
    lengths = array("I", (length for length, _, count in rows for _ in range(count)))
    contents = array("I", (content for _, content, count in rows for _ in range(count)))
    row, end = Pieces.in_a_row(lengths, contents)
    assert end == place
    assert one.pack() == several.pack() == row.pack()
    assert one.largest() == several.largest() == row.largest() == max(contents)
    for index in range(len(one)):
        like = 0
        for after in range(index + 1, len(one)):
            follows = one.places[after] == one.places[after - 1] + one.lengths[index]
            same = one.lengths[after] == one.lengths[index]
            if not (follows and same and one.content(after) == one.content(index)):
                break
            like += 1
        assert one.alike(index, 1000) == like
        assert one.alike(index, 3) == min(like, 3)


def test_parts_of_zeroes_take_no_memory_of_their_own(tmp_path: Path) -> None:
    """New memory for each of them would cost more than to unpack them."""
    (tmp_path / "disk.img.zst").write_bytes(frame([(0, b"some"), *[(1, bytes(BLOCK))] * 40]))
    with (tmp_path / "disk.img.zst").open("rb") as file:
        packed = PackedFile(file.fileno(), (tmp_path / "disk.img.zst").stat().st_size)
        pieces = Pieces()
        pieces.add(0, packed.size, 40 * BLOCK + 4)
        kept = KeptParts(PART, spooled=True)
        layout = ForwardOnly(pieces, lambda _: FrameForward(packed, 0), kept)
        assert layout.unpack(0)[:5] == b"some\0"
        assert layout.unpack(1) is layout.unpack(2)
        assert layout.unpack(1) == bytes(PART)
        layout.close()
