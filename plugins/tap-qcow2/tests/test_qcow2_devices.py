"""Images on block devices: they cannot grow; being full costs only the write that finds it."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapcore
from peers import missing, peer

MIB = 1 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A loop device of 64 MiB."""
    backing = tmp_path / "backing"
    with open(backing, "wb") as file:
        file.truncate(64 * MIB)
    done = subprocess.run(
        ["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False
    )
    if done.returncode:
        missing(f"no loop device: {done.stderr.strip()}")
    yield done.stdout.strip()
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


def test_a_device_that_is_full_keeps_what_it_has(device: str) -> None:
    tapcore.create_image(f"qcow2:{device}", 1 << 30, force=True)
    with tapcore.open(f"qcow2:{device}", readonly=False) as disk:
        disk.pwrite(5 * MIB, b"x" * 300_000)
        with pytest.raises(tapcore.TapError) as caught:
            disk.pwrite(100 * MIB, b"y" * (80 * MIB))
        assert caught.value.errno == errno.ENOSPC
        disk.pwrite(5 * MIB, b"z" * 1000)
        disk.sync()
    with tapcore.open(f"qcow2:{device}", readonly=True) as disk:
        assert disk.pread(5 * MIB, length=300_000) == b"z" * 1000 + b"x" * 299_000
    check = [peer("qemu-img"), "check", "-f", "qcow2", device]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
