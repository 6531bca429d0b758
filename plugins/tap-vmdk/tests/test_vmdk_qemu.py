"""The same disks for qemu-img and for us: whoever wrote them, both read the same."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tap_vmdk.create.newdisk import SPLIT_SECTORS
from tapcore.tools.map import map_disk

KINDS = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
)
WRITTEN = KINDS[:4]
SIZE = (5 << 20) + 512


def qemu_img(*words: str | Path) -> str:
    command = [peer("qemu-img"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def qemu_io(image: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        [peer("qemu-io"), "-f", "vmdk", *words, str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def random_content(rng: random.Random, size: int = SIZE) -> bytes:
    """Half of it zeroes, half of the rest easily compressed."""
    content = bytearray(size)
    at = 0
    while at < size:
        count = min(rng.randint(1, 200_000), size - at)
        kind = rng.randrange(4)
        if kind == 0:
            content[at : at + count] = rng.randbytes(count)
        elif kind == 1:
            content[at : at + count] = (rng.randbytes(16) * (count // 16 + 1))[:count]
        at += count
    return bytes(content)


def our_content(image: Path) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


def qemu_content(image: Path) -> bytes:
    raw = image.with_suffix(".raw")
    qemu_img("convert", "-f", "vmdk", "-O", "raw", image, raw)
    return raw.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_qemu_converts_we_read(tmp_path: Path, rng: random.Random, kind: str) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.vmdk"
    raw.write_bytes(random_content(rng))
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", raw, image)
    assert our_content(image) == raw.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_convert_qemu_reads(tmp_path: Path, rng: random.Random, kind: str) -> None:
    raw, image = tmp_path / "raw", tmp_path / "disk.vmdk"
    raw.write_bytes(random_content(rng))
    tapcore.convert_image(f"aio:{raw}", f"vmdk:{image}", options={"subformat": kind})
    assert qemu_content(image) == raw.read_bytes()
    assert our_content(image) == raw.read_bytes()
    qemu_img("check", "-f", "vmdk", image)
    info = json.loads(qemu_img("info", "--output=json", "-f", "vmdk", image))
    assert info["virtual-size"] == SIZE
    assert info["format-specific"]["data"]["create-type"] == kind


@pytest.mark.parametrize("zeroed", ["on", "off"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_both_write_in_turns(tmp_path: Path, rng: random.Random, kind: str, zeroed: str) -> None:
    image = tmp_path / "disk.vmdk"
    options = {"subformat": kind}
    if "Sparse" in kind:
        options["zeroed_grain"] = zeroed
    tapcore.create_image(f"vmdk:{image}", SIZE, options=options)
    model = bytearray(SIZE)
    for _ in range(3):
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            for _ in range(8):
                offset, count = _place(rng)
                if rng.random() < 0.3:
                    disk.zero(offset, length=count)
                    model[offset : offset + count] = bytes(count)
                else:
                    model[offset : offset + count] = content = rng.randbytes(count)
                    disk.pwrite(offset, content)
        assert qemu_content(image) == model
        commands = []
        for _ in range(8):
            offset, count = _place(rng)
            if rng.random() < 0.3:
                commands.append(f"write -z {offset} {count}")
                model[offset : offset + count] = bytes(count)
            else:
                pattern = rng.randrange(256)
                commands.append(f"write -P {pattern} {offset} {count}")
                model[offset : offset + count] = bytes([pattern]) * count
        qemu_io(image, *commands)
        assert our_content(image) == model
        qemu_img("check", "-f", "vmdk", image)


def _place(rng: random.Random) -> tuple[int, int]:
    offset = rng.randrange(SIZE // 512) * 512
    count = rng.choice((512, 4096, 65536, rng.randint(1, 400) * 512))
    return offset, min(count, SIZE - offset)


@pytest.mark.parametrize("maker", ["qemu", "tapcore"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_sizes_around_the_split(tmp_path: Path, rng: random.Random, kind: str, maker: str) -> None:
    split = SPLIT_SECTORS * 512 if maker == "tapcore" else 2 << 30
    for size in (split - 512, split, split + 512, 2 * split + 65536):
        image = tmp_path / f"{size}.vmdk"
        if maker == "qemu":
            qemu_img("create", "-f", "vmdk", "-o", f"subformat={kind}", image, str(size))
        else:
            tapcore.create_image(f"vmdk:{image}", size, options={"subformat": kind})
        places = [0, split - 1024, size - 4096 - 512] + [split - 512] * (size > split)
        content = {}
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            assert disk.size == size
            for at in places:
                content[at] = rng.randbytes(min(4096, size - at))
                disk.pwrite(at, content[at])
        want = bytearray(4096)
        want[:] = content[places[-1]].ljust(4096, b"\0")
        qemu_io(image, f"read -P {content[0][0]} 0 1")
        with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
            last = places[-1]
            assert disk.pread(last, length=4096) == content[last]
        qemu_img("check", "-f", "vmdk", image)
        compare = subprocess.run(
            [
                peer("qemu-img"),
                "compare",
                "-f",
                "vmdk",
                "-F",
                "raw",
                str(image),
                _raw(tmp_path, content, size),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert compare.returncode == 0, compare.stdout + compare.stderr


def _raw(folder: Path, content: dict[int, bytes], size: int) -> str:
    """The same content as a sparse raw file."""
    path = folder / "same.raw"
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        os.ftruncate(file.fileno(), size)
        for at, piece in content.items():
            os.pwrite(file.fileno(), piece, at)
    return str(path)


@pytest.mark.parametrize("child", [False, True])
def test_map_agrees(tmp_path: Path, rng: random.Random, child: bool) -> None:
    image, base, grain = tmp_path / "disk.vmdk", tmp_path / "base.vmdk", 65536
    size = 70 * grain
    tapcore.create_image(f"vmdk:{base}", size)
    parent = "vmdk:base.vmdk" if child else ""
    options = {"zeroed_grain": "on"}
    for path, kwargs in ((base, {}), (image, {"parent": parent, "options": options})):
        if path == image:
            tapcore.create_image(f"vmdk:{path}", size, **kwargs)  # type: ignore[arg-type]
        with tapcore.open(f"vmdk:{path}", readonly=False) as disk:
            for number in rng.sample(range(70), 25):
                disk.pwrite(number * grain, rng.randbytes(grain))
    qemu_io(image, f"write -z -u {3 * grain} {2 * grain}")
    theirs = json.loads(qemu_img("map", "--output=json", "-f", "vmdk", image))
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        ours = [item.as_dict(str(image)) for item in map_disk(disk)]
    assert grains_of(ours) == grains_of(theirs)


def grains_of(items: list[dict[str, object]]) -> list[tuple[object, ...]]:
    """For each grain what the maps must agree on."""
    found: list[tuple[object, ...]] = []
    for item in items:
        start, length = int(str(item["start"])), int(str(item["length"]))
        for at in range(start, start + length, 65536):
            place = int(str(item["offset"])) + at - start if item["data"] else None
            depth = item["depth"] if item["data"] else None
            found.append((item["data"], item["zero"], depth, place))
    return found
