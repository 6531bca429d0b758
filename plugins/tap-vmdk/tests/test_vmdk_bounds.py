"""What a file claims costs nothing: CPU seconds and memory follow what lies in the file.

Everything is tried in a process of its own, with limits for both.
"""

from __future__ import annotations

import itertools
import os
import resource
import struct
import subprocess
import sys
from array import array
from pathlib import Path

import tapcore
from vmdkwriters import descriptor, kdmv_header, stream

TABLES = 1 << 21
SECTORS = TABLES * 512 * 128
"""64 TiB."""
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
EXTENTS = 1 << (15 if THOROUGH > 1 else 13)
"""The most that a descriptor may have, or a quarter: the work grows with them, and no faster."""
CPU_SECONDS = 60
MEMORY = 640 << 20
WORK = """
import sys, tapcore
from tapcore.tools.check import check_image
from tapcore.tools.compare import compare_disks
from tapcore.tools.inspect import inspect_image
from tapcore.tools.map import map_disk
from tapcore.tools.measure import measure_image
from tapcore.tools.resize import resize_image

for image in sys.argv[1:]:
    name = f"vmdk:{image}"
    try:
        inspect_image(name)
        print("corruptions", check_image(name).corruptions)
        with tapcore.open(name, readonly=True) as disk:
            disk.info()
            print("runs", sum(1 for _ in map_disk(disk)))
            with tapcore.open(name, readonly=True) as other:
                print("identical", compare_disks(disk, other).identical)
        measure_image(name, "vmdk")
        tapcore.convert_image(name, f"qcow2:{image}.qcow2")
        resize_image(name, "+1M")
    except tapcore.TapError as exc:
        print(exc.message)
"""


def limited(*images: Path) -> list[str]:
    """What the work says of images; it ends within the limits."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    done = subprocess.run(
        [sys.executable, "-c", WORK, *map(str, images)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def huge(image: Path, directory: array[int], **fields: int) -> None:
    """A disk of 64 TiB; a directory's entry of 1 becomes the place of a table."""
    first = 128 + TABLES * 4 // 512
    grain = -(-(first + 4) // 128) * 128
    entries = array("I", (first if place == 1 else place for place in directory))
    header = {"capacity": SECTORS, "flags": 1, "gdOffset": 128, "overHead": grain} | fields
    with image.open("wb") as file:
        file.write(kdmv_header(**header))
        file.seek(128 * 512)
        file.write(entries.tobytes())
        file.write(struct.pack("<512I", *([grain] * 512)))
        file.truncate((grain + 128) * 512)


def test_64_tib_that_hold_next_to_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    directory = array("I", bytes(4 * TABLES))
    directory[5] = directory[-1] = 1
    huge(image, directory)
    said = limited(image)
    assert said[0] == "corruptions 1025"  # one grain is named 1024 times, one table twice
    assert int(said[1].split()[1]) <= 2 * 512 + 3


def test_64_tib_with_all_tables_there_and_empty(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", SECTORS * 512)
    said = limited(image)
    assert said[:3] == ["corruptions 0", "runs 1", "identical True"]
    assert (tmp_path / "disk.vmdk.qcow2").exists()


def test_very_many_extents(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"x" * 512)
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("custom", ['RW 1 FLAT "part" 0'] * EXTENTS))
    said = limited(image)
    assert said[0] == "corruptions 0"
    assert "cannot grow" in said[-1]
    assert (tmp_path / "disk.vmdk.qcow2").stat().st_size > 512 * EXTENTS


def test_a_directory_that_names_one_table_over_and_over_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    huge(image, array("I", [1]) * TABLES)
    (said,) = limited(image)
    assert said == "has a grain directory that names the same tables over and over"


def test_a_footer_that_claims_a_huge_descriptor(tmp_path: Path) -> None:
    images = []
    for field, size in itertools.product((28, 36), (1 << 52, (1 << 64) - 1)):
        image = tmp_path / f"{field}-{size}.vmdk"
        line = f'RDONLY 1536 SPARSE "{image.name}"'
        raw = bytearray(
            stream(bytes(65536) + b"x" * 720896, text=descriptor("streamOptimized", [line]))
        )
        struct.pack_into("<Q", raw, len(raw) - 1024 + field, size)
        image.write_bytes(raw)
        images.append(image)
    said = limited(*images)
    assert [line for line in said if "corruptions" in line] == ["corruptions 0"] * 4


def test_a_header_that_demands_more_tables_than_can_be(tmp_path: Path) -> None:
    images = []
    wrong = ({"grainSize": 1}, {"numGTEsPerGT": 1}, {"capacity": 1 << 38, "numGTEsPerGT": 128})
    for number, fields in enumerate(wrong):
        images.append(tmp_path / f"{number}.vmdk")
        huge(images[-1], array("I"), **fields)
        with images[-1].open("r+b") as file:
            file.truncate(1 << 40)  # a hole, which costs nothing
    said = limited(*images)
    assert len(said) == len(wrong)
    assert all("would have" in line for line in said)
