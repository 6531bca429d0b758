"""`tapdisk serve`: what it prints, where it listens, how it ends."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers import peer

TAPDISK = Path(sys.executable).parent / "tapdisk"
MIB = 1 << 20


@contextlib.contextmanager
def serving(*arguments: object, uris: int = 1) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """A server, ready, and its URIs; stopped with SIGTERM at the end."""
    with subprocess.Popen(
        [TAPDISK, "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            yield [server.stdout.readline().strip() for _ in range(uris)], server
        finally:
            server.terminate()
            out, err = server.communicate(timeout=60)
    assert (server.returncode, out, err) == (0, "", "")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * MIB)
    return path


def size_of(uri: str) -> int:
    done = subprocess.run([peer("nbdinfo"), "--size", uri], check=True, capture_output=True)
    return int(done.stdout)


def test_a_unix_socket(image: Path) -> None:
    socket = image.parent / "nbd socket"
    with serving(image, "--socket", socket) as ([uri], _):
        assert uri == f"nbd+unix:///?socket={image.parent}/nbd%20socket"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert size_of(uri) == MIB
    assert os.listdir(image.parent) == ["disk.img"]


@pytest.mark.parametrize("image_of", ["aio:{}", "sync:{}", "ram:{}", "ram:64M"])
def test_written_through_nbd(image: Path, image_of: str) -> None:
    commands = ["-c", "write -P 7 4096 64k", "-c", "flush", "-c", "read -P 7 4096 64k"]
    with serving(image_of.format(image), "--port", "0") as ([uri], _):
        done = subprocess.run(
            [peer("qemu-io"), "-f", "raw", *commands, uri], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
        assert "failed" not in done.stdout
    written = image.read_bytes()[4096:69632] == b"\x07" * 65536
    assert written == (not image_of.startswith("ram"))


def test_several_images(image: Path) -> None:
    other = image.parent / "other.img"
    other.write_bytes(bytes(2 * MIB))
    with serving(image, other, "ram:3M", "--port", "0", uris=3) as (uris, _):
        assert [uri.rpartition("/")[2] for uri in uris] == ["disk.img", "other.img", "3M"]
        assert [size_of(uri) for uri in uris] == [MIB, 2 * MIB, 3 * MIB]
    names = ["--export", "one", "--export", "two words"]
    with serving(image, other, *names, "--bind", "127.0.0.1", "--port", "0", uris=2) as (uris, _):
        assert [uri.rpartition("/")[2] for uri in uris] == ["one", "two%20words"]
        assert [size_of(uri) for uri in uris] == [MIB, 2 * MIB]


def test_read_only(image: Path) -> None:
    image.chmod(0o444)
    with serving(image, "--read-only", "--port", "0", "--export", "name") as ([uri], _):
        done = subprocess.run([peer("nbdinfo"), "--is", "read-only", uri])
        assert done.returncode == 0
        again = subprocess.run([TAPDISK, "info", image], capture_output=True, text=True)
        assert "open for writing" not in again.stdout  # several readers are welcome


def test_an_image_in_use(image: Path) -> None:
    with serving(image, "--port", "0") as (_, server):
        done = subprocess.run(
            [TAPDISK, "serve", image, "--port", "0"], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"tapdisk: {image}: is in use by ")
        assert f"(process {server.pid})" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_by_a_signal(image: Path, signum: signal.Signals) -> None:
    with serving(image, "--socket", image.parent / "s") as (_, server):
        server.send_signal(signum)
        assert server.wait(30) == 0
    assert os.listdir(image.parent) == ["disk.img"]


def test_an_address_in_use(image: Path) -> None:
    with serving("ram:1M", "--socket", image.parent / "s"):
        done = subprocess.run(
            [TAPDISK, "serve", image, "--socket", image.parent / "s"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        wanted = f"tapdisk: {image.parent}/s: cannot listen here: Address already in use\n"
        assert done.stderr == wanted


def test_the_socket_of_a_dead_server_is_replaced(image: Path) -> None:
    socket = image.parent / "s"
    with subprocess.Popen(
        [TAPDISK, "serve", image, "--socket", socket], stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.kill()
    assert socket.exists()
    with serving(image, "--socket", socket) as ([uri], _):
        assert size_of(uri) == MIB
