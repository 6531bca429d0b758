"""Making plain files: what is reserved, what is replaced, and what is never removed."""

import errno
import os
import stat
from pathlib import Path

import pytest

import tapcore
from hostfs import loop_device
from tapcore import create_host_file
from tapcore.interface.registry import default_registry

MIB = 1 << 20


@pytest.mark.parametrize("how", ["off", "falloc", "full"])
def test_preallocation_reserves_what_it_says(how: str, tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    create_host_file(str(path), 3 * MIB + 512, how)
    assert path.read_bytes() == bytes(3 * MIB + 512)
    taken = path.stat().st_blocks * 512
    assert taken == 0 if how == "off" else taken >= 3 * MIB


@pytest.mark.parametrize("handle", ["aio", "sync"])
def test_a_driver_makes_plain_files_without_parents(handle: str, tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    drv = default_registry().operations(handle, ())
    drv.td_create(str(path), 2 * MIB, None, {"preallocation": "falloc"})
    assert (path.stat().st_size, path.stat().st_blocks * 512 >= 2 * MIB) == (2 * MIB, True)
    with tapcore.open(f"{handle}:{path}", readonly=False) as disk:
        assert disk.info() == {"kind": "file", "file_size": 2 * MIB}
    with pytest.raises(tapcore.UsageError, match="needs a size"):
        drv.td_create(str(path), None, None, {})
    with pytest.raises(tapcore.UsageError, match="stands alone"):
        drv.td_create(str(path), MIB, tapcore.DiskId("parent"), {})


def test_an_old_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"x" * MIB)
    create_host_file(str(path), 2 * MIB)
    assert path.read_bytes() == bytes(2 * MIB)


def test_an_image_that_is_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"x" * MIB)
    for readonly in (True, False):
        with tapcore.open(f"sync:{path}", readonly=readonly) as disk:
            with pytest.raises(tapcore.ImageLockedError, match="is in use"):
                create_host_file(str(path), 2 * MIB)
            assert disk.pread(0, length=MIB) == b"x" * MIB
    assert path.read_bytes() == b"x" * MIB


def test_a_block_device_is_used_as_it_is_and_never_removed(tmp_path: Path) -> None:
    backing = tmp_path / "backing.img"
    backing.write_bytes(b"x" * MIB)
    with loop_device(backing) as device:
        node = tmp_path / "node"  # a node of our own, so that a bug costs nothing
        os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
        create_host_file(str(node), MIB)
        with pytest.raises(tapcore.UsageError, match="smaller than the image"):
            create_host_file(str(node), MIB + 512)
        assert node.is_block_device()
    assert backing.read_bytes() == b"x" * MIB


def test_what_is_not_an_image_is_neither_made_into_one_nor_removed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    if os.geteuid() == 0:
        null = tmp_path / "null"
        os.mknod(null, stat.S_IFCHR | 0o600, os.stat("/dev/null").st_rdev)
        with pytest.raises(tapcore.ImageOpenError, match="is a character device"):
            create_host_file(str(null), MIB)
        assert null.is_char_device()
    with pytest.raises(tapcore.ImageOpenError, match="is a pipe"):
        create_host_file(str(fifo), MIB)
    assert fifo.is_fifo()
    with pytest.raises((tapcore.TapError, OSError)) as caught:
        create_host_file(str(tmp_path), MIB)
    assert caught.value.errno in (errno.EISDIR, errno.EINVAL)


@pytest.mark.parametrize("how", ["falloc", "full"])
def test_a_failure_leaves_nothing_behind(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EDQUOT, "full")

    monkeypatch.setattr(os, "posix_fallocate", fails)
    monkeypatch.setattr(os, "pwrite", fails)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="full"):
        create_host_file(str(tmp_path / "new.img"), MIB, how)
    assert os.listdir(tmp_path) == []
    assert os.listdir("/proc/self/fd") == before


def test_what_was_made_can_be_taken_back_and_nothing_else(tmp_path: Path) -> None:
    tapcore.create_host_file(str(tmp_path / "made"), 512)
    os.mkfifo(tmp_path / "fifo")  # as a device node would be
    (tmp_path / "folder").mkdir()
    for name in ("made", "fifo", "folder", "nothing"):
        tapcore.remove_host_file(str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder"]
