"""What `check` finds, and what it makes of it."""

import os
import random
import struct
from pathlib import Path

import attrs
import pytest

import tapcore
from tap_vhd.footer import unpack_footer
from tapcore import CheckResult
from tapcore.testkit import Recording
from tapcore.tools.check import check_image
from vhdtools import FOOTER, KIB, MIB, content_of, make, problems

BLOCK = 64 * KIB
TABLE_AT = 1536
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


def image_with_content(path: Path, rng: random.Random) -> bytes:
    """Ten blocks of sixteen, with content, which is returned."""
    make(path, MIB, BLOCK)
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        for block in rng.sample(range(16), 10):
            disk.pwrite(block * BLOCK, rng.randbytes(BLOCK))
        return disk.pread(0, length=MIB)


def check(path: Path, repair: str = "") -> CheckResult:
    return check_image(f"vhd:{path}", repair=repair)  # type: ignore[arg-type]


def counts(result: CheckResult) -> tuple[int, int, int, int]:
    return result.corruptions, result.corruptions_fixed, result.leaks, result.leaks_fixed


def entries_of(path: Path) -> list[int]:
    return list(struct.unpack_from(">16I", path.read_bytes(), TABLE_AT))


def set_entry(path: Path, block: int, entry: int) -> None:
    with open(path, "r+b") as file:
        file.seek(TABLE_AT + 4 * block)
        file.write(struct.pack(">I", entry))


def stored(path: Path) -> list[int]:
    """Blocks that are stored, in the order in which they lie."""
    entries = entries_of(path)
    return sorted((at for at in range(16) if entries[at] != 0xFFFFFFFF), key=entries.__getitem__)


def test_nothing_is_wrong(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vhd"
    image_with_content(image, rng)
    before = image.read_bytes()
    for repair in ("", "leaks", "all"):
        result = check(image, repair)
        assert counts(result) == (0, 0, 0, 0)
        assert (result.total_clusters, result.allocated_clusters) == (16, 10)
        assert result.image_end_offset == len(before) - FOOTER
        assert not result.messages
    assert image.read_bytes() == before


def test_a_fixed_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.vhd"
    tapcore.create_image(f"vhd:{image}", MIB, options={"subformat": "fixed"})
    assert counts(check(image, "all")) == (0, 0, 0, 0)


@pytest.mark.parametrize("which", ["front", "end", "gone"])
def test_a_footer_that_is_damaged(which: str, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vhd"
    want = image_with_content(image, rng)
    content = bytearray(image.read_bytes())
    content[50 if which == "front" else -FOOTER + 50] ^= 1
    image.write_bytes(content[:-FOOTER] if which == "gone" else content)
    assert counts(check(image))[:2] == (1, 0)
    assert counts(check(image, "all"))[:3] == (0, 1, 0)
    assert not problems(image.read_bytes(), closed=True)
    assert content_of(image) == want


@pytest.mark.parametrize("sectors", [0, 1, 40])
def test_blocks_that_lie_over_others(sectors: int, tmp_path: Path, rng: random.Random) -> None:
    """They are copied as they read."""
    image = tmp_path / "disk.vhd"
    image_with_content(image, rng)
    order = stored(image)
    set_entry(image, order[7], entries_of(image)[order[2]] + sectors)
    want = content_of(image)
    with (
        tapcore.open(f"vhd:{image}", readonly=False) as disk,
        pytest.raises(tapcore.TapError, match="overlap"),
    ):
        disk.pwrite(0, b"x")
    assert counts(check(image))[0] == 1
    assert counts(check(image, "all"))[:3] == (0, 1, 0)
    assert content_of(image) == want
    assert not problems(image.read_bytes(), closed=True)
    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x")


def test_what_cannot_be_mended_stays(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vhd"
    image_with_content(image, rng)
    order = stored(image)
    set_entry(image, order[0], 1)
    set_entry(image, order[1], 1 << 24)
    before = image.read_bytes()
    result = check(image, "all")
    assert counts(result)[:2] == (2, 0)
    assert len(result.messages) == 2
    assert image.read_bytes() == before


def test_places_that_nothing_lies_in(tmp_path: Path, rng: random.Random) -> None:
    """As a crash leaves them, inside and at the end."""
    image = tmp_path / "disk.vhd"
    want, order = bytearray(image_with_content(image, rng)), stored(image)
    length = image.stat().st_size
    for block in (order[0], order[4], order[9]):
        set_entry(image, block, 0xFFFFFFFF)
        want[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
    assert counts(check(image)) == (0, 0, 3, 0)
    assert counts(check(image, "leaks")) == (0, 0, 0, 3)
    assert content_of(image) == want
    assert image.stat().st_size <= length - 3 * BLOCK
    assert not problems(image.read_bytes(), closed=True)


def test_what_xenserver_keeps_before_the_first_block_stays(
    tmp_path: Path, rng: random.Random
) -> None:
    image = tmp_path / "disk.vhd"
    image_with_content(image, rng)
    content = image.read_bytes()
    footer = attrs.evolve(unpack_footer(content[:FOOTER]), creator=b"tap\0", creator_version=3)
    image.write_bytes(footer.pack() + content[FOOTER:-FOOTER] + footer.pack())
    before = content[2048 : 2048 + BLOCK]
    for block in stored(image):
        set_entry(image, block, 0xFFFFFFFF)
        check(image, "leaks")
        assert image.read_bytes()[2048 : 2048 + BLOCK] == before
    assert not problems(image.read_bytes(), closed=True)


@pytest.mark.parametrize("what", ["gaps", "overlaps"])
def test_a_crash_while_it_is_repaired(what: str, tmp_path: Path, rng: random.Random) -> None:
    image, copy = tmp_path / "disk.vhd", tmp_path / "crashed.vhd"
    image_with_content(image, rng)
    order = stored(image)
    for block in (order[1], order[5], order[8]):
        entry = 0xFFFFFFFF if what == "gaps" else entries_of(image)[order[2]] + 8
        set_entry(image, block, entry)
    want = content_of(image)
    with Recording(image) as recording:
        result = check(image, "all")
    assert counts(result)[::2] == (0, 0)
    for state in (*recording.prefixes(), *recording.states(rng, 20 * THOROUGH)):
        state.write({image: copy})
        assert content_of(copy) == want, str(state)
    assert not problems(image.read_bytes(), closed=True)
