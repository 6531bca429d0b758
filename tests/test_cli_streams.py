"""`convert` through pipes: a raw disk from standard input, an image to standard output."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from drivers.toy import content, fill, head_of

from tapcore import create_image
from tapcore.cli.main import main

MIB = 1 << 20
TAPDISK = str(Path(sys.executable).parent / "tapdisk")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tapdisk(*arguments: str, **how: object) -> subprocess.CompletedProcess[bytes]:
    how = {"capture_output": True, "timeout": 60, **how}
    return subprocess.run([TAPDISK, *arguments], **how)  # type: ignore[call-overload,no-any-return]


def sparse(rng: random.Random, size: int) -> bytes:
    """Data with zeroes between, which are longer than what is left out."""
    data = bytearray(size)
    for _ in range(6):
        start = rng.randrange(size)
        data[start : start + 50000] = rng.randbytes(min(50000, size - start))
    return bytes(data)


@pytest.mark.parametrize("size", [512, 100001, 3 * MIB + 700])
def test_a_raw_disk_from_a_pipe(rng: random.Random, size: int) -> None:
    data = sparse(rng, size)
    done = tapdisk("convert", "-", "copy.img", input=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path("copy.img").read_bytes() == data + bytes(-size % 512)
    assert os.listdir() == ["copy.img"]
    assert Path("copy.img").stat().st_blocks * 512 <= 6 * 65536


def test_what_failed_to_send_anything_replaces_nothing() -> None:
    Path("old.img").write_bytes(b"old")
    done = tapdisk("convert", "--force", "-", "old.img", input=b"")
    said = b"tapdisk: nothing came from standard input\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert Path("old.img").read_bytes() == b"old"


@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
def test_a_disk_is_not_written_over_itself_by_way_of_standard_output(flags: int) -> None:
    Path("disk.raw").write_bytes(b"old")
    assert main(["create", "-q", "disk.qcow2", "-o", "data_file=disk.raw", "--force", "1M"]) == 0
    data = Path("disk.raw").read_bytes()
    for source in ("aio:disk.raw", "disk.qcow2"):
        fd = os.open("disk.raw", os.O_WRONLY | flags)
        done = tapdisk(
            "convert", source, "-", stdout=fd, stderr=subprocess.PIPE, capture_output=False
        )
        os.close(fd)
        said = b"tapdisk: standard output is the source, or one of its parents\n"
        assert (done.returncode, done.stderr) == (1, said)
        assert Path("disk.raw").read_bytes() == data


def test_a_file_as_standard_input_is_used_as_it_is(rng: random.Random) -> None:
    data = sparse(rng, MIB)
    Path("disk").write_bytes(data)
    with open("disk", "rb") as file:
        assert tapdisk("convert", "sync:-", "copy.img", stdin=file).returncode == 0
    assert Path("copy.img").read_bytes() == data
    with open("disk", "rb") as file:  # what is left of it
        os.lseek(file.fileno(), 512, os.SEEK_SET)
        assert tapdisk("convert", "-", "rest.img", stdin=file).returncode == 0
    assert Path("rest.img").read_bytes() == data[512:]


@pytest.mark.parametrize("target", ["-", "aio:-", "sync:-"])
def test_a_raw_disk_to_a_pipe(rng: random.Random, target: str) -> None:
    data = sparse(rng, 3 * MIB + 512)
    Path("disk").write_bytes(data)
    done = tapdisk("convert", "aio:disk", target)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_from_pipe_to_pipe(rng: random.Random) -> None:
    data = sparse(rng, 2 * MIB)
    assert tapdisk("convert", "-", "-", input=data).stdout == data


def test_an_image_to_a_pipe(
    toys: Path, rng: random.Random, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    create_image("a.toy", 2 * MIB + 512)
    fill("toy:a.toy", (100, rng.randbytes(5000)), (MIB, rng.randbytes(300000)))
    assert main(["convert", "a.toy", "toy:-", "-o", "colour=blue"]) == 0
    Path("b.toy").write_bytes(capfdbinary.readouterr().out)
    assert content("toy:b.toy") == content("toy:a.toy")
    assert head_of("b.toy")["options"] == {"colour": "blue"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["aio:disk", "ram:-"], "exists only while it is open"),
        (["aio:disk", "nope:-"], "no driver has the handle 'nope'"),
        (["aio:disk", "-", "-c"], "cannot store compressed data (-c)"),
        (["aio:disk", "-", "-b", "disk"], "has no parent (-b)"),
        (["aio:disk", "-", "-o", "x=y"], "has no option 'x'"),
        (["aio:disk", "-", "-o", "preallocation=full"], "a pipe has no preallocation"),
        (["ram:-", "copy.img"], "what comes from standard input is a raw disk"),
        (["-", "copy.img", "--snapshot", "x"], "has no internal snapshots"),
        (["-", "no/such/copy.img"], "No such file or directory"),
    ],
)
def test_what_cannot_be(arguments: list[str], said: str) -> None:
    Path("disk").write_bytes(bytes(512))
    done = tapdisk("convert", *arguments, input=bytes(512))
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    assert said in done.stderr.decode()
    assert os.listdir() == ["disk"]


def test_a_reader_that_goes_away_ends_it_quietly(rng: random.Random) -> None:
    Path("disk").write_bytes(rng.randbytes(3 * MIB))
    read, write = os.pipe()
    with subprocess.Popen(
        [TAPDISK, "convert", "aio:disk", "-"], stdout=write, stderr=subprocess.PIPE
    ) as running:
        os.close(write)
        os.read(read, 1000)
        os.close(read)
        assert running.wait(30) == 1
        assert running.stderr is not None
        assert running.stderr.read() == b""


def test_a_full_disk_behind_standard_output() -> None:
    Path("disk").write_bytes(bytes(MIB))
    with open("/dev/full", "wb") as full:
        done = tapdisk("convert", "aio:disk", "-", capture_output=False, stdout=full, stderr=-1)
    assert done.returncode == 1
    assert done.stderr == b"tapdisk: standard output: No space left on device\n"


def test_a_name_of_one_dash_is_a_file_with_a_path(rng: random.Random) -> None:
    data = rng.randbytes(MIB)
    Path("-").write_bytes(data)
    assert tapdisk("convert", "aio:./-", "copy.img").returncode == 0
    assert Path("copy.img").read_bytes() == data


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_though_nothing_comes(signum: signal.Signals) -> None:
    with subprocess.Popen(
        [TAPDISK, "convert", "-", "copy.img"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdin is not None
        running.stdin.write(bytes(MIB))  # more than a pipe holds: it is being read
        running.stdin.flush()
        running.send_signal(signum)
        assert running.wait(30) == 128 + signum
        assert running.stderr is not None
        assert running.stderr.read() == f"tapdisk: stopped by {signum.name}\n".encode()
    assert os.listdir() == []
