"""tapcore and QEMU work on the same images in turn, and always see the same disk.

QEMU reads fixed and dynamic images, whatever bitmaps say; differencing ones it does not read.
"""

import json
import random
from pathlib import Path

import pytest

import tapcore
from vhdtools import KIB, MIB, content_of, make, problems, qemu_content, qemu_io, run

SIZE = 3 * MIB + 3 * 512


def size_by_qemu(image: Path) -> int:
    size: int = json.loads(run("qemu-img", "info", "--output=json", "-f", "vpc", image))[
        "virtual-size"
    ]
    return size


def turns(image: Path, rng: random.Random, *, fixed: bool) -> None:
    """Both work, one after the other; after each, both look."""
    model = bytearray(content_of(image))
    for turn in range(4):
        work = _theirs if turn % 2 else _mine
        work(image, model, rng)
        assert content_of(image) == model
        assert qemu_content(image) == model
        if not fixed:
            assert not problems(image.read_bytes(), closed=True)


def _place(model: bytearray, rng: random.Random, unit: int) -> tuple[int, int]:
    at = rng.randrange(len(model)) // unit * unit
    length = rng.choice((unit, 8 * unit, rng.randint(1, 300 * KIB)))
    return at, min(-(-length // unit) * unit, len(model) - at)


def _mine(image: Path, model: bytearray, rng: random.Random) -> None:
    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        for _ in range(20):
            at, length = _place(model, rng, rng.choice((1, 512, 4096)))
            if rng.random() < 0.7:
                model[at : at + length] = rng.randbytes(length)
                disk.pwrite(at, model[at : at + length])
            else:
                model[at : at + length] = bytes(length)
                disk.zero(at, length=length, unmap=rng.random() < 0.5)


def _theirs(image: Path, model: bytearray, rng: random.Random) -> None:
    commands = []
    for _ in range(20):
        at, length = _place(model, rng, 512)
        byte = rng.randrange(256)
        model[at : at + length] = bytes([byte]) * length
        commands.append(f"write -P {byte} {at} {length}")
    qemu_io(image, commands)


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("maker", ["ours", "qemu's", "qemu's, by size"])
def test_in_turns(maker: str, subformat: str, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vhd"
    if maker == "ours":
        tapcore.create_image(f"vhd:{image}", SIZE, options={"subformat": subformat})
        assert size_by_qemu(image) == SIZE
    else:
        force = f"subformat={subformat},force_size={'on' if 'size' in maker else 'off'}"
        run("qemu-img", "create", "-q", "-f", "vpc", "-o", force, image, SIZE)
    assert len(content_of(image)) == size_by_qemu(image)
    turns(image, rng, fixed=subformat == "fixed")


@pytest.mark.parametrize("block_size", [4 * KIB, 64 * KIB, 4 * MIB])
def test_blocks_of_any_size(block_size: int, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vhd"
    make(image, SIZE, block_size)
    turns(image, rng, fixed=False)


@pytest.mark.parametrize("size", [512, 100 * MIB + 512, 127 << 30, 2040 << 30])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_any_size_is_that_which_was_asked_for(size: int, subformat: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.vhd"
    tapcore.create_image(f"vhd:{image}", size, options={"subformat": subformat})
    assert size_by_qemu(image) == size
    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        disk.pwrite(size - 512, b"e" * 512)
        holes = [each for each in disk.extents() if each.kind != "data"]
        assert len(holes) < 3
    qemu_io(image, [f"read -P 101 {size - 512} 512"])


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_measure_is_right(subformat: str, tmp_path: Path, rng: random.Random) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    with open(raw, "wb") as file:
        for at in (0, 3 * MIB, 9 * MIB):
            file.seek(at)
            file.write(rng.randbytes(MIB))
        file.truncate(20 * MIB)
    options = {"subformat": subformat}
    tapcore.convert_image(f"aio:{raw}", f"vhd:{image}", options=options)
    assert qemu_content(image) == raw.read_bytes()
    from tap_vhd.create import measure

    data = [(0, MIB), (3 * MIB, MIB), (9 * MIB, MIB)]
    assert measure(20 * MIB, options, data).required == image.stat().st_size
