"""Formats whose own file is another disk: what they hold is what they hold in a file."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import tapcore
from diskmodel import Model
from peers import peer
from tapcore import TapError, UsageError
from tapcore.engine import READ, WRITE, Request, engine_of
from tapcore.engine.drive import EngineLoop
from tapcore.tools.check import check_image, check_status

MIB = 1 << 20
SIZE = 8 * MIB
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


def nested(folder: Path, handle: str, outer: str, room: int = 16 * MIB) -> tuple[str, bytes]:
    """An image in the virtual disk of another; its name, and what it holds."""
    inner = folder / f"inner.{handle}"
    tapcore.create_image(f"{handle}:{inner}", SIZE)
    content = random.Random(7).randbytes(MIB) + bytes(SIZE - MIB)
    with tapcore.open(f"{handle}:{inner}", readonly=False) as disk:
        disk.pwrite(0, content[:MIB])
    name = f"{outer}:{folder / 'outer'}"
    tapcore.create_image(name, room)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, inner.read_bytes())
    inner.unlink()
    return f"{handle}:{name}", content


@pytest.mark.parametrize("outer", ["aio", "qcow2", "vmdk"])
def test_a_qcow2_on_any_disk(outer: str, tmp_path: Path) -> None:
    name, content = nested(tmp_path, "qcow2", outer)
    rng = random.Random(3)
    with tapcore.open(name, readonly=False) as disk:
        model = Model(disk, content)
        for n in range(60 * THOROUGH):
            kind = rng.choice(["write", "write", "read", "zero", "sync"])
            model.apply((kind, rng.randrange(SIZE), rng.choice([1, 512, 70_000, MIB]), n))
        assert {run.fd for run in disk.extents()} == {None}
        content = bytes(model.data)
    with tapcore.open(name, readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == content
    assert check_status(check_image(name)) == 0
    plain, out = tmp_path / "plain.qcow2", tmp_path / "out.raw"
    with tapcore.open(name.partition(":")[2], readonly=True) as below, open(plain, "wb") as file:
        file.write(below.pread(0, length=below.size))
    img = peer("qemu-img")
    subprocess.run([img, "check", "-q", plain], check=True)
    subprocess.run([img, "convert", "-O", "raw", plain, out], check=True)
    assert out.read_bytes() == content


@pytest.mark.parametrize("handle", ["vdi", "vhd", "vmdk", "qcow"])
def test_other_formats_are_read_and_overwritten(handle: str, tmp_path: Path) -> None:
    """They grow at the end of their file, and a disk has none that they could move."""
    name, content = nested(tmp_path, handle, "aio")
    if handle == "vhd":  # whose last bytes say what it is
        size = os.path.getsize(tmp_path / "outer")
        with tapcore.open(f"aio:{tmp_path / 'outer'}", readonly=False) as disk:
            footer = disk.pread(0, length=512)
            disk.pwrite(size - 512, footer)
    with tapcore.open(name, readonly=False) as disk:
        assert disk.pread(0, length=SIZE) == content
        disk.pwrite(4096, b"z" * 4096)
    with tapcore.open(name, readonly=True) as disk:
        assert disk.pread(0, length=8192) == content[:4096] + b"z" * 4096


def test_many_requests_at_once(tmp_path: Path) -> None:
    name, content = nested(tmp_path, "qcow2", "qcow2")
    with tapcore.open(name, readonly=False) as disk:
        engine, statuses = engine_of(disk.state), list[int]()
        bufs = [memoryview(bytearray(4096)) for _ in range(256)]
        for n, buf in enumerate(bufs):
            op, at = (WRITE, 4 * MIB + n * 4096) if n % 2 else (READ, n * 4096)
            engine.submit(Request(op, at, 4096, buf, lambda req: statuses.append(req.status)))
        EngineLoop(engine).run_until(lambda: len(statuses) == len(bufs))
        assert not any(statuses)
        for n in range(0, 256, 2):
            assert bytes(bufs[n]) == content[n * 4096 : (n + 1) * 4096]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    name, content = nested(tmp_path, "qcow2", "aio", room=3 * MIB)
    with tapcore.open(name, readonly=False) as disk:
        with pytest.raises(TapError, match="No space left on device"):
            disk.pwrite(2 * MIB, b"x" * 4 * MIB)
        assert disk.pread(0, length=MIB) == content[:MIB]
    assert check_status(check_image(name)) == 0


def test_a_file_of_such_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, content = nested(tmp_path, "qcow2", "aio")
    with tapcore.open(name, readonly=True) as disk:
        assert disk.pread(0, length=MIB) == content[:MIB]
    shutil.copy("outer", "aio:outer")
    with tapcore.open("qcow2:aio:outer", readonly=True) as disk:
        assert disk.pread(0, length=MIB) == content[:MIB]
        disk.close()
    os.truncate("outer", 0)
    with tapcore.open("qcow2:aio:outer", readonly=True) as disk:  # still the file
        assert disk.size == SIZE


def test_what_is_refused(tmp_path: Path) -> None:
    name, _ = nested(tmp_path, "qcow2", "aio")
    with pytest.raises(UsageError, match="a new image is made in a file"):
        tapcore.create_image(name, MIB)
    with pytest.raises(UsageError, match="a new image is made in a file"):
        tapcore.convert_image(f"aio:{tmp_path / 'outer'}", name)
    with pytest.raises(UsageError, match="is the source, or one of its parents"):
        tapcore.convert_image(name, f"aio:{tmp_path / 'outer'}", force=True)
    with pytest.raises(TapError, match="more than 8 images below each other"):
        tapcore.open("qcow2:" * 12 + name, readonly=True)
    with pytest.raises(TapError, match="No such file"):
        tapcore.open(f"qcow2:nothing:{tmp_path / 'outer'}", readonly=True)
    # a name that an image records is never one of these
    child = tmp_path / "child.qcow2"
    tapcore.create_image(child, MIB)
    with tapcore.open(f"qcow2:{child}", readonly=False) as disk, disk.driver() as dd:
        dd.drv.td_set_parent(dd, tapcore.DiskId("aio:outer", "qcow2"))
    with pytest.raises(TapError, match="never followed"):
        tapcore.open(f"qcow2:{child}", readonly=True)
