"""Images made to do harm: the known classes of QEMU's CVEs for image formats, each by its name."""

import os
import random
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from backports import zstd

import tapcore
from qcow2damage import HEADER_FIELDS, compressed_bomb, with_field
from qcow2tools import MIB, assert_clean, create
from qcow2trials import read_it, seen, tables_are_whole, try_everything, watched
from qcow2walk import Walk
from tapcore.errors import TapError
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image
from tapcore.tools.openimage import open_chain

# ---- header fields that were believed -----------------------------------------------------------


@pytest.mark.parametrize("value", [0x7FFF_FFFF, 0xFFFF_FFFF, 0x2000_0000, 0x0040_0001])
def test_cve_2014_0144_l1_size(value: int, good: Callable[[str], Walk], tmp_path: Path) -> None:
    """An L1 table larger than 32 MiB, or than the file."""
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "l1_size", value))
    with watched("a large L1 table", seconds=4.0, memory=8 * MIB):
        assert "L1 table" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF_FFFF_0000, 0x1234_5678_90AB_CDEF, 1 << 63, 513])
def test_cve_2014_0144_l1_offset(value: int, good: Callable[[str], Walk], tmp_path: Path) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "l1_table_offset", value))
    assert "L1 table" in seen(image)


def test_cve_2014_0144_l1_too_small(good: Callable[[str], Walk], tmp_path: Path) -> None:
    """For the disk's size: the rest of the disk would lie outside of the table."""
    image = tmp_path / "bad.qcow2"
    for field, value in (("l1_size", 0), ("size", 1 << 62), ("size", (1 << 63) - 512)):
        image.write_bytes(with_field(good("default").content, field, value))
        assert seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF, 0xFFFF_FFFF, 0x0002_0001, 0])
def test_cve_2014_0144_refcount_table_size(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "refcount_table_clusters", value))
    with watched("a large refcount table", seconds=4.0, memory=8 * MIB):
        assert "refcount table" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF_FFFF_0000, 0x12_3456, (1 << 56) - 65536])
def test_cve_2014_0144_refcount_table_offset(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "refcount_table_offset", value))
    assert "refcount table" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF, 0xFFFF_FFFF, 65537])
def test_cve_2014_0144_number_of_snapshots(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "nb_snapshots", value))
    with watched("many snapshots", seconds=4.0, memory=8 * MIB):
        assert "snapshots" in seen(image)


@pytest.mark.parametrize("value", [0x7FFF_FFFF_FFFF_0000, 0x1234_5678_90AB_CDEF, 1 << 63])
def test_cve_2014_0144_snapshot_table_offset(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "snapshots_offset", value))
    assert "snapshot table" in seen(image)


@pytest.mark.parametrize("value", [0, 1, 71, 103, 105, 65544, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_cve_2014_0144_header_length(
    value: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "header_length", value))
    assert "header" in seen(image)


@pytest.mark.parametrize("length", [0x7FFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFF8, 65536])
def test_cve_2014_0144_header_extension_length(
    length: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    image = tmp_path / "bad.qcow2"
    for _, offset, _ in good("default").extensions:
        content = bytearray(good("default").content)
        content[offset - 4 : offset] = length.to_bytes(4, "big")
        image.write_bytes(content)
        assert "extension" in seen(image)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0xFFFF_FFFF, 5), (1 << 63, 5), (200, 0xFFFF_FFFF), (200, 0x7FFF_FFFF), (200, 1024), (1, 5)],
)
def test_cve_2014_0143_backing_file_name(
    offset: int, size: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """A name outside of the first cluster, or too long."""
    image = tmp_path / "bad.qcow2"
    content = with_field(good("default").content, "backing_file_offset", offset)
    image.write_bytes(with_field(content, "backing_file_size", size))
    assert seen(image)


@pytest.mark.parametrize("bits", [0, 1, 8, 22, 31, 32, 63, 64, 0xFFFF_FFFF])
def test_cve_2014_0142_cluster_bits(bits: int, good: Callable[[str], Walk], tmp_path: Path) -> None:
    """A shift that is too large, or a division by what it gives."""
    image = tmp_path / "bad.qcow2"
    image.write_bytes(with_field(good("default").content, "cluster_bits", bits))
    assert "cluster size" in seen(image)


@pytest.mark.parametrize(
    ("at", "layout"), [(0, ">Q"), (8, ">I"), (12, ">H"), (14, ">H"), (36, ">I")]
)
@pytest.mark.parametrize("value", [-1, 0x7FFF_FFFF_FFFF_FFFF, 0x1234_5678_90AB_CDEF])
def test_cve_2014_0145_a_snapshots_own_fields(
    at: int,
    layout: str,
    value: int,
    good: Callable[[str], Walk],
    tmp_path: Path,
    rng: random.Random,
) -> None:
    """Of a snapshot: its L1 table's offset and size, the lengths of its id, name and extra data."""
    image = tmp_path / "bad.qcow2"
    content = bytearray(good("default").content)
    width = {"Q": 8, "I": 4, "H": 2}[layout[1]]
    place = good("default").snapshots_offset + at
    content[place : place + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")
    image.write_bytes(content)
    try_everything(image, rng, f"{value:#x} at byte {at} of its first snapshot")


def test_cve_2014_0146_an_open_that_fails_half_way(
    good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """After any failure all that was taken is given back, and the next image opens."""
    image = tmp_path / "bad.qcow2"
    for field in HEADER_FIELDS:
        image.write_bytes(with_field(good("default").content, field, -1))
        with watched(f"{field} with all bits"):  # it counts descriptors
            seen(image)
    image.write_bytes(good("default").content)
    assert not seen(image)


@pytest.mark.parametrize("layout", ["default", "512", "4096-refcount-64", "extended", "v2"])
def test_cve_2014_0147_everything_is_counted_as_free(
    layout: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """Refcounts of 0 must not lead data over the header and the tables."""
    content = bytearray(good(layout).content)
    for place in good(layout).places:
        if place.name.startswith("refcount block"):
            content[place.offset : place.offset + place.length] = bytes(place.length)
    image = tmp_path / "bad.qcow2"
    image.write_bytes(content)
    with (
        watched("writing where all is free"),
        tapcore.open(f"qcow2:{image}", readonly=False) as disk,
    ):
        for at in range(0, disk.size - 5000, 30_000):
            with suppress(TapError):
                disk.pwrite(at, b"w" * 5000)
    tables_are_whole(image, bytes(content))


# ---- bombs: a little file that becomes much -----------------------------------------------------


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_cve_2015_4463_a_compressed_cluster_that_never_ends(
    method: str, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """Its stream gives many times a cluster: no more than that is taken out of it."""
    if method == "zlib":
        packer = zlib.compressobj(1, zlib.DEFLATED, -12)
        stream = b"".join(packer.compress(bytes(MIB)) for _ in range(16)) + packer.flush()
        layout = "default"
    else:
        stream = zstd.compress(bytes(1024 * MIB), 1)
        layout = "zstd"
    image = tmp_path / "bomb.qcow2"
    image.write_bytes(compressed_bomb(good(layout), stream))
    with (
        watched("a bomb", seconds=4.0, memory=16 * MIB),
        tapcore.open(f"qcow2:{image}", readonly=True) as disk,
    ):
        assert not any(disk.pread(0, length=4096))


@pytest.mark.parametrize("window_log", [27, 31])
def test_a_zstd_cluster_that_wants_a_large_window(
    window_log: int, good: Callable[[str], Walk], tmp_path: Path
) -> None:
    """The window is memory too."""
    stream = zstd.compress(os.urandom(4096), options={zstd.CompressionParameter.window_log: 10})
    frame = bytearray(stream)
    frame[4] &= ~0x20  # not a single segment: the next byte is the window's size
    frame[5:5] = bytes([(window_log - 10) << 3])
    image = tmp_path / "window.qcow2"
    image.write_bytes(compressed_bomb(good("zstd"), bytes(frame)))
    with (
        watched("a large window", seconds=4.0, memory=16 * MIB),
        tapcore.open(f"qcow2:{image}", readonly=True) as disk,
    ):
        disk.pread(0, length=4096)


def test_cve_2015_5162_a_huge_disk_in_a_small_file(tmp_path: Path) -> None:
    """Nothing is done in proportion to what an image only claims."""
    image = create(tmp_path / "huge.qcow2", 1 << 56, cluster_size=2 * MIB)
    with watched("a disk of 64 PiB", seconds=10.0, memory=24 * MIB):
        inspect_image(f"qcow2:{image}")
        image_info(f"qcow2:{image}")
        check_image(f"qcow2:{image}")
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            assert len(list(disk.extents())) == 1
            disk.pwrite(disk.size - 512, b"e" * 512)
            disk.discard(0, length=disk.size)
    assert_clean(image)


def test_sparse_file_does_not_justify_memory(good: Callable[[str], Walk], tmp_path: Path) -> None:
    """A file that is terabytes long, and empty, costs nothing to have tables in it."""
    image = tmp_path / "sparse.qcow2"
    image.write_bytes(with_field(good("default").content, "l1_size", (32 * MIB) // 8))
    os.truncate(image, 1 << 42)
    with watched("a sparse file", seconds=10.0, memory=160 * MIB):
        read_it(image)
    with watched("checking a sparse file", seconds=20.0, memory=160 * MIB):
        check_image(f"qcow2:{image}")


def test_a_cut_off_l1_table_costs_what_the_file_holds(tmp_path: Path) -> None:
    """The header claims 32 MiB of entries, of which a few lie in the file."""
    image = create(tmp_path / "bad.qcow2", MIB)
    with open(image, "r+b") as file:
        file.seek(36)
        file.write((4 << 20).to_bytes(4, "big"))
    tracemalloc.start()
    try:
        result = check_image(f"qcow2:{image}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.corruptions
    assert peak < 8 * MIB


def test_repairing_the_largest_l1_table_needs_it_in_memory_once(tmp_path: Path) -> None:
    """All that is read and written besides goes part by part."""
    image = create(tmp_path / "bad.qcow2", MIB)
    with open(image, "r+b") as file:
        file.seek(36)
        file.write((4 << 20).to_bytes(4, "big"))
        file.truncate(file.seek(0, os.SEEK_END) + 40 * MIB)
    tracemalloc.start()
    try:
        check_image(f"qcow2:{image}", repair="all")
        result = check_image(f"qcow2:{image}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not result.corruptions
    assert peak < 32 * MIB + 16 * MIB


def test_what_is_logged_of_an_image_is_printable_and_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The name of a damaged snapshot, on its way to a person, or to the log of a server."""
    image = create(tmp_path / "bad.qcow2", MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 65536)
        dd = disk.state.disks
        dd.drv.td_snapshot_create(dd, "N" * 200)
    content = image.read_bytes()
    with open(image, "r+b") as file:
        file.seek(content.index(b"N" * 200))
        file.write(b"\x1b]0;title\x07\xff")
        file.seek(int.from_bytes(content[64:72], "big"))  # the entry's place of the L1 table
        file.write((1 << 60).to_bytes(8, "big"))
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk, pytest.raises(TapError) as caught:
        disk.pwrite(0, b"y" * 65536)
    served = open_chain(f"qcow2:{image}", writing=True, missing="zeroes")
    with tapcore.Disk(served) as disk, pytest.raises(TapError):
        disk.pwrite(0, b"y" * 65536)
    assert caplog.messages
    for message in (str(caught.value), *caplog.messages):
        assert message.isprintable()
        assert len(message) < 1000
