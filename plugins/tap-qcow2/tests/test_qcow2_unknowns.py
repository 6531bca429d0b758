"""What is not known here is kept, or cleared, as the specification says; and the smallest disks."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import tapcore
from qcow2tools import MIB, assert_clean, content_by_qemu, create, qemu_img, qemu_io
from qcow2walk import walk

STRANGE = 0x5354_5247
CONTENT = b"what this means is not known here"
UNKNOWN_BIT = 1 << 41


def with_unknowns(image: Path) -> None:
    """An unknown extension in front of the others, unknown compatible and autoclear bits."""
    content = bytearray(image.read_bytes())
    compatible, autoclear = struct.unpack_from(">QQ", content, 80)
    struct.pack_into(">QQ", content, 80, compatible | UNKNOWN_BIT, autoclear | UNKNOWN_BIT)
    (start,) = struct.unpack_from(">I", content, 100)
    extension = struct.pack(">II", STRANGE, len(CONTENT)) + CONTENT.ljust(40, b"\0")
    room = content[start : start + 1024]
    content[start : start + 1024 + len(extension)] = extension + room
    (backing,) = struct.unpack_from(">Q", content, 8)
    if backing:
        struct.pack_into(">Q", content, 8, backing + len(extension))
    image.write_bytes(content)


def unknowns(image: Path) -> tuple[bool, bool, bool]:
    """Whether the extension, the compatible bit and the autoclear bit are there."""
    content = image.read_bytes()
    found = walk(content)
    strange = [
        content[at : at + length] for kind, at, length in found.extensions if kind == STRANGE
    ]
    return (
        strange == [CONTENT],
        bool(found.compatible & UNKNOWN_BIT),
        bool(found.autoclear & UNKNOWN_BIT),
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "parent.raw").write_bytes(b"p" * MIB)
    path = create(tmp_path / "disk.qcow2", MIB, parent="parent.raw", form="raw", cluster_size=4096)
    qemu_io(path, "write -P 7 0 64k")
    with_unknowns(path)
    assert_clean(path)
    assert unknowns(path) == (True, True, True)
    return path


def test_reading_changes_nothing(image: Path) -> None:
    before = image.read_bytes()
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, length=MIB) == b"\7" * 65536 + b"p" * (MIB - 65536)
    assert image.read_bytes() == before


def _write(disk: tapcore.Disk) -> None:
    disk.pwrite(5000, b"w")


def _grow(disk: tapcore.Disk) -> None:
    disk.resize(40 * MIB)


def _snapshot(disk: tapcore.Disk) -> None:
    dd = disk.state.disks
    dd.drv.td_snapshot_create(dd, "s")


def _amend(disk: tapcore.Disk) -> None:
    dd = disk.state.disks
    dd.drv.td_amend(dd, {"lazy_refcounts": "on", "refcount_bits": "32"})


def _set_parent(disk: tapcore.Disk) -> None:
    dd = disk.state.disks
    dd.drv.td_set_parent(dd, tapcore.DiskId("a-much-longer-name-of-the-parent.raw", "aio"))


@pytest.mark.parametrize("change", [_write, _grow, _snapshot, _amend, _set_parent])
def test_a_change_keeps_what_is_compatible_and_clears_the_autoclear_bits(
    change: Callable[[tapcore.Disk], None], image: Path
) -> None:
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        change(disk)
    assert unknowns(image) == (True, True, False)
    if change is _set_parent:
        (image.parent / "parent.raw").rename(image.parent / "a-much-longer-name-of-the-parent.raw")
    assert_clean(image)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(MIB - 4096, length=4096) == b"p" * 4096


def test_qemu_and_we_agree_about_the_autoclear_bits(image: Path) -> None:
    qemu_io(image, "write -P 8 8k 4k")
    assert unknowns(image) == (True, True, False)


# ---- small, and smaller -------------------------------------------------------------------------


def test_a_disk_without_a_sector(tmp_path: Path) -> None:
    """QEMU makes one: it is opened, and grown; we make none."""
    image = create(tmp_path / "theirs.qcow2", 0)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        assert disk.size == 0
        assert disk.pread(0, length=512) == b""
        assert list(disk.extents()) == []
    assert_clean(image)
    assert content_by_qemu(image) == b""
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.resize(MIB)
        disk.pwrite(MIB - 5, b"w" * 5)
    assert_clean(image)
    assert content_by_qemu(image) == bytes(MIB - 5) + b"w" * 5
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk, pytest.raises(tapcore.UsageError):
        disk.resize(0)
    with pytest.raises(tapcore.UsageError, match="at least one sector"):
        tapcore.create_image(f"qcow2:{tmp_path / 'ours.qcow2'}", 0)


def test_snapshots_of_a_disk_without_a_sector(tmp_path: Path) -> None:
    """Made when it had none, by either, applied when it has some, and back."""
    for number in range(2):
        image = create(tmp_path / f"disk{number}.qcow2", 0)
        if number:
            qemu_img("snapshot", "-c", "empty", image)
        else:
            with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
                _snapshot_named(disk, "create", "empty")
        assert_clean(image)
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            disk.resize(MIB)
            disk.pwrite(0, b"w" * MIB)
            _snapshot_named(disk, "create", "full")
        assert_clean(image)
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            _snapshot_named(disk, "apply", "empty")
        assert_clean(image)
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            assert disk.size == 0
            _snapshot_named(disk, "apply", "full")
        assert_clean(image)
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            assert disk.pread(0, length=MIB) == b"w" * MIB
            _snapshot_named(disk, "delete", "empty")
        assert_clean(image)


def _snapshot_named(disk: tapcore.Disk, what: str, name: str) -> None:
    dd = disk.state.disks
    getattr(dd.drv, f"td_snapshot_{what}")(dd, name)


@pytest.mark.parametrize("size", [512, 1024, 65536 - 512, 65536 + 512])
@pytest.mark.parametrize("options", [{}, {"extended_l2": "on"}, {"cluster_size": "2M"}])
def test_a_disk_of_a_few_sectors(size: int, options: dict[str, str], tmp_path: Path) -> None:
    ours = tmp_path / "ours.qcow2"
    tapcore.create_image(f"qcow2:{ours}", size, options=options)
    theirs = create(tmp_path / "theirs.qcow2", size, **options)
    for image in (ours, theirs):
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            disk.pwrite(size - 512, b"e" * 512)
            disk.zero(0, length=512 if size > 512 else 0)
        assert_clean(image)
        assert content_by_qemu(image) == bytes(size - 512) + b"e" * 512
        qemu_io(image, f"write -P 9 {size - 512} 512")
        with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
            assert disk.pread(0, length=size) == bytes(size - 512) + b"\t" * 512
            disk.discard(0, length=size)
        assert_clean(image)
        assert not any(content_by_qemu(image))
