"""tapcore and QEMU work on the same images in turn; dissect.hypervisor and libvhdi look on.

All see the same disk. `TAPCORE_THOROUGH=10` goes through ten times as many turns.
"""

import json
import os
import random
from pathlib import Path

import pytest

import tapcore
from tap_vhdx.create import measure
from tapcore.tools.resize import resize_image
from vhdxtools import (
    KIB,
    MIB,
    content_of,
    dissect_content,
    libvhdi_content,
    make,
    problems,
    qemu_content,
    qemu_io,
    run,
)

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
SIZE = 9 * MIB + 3 * 512


def size_by_qemu(image: Path) -> int:
    said = json.loads(run("qemu-img", "info", "--output=json", "-f", "vhdx", image))
    size: int = said["virtual-size"]
    return size


def _place(model: bytearray, rng: random.Random, unit: int) -> tuple[int, int]:
    at = rng.randrange(len(model)) // unit * unit
    length = rng.choice((unit, 8 * unit, rng.randint(1, 300 * KIB), rng.randint(1, 3 * MIB)))
    return at, min(-(-length // unit) * unit, len(model) - at)


def _mine(image: Path, model: bytearray, rng: random.Random) -> None:
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        for _ in range(20):
            at, length = _place(model, rng, rng.choice((1, 512, 4096, MIB)))
            way = rng.random()
            if way < 0.6:
                model[at : at + length] = rng.randbytes(length)
                disk.pwrite(at, model[at : at + length])
            else:
                model[at : at + length] = bytes(length)
                disk.zero(at, length=length, unmap=way < 0.8)
            if rng.random() < 0.2:
                disk.sync()


def _theirs(image: Path, model: bytearray, rng: random.Random) -> None:
    commands = []
    for _ in range(10):
        at, length = _place(model, rng, 512)
        byte = rng.randrange(256)
        model[at : at + length] = bytes([byte]) * length
        commands.append(f"write -P {byte} {at} {length}")
    qemu_io(image, commands)


def _all_agree(image: Path, model: bytearray) -> None:
    assert content_of(image) == model
    assert qemu_content(image) == model
    assert dissect_content(image) == model
    assert libvhdi_content(image) == model
    run("qemu-img", "check", "-f", "vhdx", image)
    assert not problems(image.read_bytes(), closed=False)


@pytest.mark.parametrize(
    ("block", "maker", "kind"),
    [
        ("1M", "ours", "dynamic"),
        ("4M", "ours", "fixed"),
        ("1M", "qemu's", "fixed"),
        ("4M", "qemu's", "dynamic"),
    ],
)
def test_in_turns(block: str, maker: str, kind: str, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vhdx"
    if maker == "ours":
        make(image, SIZE, subformat=kind, block_size=block)
    else:
        options = f"subformat={kind},block_size={block}"
        run("qemu-img", "create", "-q", "-f", "vhdx", "-o", options, image, SIZE)
    assert size_by_qemu(image) == SIZE
    model = bytearray(content_of(image))
    for turn in range(2 * THOROUGH):
        work = _theirs if turn % 2 else _mine
        work(image, model, rng)
        _all_agree(image, model)


@pytest.mark.parametrize("block", ["1M", "256M"])
@pytest.mark.parametrize("logical", ["512", "4096"])
def test_far_apart(block: str, logical: str, tmp_path: Path, rng: random.Random) -> None:
    """On a disk of several chunks, behind each of which is an entry for its sector bitmap."""
    image, size, model = tmp_path / "disk.vhdx", 80 << 30, {}
    make(image, size, block_size=block, logical_sector=logical)
    places = {0, size - 4096, *(rng.randrange(size // 4096) * 4096 for _ in range(30))}
    for chunk in range(0, size, int(logical) << 23):
        places |= {chunk, chunk + (int(logical) << 23) - 4096}  # the first sectors and the last
    with tapcore.open(f"vhdx:{image}", metadata_cache=1, readonly=False) as disk:
        for at in sorted(place for place in places if place < size):
            model[at] = rng.randrange(1, 256)
            disk.pwrite(at, bytes([model[at]]) * 4096)
    copy = tmp_path / "copy.vhdx"
    options = {"block_size": block, "logical_sector": logical}
    tapcore.convert_image(f"vhdx:{image}", f"vhdx:{copy}", options=options)
    for path in (image, copy):
        with tapcore.open(f"vhdx:{path}", readonly=True) as disk:
            for at, byte in model.items():
                assert disk.pread(at, length=4096) == bytes([byte]) * 4096
        if logical == "512":  # all that QEMU reads
            qemu_io(path, [f"read -P {byte} {at} 4096" for at, byte in model.items()])


@pytest.mark.parametrize("size", [512, 100 * MIB + 512, 127 << 30, 2 << 40, 64 << 40])
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_any_size_is_that_which_was_asked_for(size: int, kind: str, tmp_path: Path) -> None:
    if (size, kind) == (64 << 40, "fixed"):
        size = 8 << 40  # of more there is no file on most file systems
    image = tmp_path / "disk.vhdx"
    make(image, size, subformat=kind, block_size="256M" if size > 1 << 40 else "1M")
    assert size_by_qemu(image) == size
    with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
        disk.pwrite(size - 512, b"e" * 512)
        assert len([each for each in disk.extents() if each.kind != "data"]) < 4
    qemu_io(image, [f"read -P 101 {size - 512} 512"])


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_measure_is_right(kind: str, tmp_path: Path, rng: random.Random) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vhdx"
    with open(raw, "wb") as file:
        for at in (0, 3 * MIB, 9 * MIB):
            file.seek(at)
            file.write(rng.randbytes(MIB))
        file.truncate(20 * MIB)
    options = {"subformat": kind, "block_size": "1M"}
    tapcore.convert_image(f"aio:{raw}", f"vhdx:{image}", options=options)
    assert qemu_content(image) == raw.read_bytes()
    data = [(0, MIB), (3 * MIB, MIB), (9 * MIB, MIB)]
    assert measure(20 * MIB, options, data).required == image.stat().st_size


def test_a_disk_of_another_size(tmp_path: Path, rng: random.Random) -> None:
    """What is new reads as zeroes, whatever lay there behind the end, or was cut off."""
    image = tmp_path / "disk.vhdx"
    run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", image, MIB + 512)
    model = bytearray(MIB + 512)
    _mine(image, model, rng)
    with open(image, "r+b") as file:  # garbage that no program wrote
        file.seek(-512, os.SEEK_END)
        file.write(rng.randbytes(512))
    for size in (2 * MIB, 7 * MIB + 512, 3 * MIB + 512, 512, 20 * MIB):
        resize_image(f"vhdx:{image}", str(size), shrink=True)
        del model[size:]
        model.extend(bytes(size - len(model)))
        with tapcore.open(f"vhdx:{image}", readonly=False) as disk:
            disk.pwrite(size - 512, b"e" * 512)
        model[-512:] = b"e" * 512
        assert not problems(image.read_bytes(), closed=False)
        assert size_by_qemu(image) == size
        assert content_of(image) == model == qemu_content(image)
