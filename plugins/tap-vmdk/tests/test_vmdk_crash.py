"""A crash at any moment never damages what was flushed, and leaves what qemu-img can read."""

import itertools
import random
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.interface.options import CacheMode
from tapcore.testkit import Recording, Workload

SIZE = (3 << 20) + 1024
WINDOWS = [(0, 1 << 20), (2 << 20, 256 << 10), (SIZE - 66048, 66048)]
STATES = 40


def _prepare(folder: Path, rng: random.Random, options: dict[str, str], child: bool) -> Path:
    """An image with some content of its own, or of its parent's."""
    image = folder / "disk.vmdk"
    if child:
        base = folder / "base.vmdk"
        tapcore.create_image(f"vmdk:{base}", SIZE)
        with tapcore.open(f"vmdk:{base}", readonly=False) as disk:
            disk.pwrite(0, rng.randbytes(SIZE))
        tapcore.create_image(f"vmdk:{image}", None, parent=f"vmdk:{base.name}", options=options)
    else:
        tapcore.create_image(f"vmdk:{image}", SIZE, options=options)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(100_000, rng.randbytes(300_000))
    return image


def _files(image: Path) -> list[Path]:
    return sorted(image.parent.glob("disk*.vmdk"))


@pytest.mark.parametrize(
    ("subformat", "zeroed", "child", "cache"),
    [
        ("monolithicSparse", "off", False, "writeback"),
        ("monolithicSparse", "off", False, "none"),
        ("monolithicSparse", "on", True, "writeback"),
        ("twoGbMaxExtentSparse", "off", True, "writeback"),
        ("monolithicFlat", "off", False, "writeback"),
        ("streamOptimized", "off", False, "writeback"),
    ],
)
def test_what_was_flushed_survives_every_crash(
    tmp_path: Path,
    rng: random.Random,
    subformat: str,
    zeroed: str,
    child: bool,
    cache: CacheMode,
) -> None:
    options = {"subformat": subformat} | ({"zeroed_grain": "on"} if zeroed == "on" else {})
    image = _prepare(tmp_path, rng, options, child)
    below = None
    if child:
        with tapcore.open(f"vmdk:{tmp_path}/base.vmdk", readonly=True) as disk:
            below = disk.pread(0, length=SIZE)
    files = _files(image)
    with (
        Recording(*files) as recording,
        tapcore.open(f"vmdk:{image}", cache=cache, readonly=False) as disk,
    ):
        work = Workload(disk, recording, rng, WINDOWS, below)
        work.run(20)
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    if child:
        (crashed / "base.vmdk").symlink_to(tmp_path / "base.vmdk")
    places: dict[str | Path, str | Path] = {path: crashed / path.name for path in files}
    every = max(len(recording.changes) // STATES, 1)
    states = itertools.chain(recording.prefixes(every), recording.states(rng, STATES))
    for number, state in enumerate(states):
        state.write(places)
        copy = f"vmdk:{crashed / image.name}"
        with tapcore.open(copy, readonly=True, parents="any") as disk:
            for offset, length in WINDOWS:
                wrong = work.wrong(state.moment, offset, disk.pread(offset, length=length))
                assert not wrong, f"{state}: {wrong}"
        if number % 20 == 0:
            _check(crashed / image.name)


def _check(image: Path) -> None:
    done = subprocess.run(
        [peer("qemu-img"), "check", "-f", "vmdk", str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_crash_while_growing_or_changing_the_parent_leaves_a_good_disk(
    tmp_path: Path, rng: random.Random
) -> None:
    for name in ("base", "other"):
        tapcore.create_image(f"vmdk:{tmp_path}/{name}.vmdk", SIZE)
        with tapcore.open(f"vmdk:{tmp_path}/{name}.vmdk", readonly=False) as disk:
            disk.pwrite(0, name.encode() * 1000)
    image = tmp_path / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", None, parent="vmdk:base.vmdk")
    content = rng.randbytes(100_000)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(1 << 20, content)
    with Recording(image) as recording, tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        dd = disk.state.disks
        dd.drv.td_set_parent(dd, tapcore.DiskId("./other.vmdk", "vmdk"))
        dd.drv.td_set_parent(dd, tapcore.DiskId("other.vmdk", "vmdk"))
        disk.resize(40 << 20)
        disk.resize(5 << 30)
    copy = tmp_path / "copy.vmdk"
    seen = set()
    for state in itertools.chain(recording.prefixes(), recording.states(rng, 100)):
        state.write({image: copy})
        with tapcore.open(f"vmdk:{copy}", readonly=True) as disk:
            below = disk.pread(0, length=5)
            assert disk.pread(1 << 20, length=100_000) == content
            assert disk.pread(disk.size - 512, length=512) == bytes(512)
            seen.add((below, disk.size))
    assert {below for below, _ in seen} == {b"baseb", b"other"}
    assert {size for _, size in seen} == {SIZE, 40 << 20, 5 << 30}
