"""A header that lost its descriptor's place, and a second damage: an entry that points into it.

Where a grain lies in a descriptor that nothing names, that must be told before the repair as after.
`TAPCORE_THOROUGH=10` looks at ten times as many damaged images.
"""

import itertools
import os
import random
import struct
from collections import Counter
from pathlib import Path

import pytest
from vmdkharm import harm, write
from vmdkmutator import KINDS, Layout, damage, make

import tapcore
from tapcore.tools.check import check_image
from vmdkwriters import descriptor, hosted

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
IMAGES = 25 * THOROUGH
GRAIN = 65536
PLACE = 28
"""Of `descriptorOffset` and `descriptorSize` in the header."""
DIRECTORIES = 48
"""Of `rgdOffset` and `gdOffset`."""
UNNAMED = [(0, 20), (1, 0), (0, 0), (5, 3)]
INSIDE = [1, 2, 8, 20]
"""Sectors of the descriptor: its text, and the zeroes behind it."""


def unnamed(content: bytes, place: tuple[int, int]) -> bytearray:
    text = descriptor("monolithicSparse", [f'RW {len(content) // 512} SPARSE "disk.vmdk"'])
    raw = bytearray(hosted(content, text=text))
    struct.pack_into("<QQ", raw, PLACE, *place)
    return raw


def entries(raw: bytes | bytearray, level: str) -> tuple[int, int]:
    """Where the first entries lie (bytes), of the first and of the redundant directory or table."""
    rgd, gd = (at * 512 for at in struct.unpack_from("<QQ", raw, DIRECTORIES))
    if level == "directory":
        return gd, rgd
    first, other = (struct.unpack_from("<I", raw, at)[0] * 512 for at in (gd, rgd))
    return first, other


def reads(image: Path) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


@pytest.mark.parametrize("place", UNNAMED)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("level", ["table", "directory", "header"])
def test_what_one_copy_has_in_the_descriptor_is_read_from_the_other(
    tmp_path: Path,
    rng: random.Random,
    level: str,
    which: int,
    inside: int,
    place: tuple[int, int],
) -> None:
    content = rng.randbytes(3 * GRAIN)
    raw = unnamed(content, place)
    if level == "header":
        struct.pack_into("<Q", raw, DIRECTORIES + 8 * (1 - which), inside)
    else:
        struct.pack_into("<I", raw, entries(raw, level)[which], inside)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    before = reads(image)
    assert before == content
    assert not harm(image, GRAIN, Counter())
    assert reads(image) == before
    assert struct.unpack_from("<Q", image.read_bytes(), PLACE) == (1,)


@pytest.mark.parametrize("place", UNNAMED)
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("level", ["table", "directory"])
def test_what_both_copies_have_there_is_no_grain_and_is_told(
    tmp_path: Path, rng: random.Random, level: str, inside: int, place: tuple[int, int]
) -> None:
    content = rng.randbytes(3 * GRAIN)
    raw = unnamed(content, place)
    for at in entries(raw, level):
        struct.pack_into("<I", raw, at, inside)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    if level == "table":
        with pytest.raises(tapcore.TapError, match="impossible entry"):
            reads(image)
    assert check_image(f"vmdk:{image}").corruptions > 1, "the header's and the entry's"
    assert not harm(image, GRAIN, Counter())
    assert b"# Disk DescriptorFile" in image.read_bytes()[512:]


def lose_the_place(made: Layout, rng: random.Random) -> None:
    """Damage the header's place of the descriptor, and something that points there."""
    place = rng.choice(
        ((0, 20), (1, 0), (0, 0), (0, rng.getrandbits(64)), (rng.randrange(3, 19), 2), (20, 1))
    )
    struct.pack_into("<QQ", made.raw, PLACE, *place)
    for _ in range(rng.choice((1, 1, 2, 3))):
        inside = rng.randrange(1, 22)
        what = rng.random()
        if what < 0.4:
            struct.pack_into("<I", made.raw, rng.choice(made.words), inside)
        elif what < 0.7:
            few = made.words[: len(made.tables)]  # of the directories
            struct.pack_into("<I", made.raw, rng.choice(few or made.words), inside)
        elif what < 0.8:
            field = rng.choice((DIRECTORIES, DIRECTORIES + 8, 64))
            struct.pack_into("<Q", made.raw, field, inside)
        else:
            damage(made, rng)


@pytest.mark.timeout(120 * THOROUGH)
def test_repair_of_a_lost_place_and_more_harms_nothing(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    text = descriptor("monolithicSparse", ['RW 1024 SPARSE "base.vmdk"'])
    (tmp_path / "base.vmdk").write_bytes(hosted(rng.randbytes(1024 * 512), text=text))
    statistics: Counter[str] = Counter()
    wrong: list[str] = []
    kinds = [kind for kind in KINDS if kind != "extent"]
    for number in itertools.count():
        if statistics["opened"] >= IMAGES:
            break
        seed = rng.getrandbits(64)
        mine = random.Random(seed)
        kind = kinds[number % len(kinds)]
        made = make(kind, mine, 0x12345678)
        lose_the_place(made, mine)
        image = write(tmp_path, made, 0)
        statistics["made"] += 1
        if found := harm(image, made.grain, statistics):
            wrong.append(f"{kind} of seed {seed}: {found}")
    print(dict(statistics))
    assert not wrong, "\n".join(wrong)
    assert statistics["changed"]
