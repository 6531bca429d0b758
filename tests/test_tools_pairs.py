"""Every format to every other, and chains of each: what qemu-img reads is what went in."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tapcore
from hostfs import loop_device, mounted
from peers import peer
from tapcore.cli.main import main

MIB = 1 << 20
SIZE = 5 * MIB + 512
FORMATS = {"aio": "raw", "qcow": "qcow", "qcow2": "qcow2", "vhd": "vpc", "vmdk": "vmdk"}
TAPDISK = str(Path(sys.executable).parent / "tapdisk")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def raw(name: str, rng: random.Random) -> bytes:
    """A sparse raw image; returns its content."""
    data = bytearray(SIZE)
    for _ in range(8):
        at = rng.randrange(0, SIZE - 200000, 512)
        length = rng.choice((512, 5120, 70000, 200000))
        data[at : at + length] = rng.randbytes(length)
    with open(name, "wb") as file:
        file.truncate(SIZE)
        for at in range(0, SIZE, 4096):
            if any(data[at : at + 4096]):
                file.seek(at)
                file.write(data[at : at + 4096])
    return bytes(data)


def content(name: str, handle: str) -> bytes:
    """What qemu reads."""
    command = [peer("qemu-img"), "convert", "-f", FORMATS[handle], "-O", "raw", name, "content.tmp"]
    subprocess.run(command, check=True, capture_output=True)
    data = Path("content.tmp").read_bytes()
    os.unlink("content.tmp")
    return data[:SIZE]  # version 1 of qcow has whole clusters for qemu


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_pair(rng: random.Random, source: str, target: str) -> None:
    data = raw("a.img", rng)
    assert main(["convert", "-q", "a.img", f"{source}:b"]) == 0
    assert main(["convert", "-q", f"{source}:b", f"{target}:c"]) == 0
    assert content("c", target) == data
    assert main(["compare", "-q", "a.img", f"{target}:c"]) == 0


@pytest.mark.parametrize(
    ("target", "options"),
    [("qcow", []), ("qcow2", []), ("vmdk", ["-o", "subformat=streamOptimized"])],
)
def test_compressed(rng: random.Random, target: str, options: list[str]) -> None:
    Path("a.img").write_bytes(b"".join(rng.randbytes(2048) + bytes(2048) for _ in range(1000)))
    assert main(["convert", "-q", "-c", *options, "a.img", f"{target}:b"]) == 0
    assert content("b", target) == Path("a.img").read_bytes()[:SIZE]
    assert os.path.getsize("b") < 0.7 * os.path.getsize("a.img")


def test_an_image_of_a_kind_that_cannot_compress(
    rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    raw("a.img", rng)
    assert main(["convert", "-q", "-c", "a.img", "b.vmdk"]) == 1
    said = "tapdisk: b.vmdk: cannot hold compressed data (-c): Operation not supported\n"
    assert capsys.readouterr().err == said
    assert not os.path.exists("b.vmdk")


def test_an_appliance_through_a_pipe(rng: random.Random) -> None:
    data = raw("a.img", rng)
    with open("b.vmdk", "wb") as out:
        subprocess.run([TAPDISK, "convert", "a.img", "vmdk:-"], stdout=out, check=True)
    assert content("b.vmdk", "vmdk") == data


@pytest.mark.parametrize("handle", ["qcow", "qcow2", "vmdk"])
def test_a_chains_life(rng: random.Random, handle: str) -> None:
    raw("a.img", rng)
    raw("b.img", rng)
    assert main(["convert", "-q", "a.img", f"{handle}:base"]) == 0
    assert main(["convert", "-q", "b.img", f"{handle}:other"]) == 0
    assert main(["create", "-q", "-b", f"{handle}:base", f"{handle}:child"]) == 0
    with tapcore.open(f"{handle}:child", readonly=False) as disk:
        disk.pwrite(rng.randrange(SIZE - 99999), b"x" * 99999)
        disk.zero(MIB, length=MIB)
        data = disk.pread(0, length=SIZE)
    for parent in ("other", "base"):
        assert main(["rebase", "-q", f"{handle}:child", "-b", f"{handle}:{parent}"]) == 0
        assert content("child", handle) == data
    assert main(["commit", "-q", f"{handle}:child"]) == 0
    assert content("child", handle) == content("base", handle) == data
    assert main(["rebase", "-q", f"{handle}:child", "-b", ""]) == 0
    os.unlink("base")
    assert content("child", handle) == data


@pytest.mark.parametrize("handle", FORMATS)
def test_a_block_device_is_used_or_refused_and_never_removed(
    rng: random.Random, handle: str
) -> None:
    data = raw("a.img", rng)
    Path("disk").write_bytes(rng.randbytes(2 * SIZE))
    with loop_device(Path("disk")) as device:
        status = main(["convert", "-q", "--force", "a.img", f"{handle}:{device}"])
        assert os.path.exists(device)
        if status == 0:
            assert content(str(device), handle) == data
        else:
            assert handle != "aio"


@pytest.mark.parametrize("options", [[], ["-c"]], ids=["", "compressed"])
@pytest.mark.parametrize("handle", FORMATS)
def test_a_full_disk_is_one_line_and_nothing_is_left(
    rng: random.Random,
    capsys: pytest.CaptureFixture[str],
    here: Path,
    handle: str,
    options: list[str],
) -> None:
    if handle in ("aio", "vhd") and options:
        return
    if handle == "vmdk" and options:
        options = ["-c", "-o", "subformat=streamOptimized"]
    Path("a.img").write_bytes(rng.randbytes(SIZE))
    with mounted("tmpfs", here / "small", options="size=2M") as small:
        assert main(["convert", "-q", *options, "a.img", f"{handle}:{small}/b"]) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(rf"tapdisk: {small}/b: .*No space left on device\n", said)
        assert os.listdir(small) == []
