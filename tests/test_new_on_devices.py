"""Images made on block devices that held something: nothing of it is taken for their own."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapcore
from hostfs import loop_device
from tapcore.tools.check import check_image
from tapcore.tools.create import create_image

MIB = 1 << 20
ANY = tapcore.ReferencePolicy(any=True)


@pytest.fixture
def used_device(tmp_path: Path, rng: random.Random) -> Iterator[str]:
    """A block device of 24 MiB full of numbers that look like entries of tables."""
    backing = tmp_path / "backing"
    entry = (1 << 63 | 5 << 16).to_bytes(8, "big")
    backing.write_bytes((entry * 64 + rng.randbytes(512)) * (24 * MIB // 1024))
    with loop_device(backing) as device:
        yield device


def all_read(name: str) -> bytes:
    with tapcore.open(name, readonly=True, parents="any") as disk:
        return disk.readall()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": "512"},
        {"extended_l2": "on"},
        {"preallocation": "metadata"},
        {"preallocation": "falloc"},
        {"preallocation": "full"},
        {"refcount_bits": "1", "cluster_size": "2M"},
    ],
    ids=str,
)
def test_a_qcow2_on_a_device_trusts_nothing_that_was_there(
    used_device: str, rng: random.Random, options: dict[str, str]
) -> None:
    name = f"qcow2:{used_device}"
    with pytest.raises(tapcore.UsageError, match="--force"):
        create_image(name, 8 * MIB, options=options)
    create_image(name, 8 * MIB, options=options, force=True)
    assert check_image(name).corruptions == check_image(name).leaks == 0
    assert all_read(name) == bytes(8 * MIB)
    content = bytearray(8 * MIB)
    with tapcore.open(name, readonly=False) as disk:
        for _ in range(20):  # parts of clusters: the rest is zeroes, not what was there
            at = rng.randrange(8 * MIB - 3000)
            content[at : at + 3000] = piece = rng.randbytes(3000)
            disk.pwrite(at, piece)
    assert all_read(name) == content
    assert check_image(name).corruptions == 0
    compare = ["qemu-img", "check", "-q", "-f", "qcow2", used_device]
    assert subprocess.run(compare, check=False).returncode in (0, 3)


@pytest.mark.parametrize("handle", ["aio", "sync", "qcow2"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_copy_onto_a_device_reads_as_its_source(
    used_device: str, tmp_path: Path, rng: random.Random, handle: str, compressed: bool
) -> None:
    if compressed and handle != "qcow2":
        return
    content = bytes(3 * MIB) + rng.randbytes(MIB) + bytes(MIB + 512)
    (tmp_path / "source").write_bytes(content)
    tapcore.convert_image(
        f"aio:{tmp_path}/source", f"{handle}:{used_device}", force=True, compressed=compressed
    )
    assert all_read(f"{handle}:{used_device}")[: len(content)] == content


@pytest.mark.parametrize("handle", ["aio", "sync"])
def test_a_raw_disk_on_a_device_is_said_to_have_its_size_and_old_content(
    used_device: str, tmp_path: Path, handle: str, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    name = f"{handle}:{used_device}"
    before = all_read(name)
    text = f"{used_device}: is a block device: the disk has its size (24 MiB), and holds what it"
    create_image(name, 8 * MIB, force=True)
    assert said() == [f"{text} held from 0 B on"]
    assert all_read(name) == before
    create_image(name, 8 * MIB, options={"preallocation": "full"}, force=True)
    assert said() == [f"{text} held from 8 MiB on"]
    assert all_read(name) == bytes(8 * MIB) + before[8 * MIB :]
    for size, told in ((16 * MIB, [f"{text} held from 16 MiB on"]), (24 * MIB, [])):
        with open(tmp_path / "source", "wb") as source:
            source.truncate(size)
        tapcore.convert_image(f"aio:{tmp_path}/source", name, force=True)
        assert said() == told
        assert all_read(name) == bytes(size) + before[size:]


@pytest.mark.parametrize("raw", ["on", "off"])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "full"])
def test_a_data_file_may_be_a_device_and_reads_as_zeroes(
    used_device: str, tmp_path: Path, raw: str, preallocation: str
) -> None:
    options = {"data_file": used_device, "data_file_raw": raw, "preallocation": preallocation}
    name = f"qcow2:{tmp_path}/disk.qcow2"
    with pytest.raises(tapcore.UsageError, match="--force"):
        create_image(name, 8 * MIB, options=options)
    assert os.listdir(tmp_path) == ["backing"]
    create_image(name, 8 * MIB, options=options, force=True)
    assert all_read(name) == bytes(8 * MIB)
    with tapcore.open(name, parents="any", readonly=False) as disk:
        disk.pwrite(MIB + 100, b"own")
    assert all_read(name) == (bytes(MIB + 100) + b"own").ljust(8 * MIB, b"\0")
    (tmp_path / "source").write_bytes(os.urandom(MIB) + bytes(MIB))
    tapcore.convert_image(f"aio:{tmp_path}/source", name, options=options, parents=ANY, force=True)
    assert all_read(name) == (tmp_path / "source").read_bytes()
    if raw == "on":
        assert all_read(f"aio:{used_device}")[: 2 * MIB] == all_read(name)


@pytest.mark.parametrize(
    ("handle", "options", "message"),
    [
        ("vmdk", {}, "a VMDK needs files, not a block device"),
        ("vmdk", {"subformat": "monolithicFlat"}, "a VMDK needs files, not a block device"),
        ("vmdk", {"subformat": "streamOptimized"}, "a VMDK needs files, not a block device"),
        ("qcow", {}, "it needs a file, not a device"),
        ("qcow2", {"cluster_size": "3M"}, "power of two"),
        ("aio", {"preallocation": "some"}, "is not a value"),
    ],
)
def test_what_cannot_be_on_a_device_leaves_it_as_it_was(
    used_device: str, tmp_path: Path, handle: str, options: dict[str, str], message: str
) -> None:
    before = (tmp_path / "backing").read_bytes()
    with pytest.raises(tapcore.TapError, match=message):
        create_image(f"{handle}:{used_device}", MIB, options=options, force=True)
    with pytest.raises(tapcore.TapError):
        create_image(f"{handle}:{used_device}", 1 << 40, options=options, force=True)
    subprocess.run(["sync", used_device], check=True)
    assert (tmp_path / "backing").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["backing"]
