"""Images that are damaged, at random in every structure and on purpose.

Nothing but TapError and OSError comes of them; no hang, no flood of memory; and a table of the
image is never overwritten with data, or given up.
"""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import tapcore
from qcow2damage import HEADER_FIELDS, LAYOUTS, damages, extreme_values, with_field
from qcow2tools import checked, qemu_img
from qcow2trials import change_a_cluster, read_it, tables_are_whole, try_everything, watched
from qcow2walk import COMPRESSED, COPIED, Walk, walk
from tapcore.errors import TapError
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

# ---- damage at random ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_anywhere(
    layout: str, good: Callable[[str], Walk], tmp_path: Path, rng: random.Random
) -> None:
    """Whatever is changed; and what a repair calls whole is whole for QEMU as well."""
    image = tmp_path / "bad.qcow2"
    image.write_bytes(good(layout).content)
    try_everything(image, rng, "nothing wrong")  # one-time costs
    count = (4 if layout == "luks" else 14) * THOROUGH  # deriving its key takes time
    for number, damage in enumerate(damages(good(layout), rng, count)):
        image.write_bytes(damage.content)
        whole = try_everything(image, rng, f"{damage.what} (number {number})")
        if whole and number % 4 == 0:
            assert_whole(image, damage.what)


def assert_whole(image: Path, what: str) -> None:
    """QEMU finds nothing wrong with an image, if it knows it at all."""
    with suppress(AssertionError):
        qemu_img("info", "-f", "qcow2", image)
        said = checked(image)
        if said.get("corruptions") or said.get("leaks"):
            pytest.fail(f"repaired, and QEMU says {said}, of an image with {what}")


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_every_header_field_at_its_limits(
    field: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """0, 1, the sign bit, all bits, past the end of the file, over another structure."""
    image = tmp_path / "bad.qcow2"
    for layout in ("default", "512"):
        image.write_bytes(good(layout).content)
        read_it(image)
        for value in extreme_values(good(layout), HEADER_FIELDS[field][1]):
            image.write_bytes(with_field(good(layout).content, field, value))
            what = f"an image with {field} = {value:#x}"
            with watched(f"inspecting {what}", seconds=4.0):
                inspect_image(f"qcow2:{image}")
            with watched(f"reading {what}", seconds=4.0):
                read_it(image)
            with watched(f"checking {what}", seconds=4.0):
                check_image(f"qcow2:{image}")


def test_an_image_cut_off_anywhere(
    good: Callable[[str], Walk], tmp_path: Path, rng: random.Random
) -> None:
    image = tmp_path / "cut.qcow2"
    content = good("512").content
    lengths = {*range(0, 130, 7), *(rng.randrange(len(content)) for _ in range(15 * THOROUGH))}
    for length in sorted(lengths):
        image.write_bytes(content[:length])
        try_everything(image, rng, f"{length} bytes of {len(content)}")


# ---- tables that cannot be true -----------------------------------------------------------------


def test_tables_that_point_to_themselves(
    good: Callable[[str], Walk], tmp_path: Path, rng: random.Random
) -> None:
    """An L1 entry that points to the L1 table, an L2 table or a refcount block shared by all."""
    found = good("512")
    l1, tables = found.l1_offset, [p.offset for p in found.places if "L2 table" in p.name]
    image = tmp_path / "bad.qcow2"
    for target in (l1, found.reftable_offset, 0, tables[0], found.snapshots_offset):
        content = bytearray(found.content)
        entry = (target | COPIED).to_bytes(8, "big")
        content[l1 : l1 + found.l1_size * 8] = entry * found.l1_size
        image.write_bytes(content)
        try_everything(image, rng, f"all L1 entries at {target:#x}")
        content = bytearray(found.content)
        count = found.reftable_clusters << (found.bits - 3)
        at = found.reftable_offset
        content[at : at + count * 8] = target.to_bytes(8, "big") * count
        image.write_bytes(content)
        try_everything(image, rng, f"all refcount table entries at {target:#x}")


BAD_ENTRIES = {
    "unaligned": 0x200 | COPIED,
    "past-the-end": (1 << 50) | COPIED,
    "past-the-end-and-shared": 1 << 50,
    "compressed-past-the-end": COMPRESSED | 1 << 50,
}


def with_bad_entry(found: Walk, bad: str) -> bytes:
    """The L2 entry of the third cluster is not possible."""
    table = next(place for place in found.places if place.name.startswith("L2 table 0"))
    at = table.offset + 8 * found.words * 2
    return found.content[:at] + BAD_ENTRIES[bad].to_bytes(8, "big") + found.content[at + 8 :]


@pytest.mark.parametrize("layout", ["default", "extended", "v2"])
@pytest.mark.parametrize("bad", BAD_ENTRIES)
def test_an_impossible_entry_is_not_read(
    bad: str, layout: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_bad_entry(good(layout), bad))
    at = 2 * good(layout).cluster
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, length=512)
        if bad.startswith("past") and layout == "extended":  # none of its subclusters is data
            assert not any(disk.pread(at, length=512))
        else:
            with pytest.raises(TapError, match=f"bad.qcow2: read failed at {at}: .*0x"):
                disk.pread(at, length=512)


@pytest.mark.parametrize("what", ["write", "part", "zero", "keep", "discard"])
@pytest.mark.parametrize("layout", ["default", "extended", "v2"])
@pytest.mark.parametrize("bad", BAD_ENTRIES)
def test_an_impossible_entry_is_not_made_worse(
    bad: str, layout: str, what: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """Changing that cluster does not overwrite or give up what others refer to."""
    cluster = good(layout).cluster
    content = with_bad_entry(good(layout), bad)
    image = tmp_path / "bad.qcow2"
    image.write_bytes(content)
    with watched(f"a {what}"), tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        change_a_cluster(disk, 2 * cluster, cluster, what)
    tables_are_whole(image, content)
    assert set(walk(image.read_bytes()).problems) <= set(walk(content).problems)


@pytest.mark.parametrize("what", ["write", "part", "zero", "keep", "discard"])
@pytest.mark.parametrize("layout", ["default", "512", "extended"])
def test_overlapping_metadata_is_found_before_it_is_overwritten(
    layout: str, what: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """L2 entries that say that a table's cluster is data: the image is marked, and not harmed."""
    found = good(layout)
    table = next(place for place in found.places if place.name.startswith("L2 table 0"))
    image = tmp_path / "bad.qcow2"
    for place in [p for p in found.places if "of snapshot" not in p.name][:12]:
        if place.name in ("bitmap", "header"):  # an offset of 0 is none
            continue
        content = bytearray(found.content)
        entry = (place.offset & -found.cluster | COPIED).to_bytes(8, "big")
        if found.words == 2:
            entry += b"\0\0\0\0\xff\xff\xff\xff"
        content[table.offset : table.offset + len(entry)] = entry
        image.write_bytes(content)
        with (
            watched(f"a {what} over {place.name}"),
            tapcore.open(f"qcow2:{image}", readonly=False) as disk,
        ):
            change_a_cluster(disk, 0, found.cluster, what)
        tables_are_whole(image, bytes(content))
        if what in ("write", "part"):
            assert walk(image.read_bytes()).incompatible & 2, f"{place.name}: not marked corrupt"
