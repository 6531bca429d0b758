"""info, measure, resize, options, probing: what tools ask a VMDK."""

import os
import random
import subprocess
from pathlib import Path

import pytest

import tapcore
from diskmodel import run_all
from peers import peer
from tapcore.disk import Disk
from tapcore.engine import WRITE, Request
from tapcore.interface.models import TapDisk
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.interface.registry import default_registry
from tapcore.opening.chain import open_disk
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info


def drv() -> TapDisk:
    found = default_registry().get("vmdk").drv
    assert found is not None
    return found


def test_info(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    options = {"hwversion": "10", "adapter_type": "lsilogic", "zeroed_grain": "on"}
    tapcore.create_image(f"vmdk:{image}", 1 << 20, options=options)
    (info,) = image_info(f"vmdk:{image}")
    found = info.format
    assert found["subformat"] == "monolithicSparse"
    assert found["grain_size"] == 65536
    assert found["parent_cid"] == "ffffffff"
    assert len(found["cid"]) == 8
    assert found["extents"] == [
        {"type": "SPARSE", "access": "RW", "size": 1 << 20, "grain_size": 65536}
    ]
    assert (found["adapter_type"], found["hwversion"]) == ("lsilogic", "10")
    assert (found["version"], found["zeroed_grain"], found["compressed"]) == (2, True, False)


def test_info_of_a_split_disk_opens_nothing_else(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    size = 3 << 30
    tapcore.create_image(f"vmdk:{image}", size, options={"subformat": "twoGbMaxExtentSparse"})
    for path in tmp_path.glob("disk-s*.vmdk"):
        path.unlink()
    (info,) = image_info(f"vmdk:{image}")
    assert info.virtual_size == size
    assert [e["filename"] for e in info.format["extents"]] == ["disk-s001.vmdk", "disk-s002.vmdk"]
    assert sum(e["size"] for e in info.format["extents"]) == size


@pytest.mark.parametrize("kind", ["monolithicSparse", "monolithicFlat"])
def test_growing(tmp_path: Path, rng: random.Random, kind: str) -> None:
    image = tmp_path / "disk.vmdk"
    size = (3 << 20) + 512
    tapcore.create_image(f"vmdk:{image}", size, options={"subformat": kind})
    content = rng.randbytes(size)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, content)
        for new in (40 << 20, 6 << 30):  # more tables, then a directory that does not fit
            disk.resize(new)
            assert disk.pread(size, length=1 << 20) == bytes(1 << 20)
            disk.pwrite(new - 512, b"e" * 512)
        with pytest.raises(tapcore.NotSupportedError, match="smaller"):
            disk.resize(size)
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.size == 6 << 30
        assert disk.pread(0, length=size) == content
        assert disk.pread((40 << 20) - 512, length=1024) == b"e" * 512 + bytes(512)
        assert disk.pread((6 << 30) - 512, length=512) == b"e" * 512
    subprocess.run([peer("qemu-img"), "check", str(image)], check=True, capture_output=True)
    subprocess.run(
        [peer("qemu-io"), "-f", "vmdk", "-c", "read -P 101 6442450432 512", str(image)],
        check=True,
        capture_output=True,
    )
    found = check_image(f"vmdk:{image}")
    assert (found.corruptions, found.leaks) == (0, 0), found.messages


def test_a_child_of_a_longer_parent_does_not_grow(tmp_path: Path) -> None:
    tapcore.create_image(f"vmdk:{tmp_path}/base.vmdk", 2 << 20)
    tapcore.create_image(f"vmdk:{tmp_path}/child.vmdk", 1 << 20, parent="vmdk:base.vmdk")
    with (
        tapcore.open(f"vmdk:{tmp_path}/child.vmdk", readonly=False) as disk,
        pytest.raises(tapcore.NotSupportedError, match="longer"),
    ):
        disk.resize(3 << 20)


@pytest.mark.parametrize(
    "kind", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "streamOptimized"]
)
def test_measure(tmp_path: Path, rng: random.Random, kind: str) -> None:
    size, options = (5 << 20) + 512, {"subformat": kind}
    data = [(0, 1000), (1000, 65536), (4 << 20, 70000), (size - 512, 512)]
    said = drv().td_measure(size, options, iter(data))
    image = tmp_path / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", size, options=options)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for start, length in data:
            disk.pwrite(start, rng.randbytes(length))
    used = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert used <= said.required
    if kind != "streamOptimized":  # of which only the worst case can be told
        assert said.required <= used + 70_000
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, rng.randbytes(size))
    if kind != "streamOptimized":  # which keeps what was written before
        used = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert used <= said.fully_allocated <= used + 70_000


@pytest.mark.parametrize(
    "options",
    [
        {"hwversion": "0"},
        {"hwversion": "x"},
        {"hwversion": "99999999999999999999"},
        {"subformat": "monolithicFlat", "zeroed_grain": "on"},
        {"subformat": "streamOptimized", "zeroed_grain": "on"},
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(tapcore.UsageError):
        tapcore.create_image(f"vmdk:{tmp_path}/disk.vmdk", 4096, options=options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 1 << 50])
def test_sizes_that_make_no_sense(tmp_path: Path, size: int) -> None:
    with pytest.raises(tapcore.UsageError):
        tapcore.create_image(f"vmdk:{tmp_path}/disk.vmdk", size)
    assert not list(tmp_path.iterdir())


def test_a_large_disk_is_made_and_opened_quickly(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", 8 << 40)
    assert image.stat().st_blocks * 512 < 10 << 20
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite((8 << 40) - 1000, b"end")
        assert disk.pread((8 << 40) - 1001, length=5) == b"\0end\0"


def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tapcore.UsageError, match="quotes"):
        tapcore.create_image(f'vmdk:{tmp_path}/a"b.vmdk', 4096)
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text(tmp_path: Path, rng: random.Random) -> None:
    name = os.fsdecode(b"caf\xe9.vmdk")
    options = {"subformat": "monolithicFlat"}
    tapcore.create_image(f"vmdk:{tmp_path}/{name}", 4096, options=options)
    with tapcore.open(f"vmdk:{tmp_path}/{name}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 4096)
    assert (tmp_path / os.fsdecode(b"caf\xe9-flat.vmdk")).read_bytes() == b"x" * 4096


def test_probing(tmp_path: Path) -> None:
    for kind in ("monolithicSparse", "monolithicFlat", "streamOptimized"):
        image = tmp_path / f"{kind}.vmdk"
        tapcore.create_image(f"vmdk:{image}", 4096, options={"subformat": kind})
        with tapcore.open(str(image), readonly=True) as disk:
            assert disk.handle == "vmdk"


def test_many_writes_into_one_new_grain_at_once(tmp_path: Path, rng: random.Random) -> None:
    """They wait for the grain instead of each taking one."""
    image = tmp_path / "disk.vmdk"
    tapcore.create_image(f"vmdk:{image}", 1 << 20)
    content = rng.randbytes(65536)
    with tapcore.open(f"vmdk:{image}", cache="none", readonly=False) as disk:
        pieces = [memoryview(bytearray(content[at : at + 4096])) for at in range(0, 65536, 4096)]
        requests = [
            Request(WRITE, n * 4096, 4096, piece, lambda _: None) for n, piece in enumerate(pieces)
        ]
        rng.shuffle(requests)
        run_all(disk, requests)
        assert not any(request.status for request in requests)
        assert disk.pread(0, length=65536) == content
    assert image.stat().st_size == 65536 * 2


@pytest.mark.parametrize("kind", ["monolithicSparse", "streamOptimized"])
def test_tables_come_and_go_in_a_small_cache(tmp_path: Path, rng: random.Random, kind: str) -> None:
    """64 tables, of which 16 are kept, at work in both directions."""
    image, size = tmp_path / "disk.vmdk", 2 << 30
    tapcore.create_image(f"vmdk:{image}", size, options={"subformat": kind})
    content: dict[int, bytes] = {}
    for cache in (0, None):
        options = OpenOptions(metadata_cache=cache)
        state = open_disk(DiskId(str(image), "vmdk"), default_registry(), options=options)
        with Disk(state) as disk:
            for _ in range(150):
                at = rng.randrange(size >> 16) << 16
                content[at] = rng.randbytes(512)
                disk.pwrite(at, content[at])
                if rng.random() < 0.1:
                    disk.sync()
                at = rng.choice(list(content))
                assert disk.pread(at, length=512) == content[at]
            tables = state.disks.private.parts[0].map.tables
            if cache == 0:
                disk.sync()
                disk.pread(0, length=512)
                assert len(tables) < 64
            for at, piece in content.items():
                assert disk.pread(at, length=512) == piece
