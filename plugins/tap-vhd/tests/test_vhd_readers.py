"""Independent readers see the same disks: libvhdi, and dissect.hypervisor where it can."""

import io
import random
from itertools import pairwise
from pathlib import Path

import pytest
import pyvhdi
from dissect.hypervisor.disk.vhd import VHD

import tapcore
from tapcore.tools.check import check_image
from tapcore.tools.rebase import rebase_image
from vhdtools import KIB, MIB, content_of, some_content

SIZE = 5 * MIB + 3 * 512


def libvhdi_content(path: Path, *parents: Path) -> bytes:
    """The whole disk as libvhdi reads it, over its parents."""
    files = [pyvhdi.file() for _ in (path, *parents)]
    for file, name in zip(files, (path, *parents), strict=True):
        file.open(str(name))
    for file, below in pairwise(files):
        file.set_parent(below)
    content: bytes = files[0].read_buffer_at_offset(files[0].get_media_size(), 0)
    for file in files:
        file.close()
    return content


def work(path: Path, rng: random.Random, unit: int = 512) -> None:
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        for _ in range(12):
            at = rng.randrange(disk.size // unit) * unit
            length = rng.randint(1, 300 * KIB // unit) * unit
            disk.pwrite(at, rng.randbytes(min(length, disk.size - at)))
            at = rng.randrange(disk.size // unit) * unit
            disk.zero(at, length=min(100 * KIB, disk.size - at))


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_a_disk(kind: str, tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vhd"
    tapcore.create_image(f"vhd:{image}", SIZE, options={"subformat": kind})
    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        disk.pwrite(0, some_content(rng, SIZE))
    want = content_of(image)
    assert libvhdi_content(image) == want
    assert VHD(io.BytesIO(image.read_bytes())).read(SIZE) == want


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_a_disk_whose_size_changes(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """Not by libvhdi, which goes by the size that an image was made with."""
    image = tmp_path / "disk.vhd"
    options = {"subformat": kind, "block_size": "512K"}
    tapcore.create_image(f"vhd:{image}", SIZE, options=options)
    for size in (SIZE, 7 * MIB + 512, 3 * MIB, 4 * MIB):
        with tapcore.open(f"vhd:{image}", readonly=False) as disk:
            disk.resize(size)
        work(image, rng)
        check_image(f"vhd:{image}", repair="leaks")
        assert VHD(io.BytesIO(image.read_bytes())).read(size) == content_of(image)


def test_a_chain(tmp_path: Path, rng: random.Random) -> None:
    """And when another parent was recorded.

    All bits of a bitmap's byte are the same: libvhdi takes sectors beside one that is stored, in
    the same byte, for stored (20260901), and dissect.hypervisor reads no parents.
    """
    names = [tmp_path / f"{name}.vhd" for name in ("base", "child", "leaf")]
    size = 5 * MIB + 4 * KIB
    tapcore.create_image(f"vhd:{names[0]}", size)
    with tapcore.open(f"vhd:{names[0]}", readonly=False) as disk:
        disk.pwrite(0, some_content(rng, size))
    for below, name in pairwise(names):
        tapcore.create_image(f"vhd:{name}", None, parent=below.name)
        work(name, rng, 4 * KIB)
    want = content_of(names[2])
    assert libvhdi_content(names[2], names[1], names[0]) == want
    rebase_image(f"vhd:{names[2]}", f"vhd:{names[0]}")
    assert content_of(names[2]) == want == libvhdi_content(names[2], names[0])
