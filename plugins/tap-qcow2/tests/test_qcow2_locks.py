"""An image in use: tapcore and QEMU refuse each other's where one of them writes, files named by
the image included; readers share."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tapcore
from peers import peer
from qcow2tools import MIB, create, qemu_img, qemu_io
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image

READ = ("-f", "qcow2", "-r")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = create(tmp_path / "disk.qcow2", MIB)
    qemu_io(path, "write -P 7 0 1M")
    return path


def refused_to_qemu(image: Path, *options: str) -> bool:
    """Whether qemu-io cannot open an image because of a lock."""
    words = [peer("qemu-io"), *options, "-c", "quit", str(image)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=image.parent)
    assert bool(done.returncode) == ("lock" in done.stderr), done.stderr
    return bool(done.returncode)


@contextmanager
def held_by_qemu(image: Path, *options: str) -> Iterator[int]:
    """A qemu-io that has the image open; its process number."""
    words = [peer("qemu-io"), *(options or ("-f", "qcow2")), str(image)]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=image.parent
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("length\n")
        process.stdin.flush()
        assert process.stdout.readline(), "qemu-io cannot open it"
        yield process.pid
    finally:
        process.communicate("quit\n")


def test_our_writer_keeps_qemu_out(image: Path) -> None:
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"mine")
        assert refused_to_qemu(image, "-f", "qcow2")
        assert refused_to_qemu(image, *READ)
        for words in (["check"], ["info"], ["snapshot", "-c", "x"], ["resize"]):
            size = ["2M"] if words == ["resize"] else []
            qemu_img(*words, image, *size, status=1)
    assert not refused_to_qemu(image, "-f", "qcow2")


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_qemus_writer_keeps_us_out_and_is_named(image: Path, cache: tapcore.CacheMode) -> None:
    with held_by_qemu(image) as pid:
        for readonly in (True, False):
            with pytest.raises(tapcore.ImageLockedError, match=f"qemu-io .process {pid}"):
                tapcore.open(f"qcow2:{image}", readonly=readonly, cache=cache)
        with pytest.raises(tapcore.ImageLockedError):
            check_image(f"qcow2:{image}")
        with pytest.raises(tapcore.ImageLockedError):
            check_image(f"qcow2:{image}", repair="all")
        with tapcore.open(f"qcow2:{image}", readonly=True, lock=False) as disk:
            assert disk.pread(0, length=2) == b"\7\7"
        inspect_image(f"qcow2:{image}")  # looks without asking
        image_info(f"qcow2:{image}")
    tapcore.open(f"qcow2:{image}", readonly=False).close()


def test_readers_share(image: Path) -> None:
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert not refused_to_qemu(image, *READ)
        assert refused_to_qemu(image, "-f", "qcow2")
        with held_by_qemu(image, *READ), tapcore.open(f"qcow2:{image}", readonly=True) as other:
            assert disk.pread(0, length=MIB) == other.pread(0, length=MIB)
    with held_by_qemu(image, *READ):
        with pytest.raises(tapcore.ImageLockedError):
            tapcore.open(f"qcow2:{image}", readonly=False)
        check_image(f"qcow2:{image}")


def test_two_writers_of_ours(image: Path) -> None:
    with (
        tapcore.open(f"qcow2:{image}", readonly=False),
        pytest.raises(tapcore.ImageLockedError, match="itself"),
    ):
        tapcore.open(f"qcow2:{image}", readonly=False)


def test_the_parent_of_a_disk_in_use_may_be_read_and_not_written(image: Path) -> None:
    child = create(image.with_name("child.qcow2"), parent=image.name)
    with tapcore.open(f"qcow2:{child}", readonly=False) as disk:
        assert disk.pread(0, length=2) == b"\7\7"
        assert not refused_to_qemu(image, *READ)
        assert refused_to_qemu(image, "-f", "qcow2")
        other = create(image.with_name("other.qcow2"), parent=image.name)
        with held_by_qemu(other), tapcore.open(f"qcow2:{image}", readonly=True):
            disk.pwrite(0, b"mine")
    with held_by_qemu(image), pytest.raises(tapcore.ImageLockedError, match=r"disk\.qcow2"):
        tapcore.open(f"qcow2:{child}", readonly=False)
    with held_by_qemu(child), pytest.raises(tapcore.ImageLockedError):
        tapcore.open(f"qcow2:{image}", readonly=False)


def test_a_data_file_is_locked_like_the_image(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, data_file="disk.data")
    data = tmp_path / "disk.data"
    with tapcore.open(f"qcow2:{image}", readonly=False):
        assert refused_to_qemu(data, "-f", "raw")
    with tapcore.open(f"qcow2:{image}", readonly=True):
        assert refused_to_qemu(data, "-f", "raw")
        assert not refused_to_qemu(data, "-f", "raw", "-r")
    with held_by_qemu(data, "-f", "raw"):
        for readonly in (True, False):
            with pytest.raises(tapcore.ImageLockedError, match=r"disk\.data"):
                tapcore.open(f"qcow2:{image}", readonly=readonly)
    with held_by_qemu(image), pytest.raises(tapcore.ImageLockedError):
        tapcore.open(f"aio:{data}", readonly=False)
    tapcore.open(f"qcow2:{image}", readonly=False).close()
