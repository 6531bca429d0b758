"""check and repair: what is wrong with the tables of sparse files, and what is left of it."""

import contextlib
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tapcore
from peers import peer
from tapcore.interface.results import CheckResult
from tapcore.tools.check import Repair, check_image
from vmdkwriters import GRAIN, descriptor, hosted, stream

GRAINS = 12


def content_of(rng: random.Random) -> bytes:
    return rng.randbytes(GRAINS * GRAIN)


def with_descriptor(content: bytes, sectors: int | None = None, **how: Any) -> bytes:
    sectors = len(content) // 512 if sectors is None else sectors
    text = descriptor("monolithicSparse", [f'RW {sectors} SPARSE "disk.vmdk"'])
    return hosted(content, text=text, **how)


def places(raw: bytes | bytearray) -> tuple[int, int]:
    """Offsets of the first table of the first and of the redundant directory."""
    rgd, gd = struct.unpack_from("<QQ", raw, 48)
    first, second = (struct.unpack_from("<I", raw, at * 512)[0] * 512 for at in (gd, rgd))
    return first, second


def read(image: Path) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


def readable(image: Path) -> dict[int, bytes]:
    """The grains that can be read."""
    found = {}
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        for number in range(GRAINS):
            with contextlib.suppress(tapcore.TapError):
                found[number] = disk.pread(number * GRAIN, length=GRAIN)
    return found


def repaired(image: Path, repair: Repair = "all") -> CheckResult:
    result = check_image(f"vmdk:{image}", repair=repair)
    again = check_image(f"vmdk:{image}")
    assert (again.corruptions, again.leaks) == (result.corruptions, result.leaks)
    subprocess.run([peer("qemu-img"), "check", str(image)], check=True, capture_output=True)
    return result


def test_a_good_image_is_clean(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(with_descriptor(content_of(rng)))
    before = image.read_bytes()
    result = check_image(f"vmdk:{image}", repair="all")
    assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
    assert (result.total_clusters, result.allocated_clusters) == (GRAINS, GRAINS)
    assert result.image_end_offset == len(before)
    assert image.read_bytes() == before


def test_entries_past_the_end_are_taken_from_the_other_directory(
    tmp_path: Path, rng: random.Random
) -> None:
    content = content_of(rng)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(with_descriptor(content, damage_table=3))
    found = check_image(f"vmdk:{image}")
    assert found.corruptions == 2  # the entry, and that the tables disagree
    assert any("outside the file" in message for message in found.messages)
    result = repaired(image)
    assert (result.corruptions, result.corruptions_fixed) == (0, 2)
    assert read(image) == content


def test_entries_past_the_end_in_both_directories_become_holes(
    tmp_path: Path, rng: random.Random
) -> None:
    content = bytearray(content_of(rng))
    raw = bytearray(with_descriptor(bytes(content)))
    for place in places(raw):
        raw[place + 8 : place + 12] = b"\xff\xff\xff\x7f"
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    result = repaired(image)
    assert result.corruptions == 0
    content[2 * GRAIN : 3 * GRAIN] = bytes(GRAIN)
    assert read(image) == content


def test_grains_that_overlap_get_places_of_their_own(tmp_path: Path, rng: random.Random) -> None:
    content = bytearray(content_of(rng))
    raw = bytearray(with_descriptor(bytes(content)))
    for place in places(raw):
        raw[place + 8 : place + 12] = raw[place : place + 4]
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    found = check_image(f"vmdk:{image}")
    assert found.corruptions == 1
    assert "overlaps" in found.messages[0]
    result = repaired(image)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    content[2 * GRAIN : 3 * GRAIN] = content[:GRAIN]
    assert read(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"mine")
        assert disk.pread(2 * GRAIN, length=GRAIN) == content[:GRAIN]


def test_a_grain_at_an_odd_place_that_overlaps_is_found(tmp_path: Path, rng: random.Random) -> None:
    raw = bytearray(with_descriptor(content_of(rng)))
    for place in places(raw):
        (entry,) = struct.unpack_from("<I", raw, place)
        struct.pack_into("<I", raw, place, entry - 1)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    assert check_image(f"vmdk:{image}").corruptions == 1


def test_a_grain_that_overlaps_the_tables_is_found(tmp_path: Path, rng: random.Random) -> None:
    raw = bytearray(with_descriptor(content_of(rng)))
    for place in places(raw):
        struct.pack_into("<I", raw, place, 24)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    assert check_image(f"vmdk:{image}").corruptions


def test_directories_that_disagree(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng)
    raw = bytearray(with_descriptor(content))
    _, spare = places(raw)
    raw[spare + 16 : spare + 20] = bytes(4)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    found = check_image(f"vmdk:{image}")
    assert found.corruptions == 1
    assert found.messages == ["the two grain tables 0 disagree"]
    assert repaired(image).corruptions == 0
    first, second = places(image.read_bytes())
    after = image.read_bytes()
    assert after[first : first + 2048] == after[second : second + 2048]
    assert read(image) == content


def test_a_damaged_directory_entry_gets_a_new_table(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(with_descriptor(content, damage_entry=True))
    assert check_image(f"vmdk:{image}").corruptions == 1
    result = repaired(image)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert read(image) == content


def test_a_directory_outside_the_file_is_made_anew(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(with_descriptor(content, damage_gd=True))
    with pytest.raises(tapcore.ImageFormatError, match="check --repair all"):
        tapcore.open(f"vmdk:{image}", readonly=False)
    found = check_image(f"vmdk:{image}")
    assert found.corruptions == 1
    assert "directory lies outside" in found.messages[0]
    result = repaired(image)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert read(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"new")
    assert read(image) == b"new" + content[3:]


def test_leaked_grains_are_given_back(tmp_path: Path, rng: random.Random) -> None:
    content = bytearray(content_of(rng))
    raw = bytearray(with_descriptor(bytes(content)))
    for place in places(raw):  # the last grains lie first in the file
        raw[place : place + 4] = bytes(4)
        raw[place + 20 : place + 24] = bytes(4)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    found = check_image(f"vmdk:{image}")
    assert (found.corruptions, found.leaks) == (0, 2)
    length, occupied = image.stat().st_size, image.stat().st_blocks
    result = repaired(image, "leaks")
    assert (result.leaks, result.leaks_fixed) == (0, 2)
    assert image.stat().st_size == length - GRAIN
    assert image.stat().st_blocks * 512 <= occupied * 512 - 2 * GRAIN
    content[:GRAIN] = bytes(GRAIN)
    content[5 * GRAIN : 6 * GRAIN] = bytes(GRAIN)
    assert read(image) == content


def test_descriptor_and_header_disagree_on_the_size(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(with_descriptor(content, sectors=7))
    found = check_image(f"vmdk:{image}")
    assert found.corruptions == 1
    assert "the descriptor says 7 sectors" in found.messages[0]
    assert repaired(image).corruptions == 0
    assert read(image) == content


def test_an_embedded_extent_line_that_makes_no_sense(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(with_descriptor(content).replace(b"RW 1536 SPARSE", b"RW zzzz SPARSE"))
    assert read(image) == content  # what counts is the header
    assert check_image(f"vmdk:{image}").corruptions == 1
    result = repaired(image)
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert b"RW 1536 SPARSE" in image.read_bytes()


def test_extents_that_do_not_fit_their_descriptor(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vmdk"
    (tmp_path / "a.vmdk").write_bytes(hosted(rng.randbytes(4096)))
    lines = ['RW 8 SPARSE "a.vmdk"', 'RW 9 SPARSE "a.vmdk"', 'RW 1 FLAT "missing" 0']
    image.write_bytes(descriptor("custom", lines))
    found = check_image(f"vmdk:{image}")
    assert (found.corruptions, found.check_errors) == (1, 1)
    assert found.allocated_clusters == 1


def test_a_damaged_extent_of_a_split_disk_is_repaired(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng)
    image = tmp_path / "disk.vmdk"
    (tmp_path / "a.vmdk").write_bytes(hosted(content, damage_table=1))
    line = f'RW {len(content) // 512} SPARSE "a.vmdk"'
    image.write_bytes(descriptor("twoGbMaxExtentSparse", [line]))
    assert check_image(f"vmdk:{image}").corruptions == 2
    assert repaired(image).corruptions == 0
    assert read(image) == content


def test_streams(tmp_path: Path, rng: random.Random) -> None:
    content = content_of(rng)
    line = f'RDONLY {len(content) // 512} SPARSE "s.vmdk"'
    raw = bytearray(stream(content, text=descriptor("streamOptimized", [line])))
    image = tmp_path / "disk.vmdk"
    image.write_bytes(raw)
    found = check_image(f"vmdk:{image}")
    assert (found.corruptions, found.leaks) == (0, 0)
    assert (found.allocated_clusters, found.compressed_clusters) == (GRAINS, GRAINS)
    raw[128 * 512] ^= 1  # of a grain, its sector
    image.write_bytes(raw)
    found = check_image(f"vmdk:{image}")
    assert found.corruptions == 1
    assert "damaged marker" in found.messages[0]


def test_what_we_write_is_clean(tmp_path: Path, rng: random.Random) -> None:
    for kind in ("monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"):
        image = tmp_path / f"{kind}.vmdk"
        tapcore.create_image(f"vmdk:{image}", 70 << 20, options={"subformat": kind})
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            for at in range(0, 70 << 20, 5 << 20):
                disk.pwrite(at, rng.randbytes(GRAIN))
        found = check_image(f"vmdk:{image}")
        assert (found.corruptions, found.leaks, found.check_errors) == (0, 0, 0), found.messages


@pytest.mark.parametrize("repair", ["leaks", "all"])
def test_repair_of_random_damage_ends(tmp_path: Path, rng: random.Random, repair: Repair) -> None:
    good = with_descriptor(content_of(rng))
    first, second = places(good)
    image = tmp_path / "disk.vmdk"
    for _ in range(30):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            at = rng.choice((first, second)) + 4 * rng.randrange(GRAINS + 4)
            value = rng.choice((0, 1, 24, 300, 1 << 31, rng.randrange(len(good) // 512)))
            struct.pack_into("<I", raw, at, value)
        image.write_bytes(raw)
        before = readable(image)
        result = check_image(f"vmdk:{image}", repair=repair)
        again = check_image(f"vmdk:{image}")
        assert (again.corruptions, again.leaks) == (result.corruptions, result.leaks)
        assert before.items() <= readable(image).items()
