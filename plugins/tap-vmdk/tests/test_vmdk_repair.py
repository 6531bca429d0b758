"""A repair never makes an image worse: whatever is damaged, what could be read can be read after.

`TAPCORE_THOROUGH=10` looks at ten times as many damaged images.
"""

import contextlib
import itertools
import os
import random
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from vmdkharm import harm, piece_of, write
from vmdkmutator import KINDS, damage, make

import tapcore
from peers import peer
from tapcore.tools.check import check_image
from vmdkwriters import descriptor, hosted

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
IMAGES = 25 * THOROUGH
"""Damaged images that still open, of all kinds together."""
BASE_CID = 0x12345678


@pytest.mark.timeout(120 * THOROUGH)
def test_repair_never_makes_a_damaged_image_worse(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    (tmp_path / "base.vmdk").write_bytes(
        hosted(
            rng.randbytes(1024 * 512),
            text=descriptor("monolithicSparse", ['RW 1024 SPARSE "base.vmdk"']),
        )
    )
    statistics: Counter[str] = Counter()
    wrong: list[str] = []
    for number in itertools.count():
        if statistics["opened"] >= IMAGES:
            break
        seed = rng.getrandbits(64)
        mine = random.Random(seed)
        kind = KINDS[number % len(KINDS)]
        made = make(kind, mine, BASE_CID)
        (sectors,) = struct.unpack_from("<Q", made.raw, 12)
        damage(made, mine)
        image = write(tmp_path, made, sectors)
        statistics["made"] += 1
        if found := harm(image, made.grain, statistics):
            wrong.append(f"{kind} of seed {seed}: {found}")
    print(dict(statistics))
    assert not wrong, "\n".join(wrong)
    assert statistics["changed"]


# ---- what was found ------------------------------------------------------------------------------


def two_places(folder: Path, rng: random.Random) -> tuple[Path, list[bytes]]:
    """A disk of 64 MiB with a grain at its start and one at 40 MiB, and both grains."""
    image = folder / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", 64 << 20)
    grains = [rng.randbytes(65536), rng.randbytes(65536)]
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, grains[0])
        disk.pwrite(40 << 20, grains[1])
    return image, grains


def poke(image: Path, offset: int, content: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def held(image: Path) -> list[bytes]:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return [disk.pread(at, length=65536) for at in (0, 40 << 20)]


def in_order(image: Path) -> None:
    found = check_image(f"vmdk:{image}")
    assert (found.corruptions, found.check_errors) == (0, 0), found.messages
    subprocess.run([peer("qemu-img"), "check", str(image)], check=True, capture_output=True)


def test_a_redundant_directory_entry_that_names_a_grain(tmp_path: Path, rng: random.Random) -> None:
    image, grains = two_places(tmp_path, rng)
    (rgd,) = struct.unpack_from("<Q", image.read_bytes(), 48)
    poke(image, rgd * 512 + 4, struct.pack("<I", 128))
    assert held(image) == grains
    result = check_image(f"vmdk:{image}", repair="all")
    assert (result.corruptions, result.corruptions_fixed > 0) == (0, True)
    assert held(image) == grains
    in_order(image)


@pytest.mark.parametrize("place", [1, 5, 20, 0, 1 << 40])
def test_a_redundant_directory_that_lies_over_the_descriptor(
    tmp_path: Path, rng: random.Random, place: int
) -> None:
    image, grains = two_places(tmp_path, rng)
    descriptor_before = image.read_bytes()[512 : 21 * 512]
    poke(image, 48, struct.pack("<Q", place))
    assert held(image) == grains
    with pytest.raises(tapcore.ImageFormatError, match="check --repair all"):
        tapcore.open(f"vmdk:{image}", readonly=False)
    result = check_image(f"vmdk:{image}", repair="all")
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert image.read_bytes()[512 : 21 * 512] == descriptor_before
    assert held(image) == grains
    in_order(image)


def test_a_first_directory_that_lies_over_the_descriptor_is_not_read(
    tmp_path: Path, rng: random.Random
) -> None:
    image, grains = two_places(tmp_path, rng)
    poke(image, 56, struct.pack("<Q", 2))
    assert held(image) == grains
    assert check_image(f"vmdk:{image}", repair="all").corruptions == 0
    assert held(image) == grains
    in_order(image)


def test_grains_that_only_the_redundant_table_knows_are_kept(
    tmp_path: Path, rng: random.Random
) -> None:
    image, grains = two_places(tmp_path, rng)
    gd = struct.unpack_from("<Q", image.read_bytes(), 56)[0] * 512
    first = struct.unpack_from("<I", image.read_bytes(), gd)[0] * 512
    lost = image.read_bytes()[first : first + 4]
    poke(image, first, bytes(4))
    raw = image.read_bytes()
    assert held(image) == [bytes(65536), grains[1]]
    result = check_image(f"vmdk:{image}", repair="all")
    assert result.corruptions == 1, "which of the two tables is right cannot be told"
    assert image.read_bytes() == raw, "where it cannot help it changes nothing"
    poke(image, first, lost)
    assert held(image) == grains


def test_what_a_lost_table_may_refer_to_is_not_given_back(
    tmp_path: Path, rng: random.Random
) -> None:
    image, grains = two_places(tmp_path, rng)
    raw = image.read_bytes()
    rgd, gd = (place * 512 for place in struct.unpack_from("<QQ", raw, 48))
    for directory in (rgd, gd):
        poke(image, directory + 4, struct.pack("<I", 1 << 28))
    result = check_image(f"vmdk:{image}", repair="all")
    assert (result.corruptions, result.leaks) == (0, 1)
    assert any("was kept" in message for message in result.messages)
    assert grains[1] in image.read_bytes()


def test_a_repair_changes_no_content_id(tmp_path: Path, rng: random.Random) -> None:
    """The content is the same, and children of the image must go on to open."""
    image, _ = two_places(tmp_path, rng)
    tapcore.create_image(f"vmdk:{tmp_path}/child.vmdk", None, parent="vmdk:disk.vmdk")
    (rgd,) = struct.unpack_from("<Q", image.read_bytes(), 48)
    poke(image, rgd * 512 + 4, struct.pack("<I", 128))
    assert check_image(f"vmdk:{image}", repair="all").corruptions_fixed
    with tapcore.open(f"vmdk:{tmp_path}/child.vmdk", readonly=True) as disk:
        assert disk.pread(0, length=512) != bytes(512)


@pytest.mark.parametrize("where", ["metadata", "grain", "nowhere"])
@pytest.mark.parametrize("which", [0, 1])
def test_ordinary_writes_keep_off_what_a_damaged_entry_names(
    tmp_path: Path, rng: random.Random, which: int, where: str
) -> None:
    """Of a directory: a table is written only where surely nothing else lies."""
    image, grains = two_places(tmp_path, rng)
    raw = image.read_bytes()
    places = struct.unpack_from("<QQ", raw, 48)
    named = {"metadata": places[1 - which], "grain": 128, "nowhere": 1 << 30}[where]
    poke(image, places[which] * 512 + 4, struct.pack("<I", named))
    before = held_or_not(image)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for at in (50 << 20, 30 << 20, 45 << 20, 100):
            with contextlib.suppress(tapcore.TapError):
                disk.pwrite(at, b"new" if at > 65536 else grains[0][100:103])
    for old, new in zip(before, held_or_not(image), strict=True):
        assert old is None or old == new
    assert image.read_bytes()[128 * 512 : 129 * 512] == grains[0][:512]
    assert image.read_bytes()[21 * 512 - 9000 : 21 * 512 - 8000] == raw[21 * 512 - 9000 :][:1000]


def held_or_not(image: Path) -> list[bytes | None]:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return [piece_of(disk, at, 65536) for at in (0, 40 << 20)]


def test_nothing_is_written_through_an_entry_that_names_metadata(
    tmp_path: Path, rng: random.Random
) -> None:
    image, _ = two_places(tmp_path, rng)
    raw = image.read_bytes()
    for directory in struct.unpack_from("<QQ", raw, 48):
        (table,) = struct.unpack_from("<I", raw, directory * 512)
        poke(image, table * 512, struct.pack("<I", 22))
    damaged = image.read_bytes()
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for change in (
            lambda: disk.pwrite(0, b"x" * 65536),
            lambda: disk.zero(0, length=65536),
            lambda: disk.discard(0, length=65536),
        ):
            with pytest.raises(tapcore.TapError):
                change()
    assert image.read_bytes()[21 * 512 : 64 * 512] == damaged[21 * 512 : 64 * 512]
    before = held(image)
    assert check_image(f"vmdk:{image}", repair="all").corruptions == 0
    assert held(image) == before
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 65536)
    in_order(image)


def test_an_entry_of_1_means_nothing_where_there_are_no_zeroed_grains(
    tmp_path: Path, rng: random.Random
) -> None:
    """Not even in an extent, whose first sectors hold no descriptor."""
    content = rng.randbytes(3 * 65536)
    image = tmp_path / "disk.vmdk"
    raw = bytearray(hosted(content))
    (gd,) = struct.unpack_from("<Q", raw, 56)
    (table,) = struct.unpack_from("<I", raw, gd * 512)
    struct.pack_into("<I", raw, table * 512 + 4, 1)
    image.write_bytes(raw)
    for _ in range(2):
        with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
            assert disk.pread(0, length=disk.size) == content
        assert check_image(f"vmdk:{image}", repair="all").corruptions == 0


def test_a_first_directory_does_not_become_empty_by_a_repair(tmp_path: Path) -> None:
    """An empty one gives way to the redundant one: the disk would read otherwise than before."""
    made = make("monolithicSparse", random.Random(1))
    rgd, gd = made.directories
    count = len(made.tables) // 2
    struct.pack_into(f"<{count}I", made.raw, gd, 1 << 30, *[0] * (count - 1))
    struct.pack_into("<I", made.raw, rgd, 1 << 30)
    image = write(tmp_path, made, 0)
    statistics: Counter[str] = Counter()
    assert not harm(image, made.grain, statistics)
    assert statistics["changed"]


@pytest.mark.parametrize("word", [b"version=", b"CID=", b"parentCID=", b"createType=", b"# Extent"])
@pytest.mark.parametrize("kind", ["monolithicSparse", "child"])
def test_a_descriptor_that_a_zero_byte_cuts_is_not_written_anew(
    tmp_path: Path, kind: str, word: bytes
) -> None:
    """What lies behind that byte is the rest of it, of which QEMU reads some."""
    text = descriptor("monolithicSparse", ['RW 1024 SPARSE "base.vmdk"'])
    (tmp_path / "base.vmdk").write_bytes(hosted(bytes(1024 * 512), text=text))
    made = make(kind, random.Random(2), BASE_CID)
    made.raw[made.raw.index(word) + len(word) - 1] = 0
    image = write(tmp_path, made, 0)
    statistics: Counter[str] = Counter()
    assert not harm(image, made.grain, statistics)
    assert image.read_bytes() == made.raw
    if statistics["opened"]:
        assert any("zero byte" in each for each in check_image(f"vmdk:{image}").messages)


def test_a_descriptor_that_ends_past_its_room_is_not_written_anew(tmp_path: Path) -> None:
    made = make("child", random.Random(2), BASE_CID)
    made.raw[512:1024] = made.raw[512:1024].replace(b'ddb.adapterType = "ide"', b"#" * 512)[:512]
    made.raw[made.raw.index(b"RW ")] = ord("X")
    struct.pack_into("<Q", made.raw, 36, 1)
    image = write(tmp_path, made, 0)
    found = check_image(f"vmdk:{image}", repair="all")
    assert (found.corruptions, found.corruptions_fixed) == (1, 0)
    assert image.read_bytes() == made.raw
