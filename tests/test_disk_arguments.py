"""What a call of a disk is given: checked at once, answered with words, never with a hang."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore import Disk

SIZE = 1 << 20


@pytest.fixture(params=["aio", "sync", "ram", "qcow2"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    name = "ram:1M"
    if request.param != "ram":
        name = f"{request.param}:{tmp_path / 'disk'}"
        tapcore.create_image(name, SIZE)
    with tapcore.open(name, readonly=False) as opened:
        yield opened


RANGES: dict[str, Callable[[Disk, Any, Any], object]] = {
    "zero": lambda disk, offset, length: disk.zero(offset, length=length),
    "discard": lambda disk, offset, length: disk.discard(offset, length=length),
    "extents": lambda disk, offset, length: disk.extents(offset, length=length),
    "pwrite": lambda disk, offset, length: disk.pwrite(offset, bytes(length)),
    "pread": lambda disk, offset, length: disk.pread(offset, length=length),
}


@pytest.mark.parametrize("call", RANGES)
def test_a_range_is_checked_when_the_call_is_made(disk: Disk, call: str) -> None:
    do = RANGES[call]
    with pytest.raises(tapcore.UsageError, match="must not be negative"):
        do(disk, -1, 1)
    if call != "pwrite":
        with pytest.raises(tapcore.UsageError, match="must not be negative"):
            do(disk, 0, -1)
    for wrong in (1.0, "1", None, b"1"):
        with pytest.raises(TypeError):
            do(disk, wrong, 1)
        if call != "pwrite" and (call, wrong) != ("extents", None):
            with pytest.raises(TypeError):
                do(disk, 0, wrong)
    for past in (SIZE, SIZE + 1, 1 << 63, 1 << 64, 1 << 200):
        if call == "pread":
            assert do(disk, past, 1) == b""
        else:
            with pytest.raises(tapcore.OutOfRangeError, match="past the end of the disk"):
                do(disk, past, 1)


def test_a_buffer_that_cannot_be_written_is_refused(disk: Disk) -> None:
    disk.pwrite(0, b"content")
    for buffer in (bytes(3), memoryview(bytearray(3)).toreadonly(), bytes(SIZE)):
        given: Any = buffer
        with pytest.raises(TypeError):
            disk.pread_into(0, given)
        with pytest.raises(TypeError):
            disk.readinto(given)
    assert disk.pread(0, length=7) == b"content"


@pytest.mark.parametrize("size", [0, -512, 513, 1 << 63, 1 << 64])
def test_a_size_that_no_disk_can_have_is_refused(disk: Disk, tmp_path: Path, size: int) -> None:
    with pytest.raises(tapcore.UsageError):
        disk.resize(size)
    assert disk.size == SIZE
    for name in ("new.qcow2", "new.img", "new.vmdk", "new.qcow"):
        with pytest.raises(tapcore.UsageError):
            tapcore.create_image(tmp_path / name, size)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("size", [1.0, b"1M"])
def test_a_size_that_is_no_number_is_refused(disk: Disk, tmp_path: Path, size: Any) -> None:
    with pytest.raises(TypeError):
        disk.resize(size)
    with pytest.raises(TypeError):
        tapcore.create_image(tmp_path / "new.qcow2", size)


def test_a_position_is_a_whole_number(disk: Disk) -> None:
    for wrong in ((1.5,), ("0",), (None,), (0, 1.0), (0, "x")):
        with pytest.raises(TypeError):
            disk.seek(*wrong)
    assert disk.tell() == 0
    assert disk.seek(1 << 64) == 1 << 64
    assert disk.read(1) == b""
    assert disk.write(b"") == 0


def test_compressed_clusters_are_whole(tmp_path: Path) -> None:
    tapcore.create_image(f"qcow2:{tmp_path / 'disk'}", SIZE + 512)
    with tapcore.open(f"qcow2:{tmp_path / 'disk'}", readonly=False) as disk:
        for offset, count in ((1, 65536), (512, 65536), (0, 512), (0, 65535)):
            with pytest.raises(tapcore.UsageError, match="whole clusters of 65536 bytes"):
                disk.write_compressed(offset, bytes(count))
        disk.write_compressed(SIZE - 65536, b"x" * 65536 + b"y" * 512)
        assert disk.pread(SIZE, length=512) == b"y" * 512


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_open_disk_has_no_copy(disk: Disk, how: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="open it again"):
        how(disk)
    assert disk.pread(0, length=1) == b"\0"


@pytest.mark.parametrize(
    "call",
    [
        lambda disk: disk.readable(),
        lambda disk: disk.writable(),
        lambda disk: disk.seekable(),
        lambda disk: disk.truncate(),
        lambda disk: disk.extents(),
        lambda disk: disk.write(b""),
        lambda disk: iter(disk),
    ],
)
def test_every_call_of_a_closed_disk_is_a_value_error(
    disk: Disk, call: Callable[[Disk], object]
) -> None:
    disk.close()
    with pytest.raises(ValueError, match="closed"):
        call(disk)
