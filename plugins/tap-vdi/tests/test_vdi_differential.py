"""tapcore and QEMU work on the same images in turn; dissect.hypervisor looks on.

All see the same disk. QEMU reads blocks of 1 MiB, and no differencing images.
"""

import itertools
import json
import random
from pathlib import Path

import attrs
import pytest

import tapcore
from tap_vdi.create import measure, new_header, write_image
from tap_vdi.header import DYNAMIC
from vditools import (
    KIB,
    MIB,
    content_of,
    dissect_content,
    make,
    problems,
    qemu_content,
    qemu_io,
    run,
)

SIZE = 5 * MIB + 3 * 512


def size_by_qemu(image: Path) -> int:
    said = json.loads(run("qemu-img", "info", "--output=json", "-f", "vdi", image))
    size: int = said["virtual-size"]
    return size


def _place(model: bytearray, rng: random.Random, unit: int) -> tuple[int, int]:
    at = rng.randrange(len(model)) // unit * unit
    length = rng.choice((unit, 8 * unit, rng.randint(1, 300 * KIB), rng.randint(1, 3 * MIB)))
    return at, min(-(-length // unit) * unit, len(model) - at)


def _mine(image: Path, model: bytearray, rng: random.Random) -> None:
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        for _ in range(20):
            at, length = _place(model, rng, rng.choice((1, 512, 4096, MIB)))
            way = rng.random()
            if way < 0.6:
                model[at : at + length] = rng.randbytes(length)
                disk.pwrite(at, model[at : at + length])
            else:
                model[at : at + length] = bytes(length)
                disk.zero(at, length=length, unmap=way < 0.8)


def _theirs(image: Path, model: bytearray, rng: random.Random) -> None:
    commands = []
    for _ in range(20):
        at, length = _place(model, rng, 512)
        byte = rng.randrange(256)
        model[at : at + length] = bytes([byte]) * length
        commands.append(f"write -P {byte} {at} {length}")
    qemu_io(image, commands)


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
@pytest.mark.parametrize("maker", ["ours", "qemu's"])
def test_in_turns(maker: str, kind: str, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vdi"
    if maker == "ours":
        tapcore.create_image(f"vdi:{image}", SIZE, options={"subformat": kind})
    else:
        static = "on" if kind == "fixed" else "off"
        run("qemu-img", "create", "-q", "-f", "vdi", "-o", f"static={static}", image, SIZE)
    assert size_by_qemu(image) == SIZE
    model = bytearray(content_of(image))
    for turn in range(4):
        work = _theirs if turn % 2 else _mine
        work(image, model, rng)
        assert content_of(image) == model
        assert qemu_content(image) == model
        assert dissect_content(image) == model
        run("qemu-img", "check", "-f", "vdi", image)
        assert not problems(image.read_bytes(), closed=True)


@pytest.mark.parametrize(
    ("block_size", "extra"),
    [(512, 0), (512, 4096), (4 * KIB, 512), (64 * KIB, 0), (64 * KIB, 512), (4 * MIB, 4096)],
)
def test_blocks_of_any_size(
    block_size: int, extra: int, tmp_path: Path, rng: random.Random
) -> None:
    """With other bytes before each, of which dissect.hypervisor knows nothing."""
    image = tmp_path / "disk.vdi"
    write_image(str(image), attrs.evolve(new_header(SIZE, block_size, DYNAMIC), extra=extra))
    model = bytearray(SIZE)
    for _ in range(1 if block_size == 512 else 2):
        _mine(image, model, rng)
        assert content_of(image) == model
        assert extra or dissect_content(image) == model
        assert not problems(image.read_bytes(), closed=True)


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        *itertools.product([512, 100 * MIB + 512, 127 << 30], ["dynamic", "fixed"]),
        (2 << 40, "dynamic"),  # and see test_a_fixed_image_of_a_tebibyte_has_few_extents
    ],
)
def test_any_size_is_that_which_was_asked_for(size: int, kind: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.vdi"
    tapcore.create_image(f"vdi:{image}", size, options={"subformat": kind})
    assert size_by_qemu(image) == size
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(size - 512, b"e" * 512)
        holes = [each for each in disk.extents() if each.kind != "data"]
        assert len(holes) < 3
    qemu_io(image, [f"read -P 101 {size - 512} 512"])


def test_the_largest_blocks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are larger than the largest unit that a driver may name."""
    image = tmp_path / "disk.vdi"
    tapcore.create_image(f"vdi:{tmp_path}/usual.vdi", 1 << 30, options={"block_size": "128M"})
    assert not caplog.records
    tapcore.create_image(f"vdi:{image}", 1 << 30, options={"block_size": "256M"})
    assert "VirtualBox opens no VDI in blocks of 262144 KiB" in caplog.text
    with tapcore.open(f"vdi:{image}", readonly=False) as disk:
        disk.pwrite(512 << 20, b"content")
        assert disk.pread((512 << 20) - 1, length=9) == b"\0content\0"


def test_what_is_left_of_a_sector_is_no_part_of_the_disk(tmp_path: Path) -> None:
    """So does VirtualBox see to it, whose older versions made such images."""
    image = tmp_path / "disk.vdi"
    write_image(str(image), attrs.evolve(new_header(MIB, MIB, DYNAMIC), disk_size=MIB - 100))
    assert len(content_of(image)) == MIB - 512


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_measure_is_right(kind: str, tmp_path: Path, rng: random.Random) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vdi"
    with open(raw, "wb") as file:
        for at in (0, 3 * MIB, 9 * MIB):
            file.seek(at)
            file.write(rng.randbytes(MIB))
        file.truncate(20 * MIB)
    options = {"subformat": kind}
    tapcore.convert_image(f"aio:{raw}", f"vdi:{image}", options=options)
    assert qemu_content(image) == raw.read_bytes()
    data = [(0, MIB), (3 * MIB, MIB), (9 * MIB, MIB)]
    assert measure(20 * MIB, options, data).required == image.stat().st_size


def test_pages_of_the_map_come_and_go(tmp_path: Path, rng: random.Random) -> None:
    """A disk of several pages, of which two are kept."""
    image, model = tmp_path / "disk.vdi", {}
    make(image, 96 * MIB, 512)
    with tapcore.open(f"vdi:{image}", metadata_cache=1, readonly=False) as disk:
        for _ in range(300):
            at = rng.randrange(96 * MIB // 512) * 512
            model[at] = rng.randbytes(512)
            disk.pwrite(at, model[at])
            at, content = rng.choice(list(model.items()))
            assert disk.pread(at, length=512) == content
    with tapcore.open(f"vdi:{image}", readonly=True) as disk:
        for at, content in model.items():
            assert disk.pread(at, length=512) == content
    assert not problems(image.read_bytes(), closed=True)
