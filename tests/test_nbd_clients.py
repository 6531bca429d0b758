"""Real clients against `tapdisk serve`: qemu-io, qemu-img, the libnbd tools, fio, nbdkit."""

import contextlib
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbd_client import EPERM, FUA, IS_READ_ONLY, MULTI_CONN, TRIM, WRITE_ZEROES, Client, NbdError
from served import TAPDISK, Served, served

from peers import peer

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
KINDS = ("aio", "aio-none", "sync", "ram")


def run(*words: object, status: int = 0, cwd: Path | None = None) -> str:
    """A client's output; it has to exit as expected."""
    command = [peer(str(words[0])), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def qemu_io(uri: str, *commands: str, status: int = 0) -> str:
    words = [word for command in commands for word in ("-c", command)]
    out = run("qemu-io", "-f", "raw", "-t", "writeback", *words, uri, status=status)
    if not status:
        assert "failed" not in out, out
        assert "rror" not in out, out
    return out


@contextlib.contextmanager
def serving(kind: str, path: Path, *options: object, **more: Any) -> Iterator[Served]:
    """A file, served by a driver in a mode on a Unix socket."""
    handle, _, cache = kind.partition("-")
    words = ["--cache", cache] if cache else []
    socket = path.parent / "s"
    with served(f"{handle}:{path}", "--socket", socket, *words, *options, **more) as server:
        yield server


@pytest.fixture
def content(rng: random.Random) -> bytes:
    """Data with holes in it."""
    return rng.randbytes(MIB) + bytes(2 * MIB) + rng.randbytes(200 * KIB) + bytes(824 * KIB)


@pytest.fixture
def image(tmp_path: Path, content: bytes) -> Path:
    """The same, sparse."""
    path = tmp_path / "disk.img"
    write_sparse(path, content)
    return path


def write_sparse(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        for at in range(0, len(content), 4096):
            if any(content[at : at + 4096]):
                file.seek(at)
                file.write(content[at : at + 4096])
        file.truncate(len(content))


def run_map(uri: str) -> str:
    return run("nbdinfo", "--map", "--json", uri)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content_of(uri: str) -> bytes:
    """Of an export, as nbdcopy reads it."""
    done = subprocess.run([peer("nbdcopy"), uri, "-"], capture_output=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_qemu_io(kind: str, image: Path, content: bytes) -> None:
    model = bytearray(content)
    with serving(kind, image) as server:
        qemu_io(
            server.uri,
            "write -P 7 0 1M",
            "read -P 7 0 1M",
            "write -P 8 513 1000",
            "read -P 7 0 513",
            "read -P 8 513 1000",
            "read -P 7 1513 3000",
            "write -z 65536 65536",
            "read -P 0 65536 65536",
            "write -z -u 131072 65536",
            "write -z 200001 777",
            "read -P 0 200001 777",
            "write -f -P 9 2097152 8192",
            "read -P 9 2097152 8192",
            "discard 262144 131072",
            "read -P 0 262144 131072",
            "flush",
            "write -P 10 4190000 4304",
            "read -P 10 4190000 4304",
        )
        model[:MIB] = b"\x07" * MIB
        model[513:1513] = b"\x08" * 1000
        model[65536:196608] = bytes(131072)
        model[200001:200778] = bytes(777)
        model[2097152:2105344] = b"\x09" * 8192
        model[262144:393216] = bytes(131072)
        model[4190000:4194304] = b"\x0a" * 4304
        assert content_of(server.uri) == model
        out = qemu_io(server.uri, "read 4194304 512", status=1)
        assert "failed" in out
    if kind != "ram":
        assert image.read_bytes() == model
        blocks = image.stat().st_blocks * 512
        assert blocks < 1300 * KIB  # what was zeroed and discarded takes no room


@pytest.mark.parametrize("kind", KINDS)
def test_nbdinfo_and_nbdcopy(kind: str, image: Path, content: bytes, tmp_path: Path) -> None:
    with serving(kind, image) as server:
        told = json.loads(run("nbdinfo", "--json", server.uri))
        assert (told["protocol"], told["structured"]) == ("newstyle-fixed", True)
        [export] = told["exports"]
        assert export["export-size"] == len(content)
        assert export["contexts"] == ["base:allocation", "tapcore:depth", "qemu:allocation-depth"]
        wanted = ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"]
        assert all(export[f"can_{name}"] for name in wanted)
        assert not export["is_read_only"]
        sizes = [export[f"block_size_{name}"] for name in ("minimum", "preferred", "maximum")]
        assert sizes == [1, 4096, 32 * MIB]
        assert sha256(content_of(server.uri)) == sha256(content)
        options = ["--requests=16", "--connections=4", "--threads=2", "--request-size=262144"]
        run("nbdcopy", *options, server.uri, tmp_path / "out.img")
        assert (tmp_path / "out.img").read_bytes() == content
        assert (tmp_path / "out.img").stat().st_blocks * 512 < 2 * MIB
        assert len(json.loads(run_map(server.uri))) >= 4
        if kind != "ram":
            of_file = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", image))
            assert [
                (run["offset"], run["length"], run["type"] & 2 > 0)
                for run in json.loads(run_map(server.uri))
            ] == [(run["start"], run["length"], run["zero"]) for run in of_file]


@pytest.mark.parametrize("kind", KINDS)
def test_nbdcopy_into_it(
    kind: str, image: Path, content: bytes, tmp_path: Path, rng: random.Random
) -> None:
    new = rng.randbytes(MIB + 300) + bytes(MIB) + rng.randbytes(2 * MIB - 300)
    (tmp_path / "new.img").write_bytes(new)
    with serving(kind, image) as server:
        run(
            "nbdcopy", "--connections=4", "--threads=2", "--flush", tmp_path / "new.img", server.uri
        )
        assert content_of(server.uri) == new
        qemu = ["-f", "raw", "-F", "raw"]
        run("qemu-img", "compare", *qemu, tmp_path / "new.img", server.uri)
    if kind != "ram":
        assert image.read_bytes() == new


@pytest.mark.parametrize("kind", KINDS)
def test_qemu_img_over_it(kind: str, image: Path, content: bytes, tmp_path: Path) -> None:
    with serving(kind, image) as server:
        qcow2 = tmp_path / "copy.qcow2"
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri, qcow2)
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.uri, qcow2)
        qemu_io(server.uri, "write -P 1 3M 4096")
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.uri, qcow2, status=1)
        convert = ["qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw"]
        run(*convert, qcow2, server.uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.uri, qcow2)
        assert content_of(server.uri) == content


@pytest.mark.parametrize("kind", KINDS)
def test_fio_verifies(kind: str, image: Path, rng: random.Random, tmp_path: Path) -> None:
    with serving(kind, image) as server:
        verify = ("--verify=crc32c", "--verify_fatal=1")
        fio(server.uri, "randrw", rng, tmp_path, *verify)
        fio(server.uri, "randwrite", rng, tmp_path, *verify, "--fsync=20")


def fio(uri: str, rw: str, rng: random.Random, folder: Path, *options: str) -> None:
    """What it leaves behind (state of `verify`) is left in a folder."""
    run(
        "fio",
        "--name=job",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={rw}",
        "--bsrange=512-512k",
        "--blockalign=512",
        "--iodepth=32",
        "--size=4M",
        "--verify_state_save=0",
        f"--randseed={rng.getrandbits(31)}",
        *options,
        cwd=folder,
    )


@pytest.mark.parametrize("kind", ["aio", "aio-none", "sync"])
@pytest.mark.parametrize("size", [300 * KIB + 1, 512 * KIB + 511, 77])
def test_a_tail_that_is_no_sector(kind: str, size: int, tmp_path: Path, rng: random.Random) -> None:
    """Sent from the file, or read: past its end there are zeroes."""
    path = tmp_path / "odd.img"
    data = rng.randbytes(size)
    path.write_bytes(data)
    padded = data + bytes(-size % 512)
    with serving(kind, path) as server:
        for structured in (True, False):
            with server.client(structured=structured) as client:
                assert client.size == len(padded)
                for offset in (0, 5, max(len(padded) - 40_000, 0), len(padded) - 3):
                    assert client.read(offset, len(padded) - offset) == padded[offset:]
        assert content_of(server.uri) == padded
        assert path.read_bytes() == data  # reading changes nothing
        with server.client() as client:
            client.write(len(padded) - 3, b"end")
            assert client.read(0, len(padded)) == padded[:-3] + b"end"
    assert path.read_bytes() == padded[:-3] + b"end"


@pytest.mark.parametrize("kind", ["aio", "aio-none", "sync"])
def test_beyond_4_gib(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "big.img"
    with path.open("wb") as file:
        file.truncate(6 * GIB)
    with serving(kind, path) as server:
        qemu_io(
            server.uri,
            "write -P 1 4G 128k",
            "write -P 2 4294967295 3",
            "write -P 3 5G 1M",
            "read -P 1 4294967298 131070",
            "read -P 2 4294967295 3",
            "read -P 3 5G 1M",
            "read -P 0 0 1M",
            "discard 5G 65536",
            "read -P 0 5G 65536",
            "write -P 4 6442450432 512",
        )
        runs = json.loads(run_map(server.uri))
        assert sum(run["length"] for run in runs) == 6 * GIB
        with server.client() as client:
            assert client.size == 6 * GIB
            assert client.read(4 * GIB - 1, 4) == b"\2\2\2\1"
            client.call(WRITE_ZEROES, 0, 4 * GIB - 1)
            client.call(TRIM, 2 * GIB, 4 * GIB - 1024)
            assert client.read(6 * GIB - 512, 512) == b"\4" * 512
    assert path.stat().st_blocks * 512 < 16 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_two_clients(kind: str, image: Path, rng: random.Random) -> None:
    """What was answered on one connection is seen, and flushed, by the other (CAN_MULTI_CONN)."""
    with serving(kind, image) as server, server.client() as one, server.client() as two:
        assert one.flags & MULTI_CONN
        for number in range(60):
            writer, reader = (one, two) if number % 2 else (two, one)
            at, data = rng.randrange(3 * MIB), rng.randbytes(rng.choice([1, 512, 9000, 300_000]))
            writer.write(at, data, flags=FUA if number % 7 == 0 else 0)
            assert reader.read(at, len(data)) == data
            if number % 10 == 0:
                reader.flush()


@pytest.mark.parametrize("structured", [True, False])
def test_on_tcp(structured: bool, image: Path, content: bytes) -> None:
    with served(image, "--port", "0") as server:
        assert server.uri.startswith("nbd://127.0.0.1:")
        with server.client(structured=structured) as client:
            assert client.read(0, len(content)) == content
            client.write(5, b"x" * 300_000)
            assert client.read(0, 300_010)[5:300_005] == b"x" * 300_000
        qemu_io(server.uri, "write -P 7 0 1M", "read -P 7 0 1M", "flush")
        assert content_of(server.uri) == b"\7" * MIB + content[MIB:]


def test_a_list_of_exports(image: Path) -> None:
    names = ["one", "two words", "drei/\u20ac"]
    options = [word for name in names for word in ("--export", name)]
    with served(image, "ram:1M", "ram:2M", "--port", "0", *options, uris=3) as server:
        root = server.uri.rpartition("/")[0] + "/"
        told = json.loads(run("nbdinfo", "--list", "--json", root))
        assert [export["export-name"] for export in told["exports"]] == names
        assert [export["export-size"] for export in told["exports"]] == [4 * MIB, MIB, 2 * MIB]
        for uri, size in zip(server.uris, [4 * MIB, MIB, 2 * MIB], strict=True):
            assert int(run("nbdinfo", "--size", uri)) == size
        run("nbdinfo", root + "four", status=1)


def test_behind_a_proxy(image: Path, content: bytes, tmp_path: Path) -> None:
    """nbdkit's nbd plugin as a client."""
    with serving("aio", image) as server:
        command = [peer("nbdkit"), "-U", "-", "nbd", f"uri={server.uri}"]
        copied = tmp_path / "copied"
        done = subprocess.run(
            [*command, "--run", f'nbdcopy "$uri" {copied} && nbdinfo --map "$uri" >/dev/null'],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert copied.read_bytes() == content


@pytest.mark.parametrize("kind", KINDS)
def test_simple_replies(kind: str, image: Path, content: bytes) -> None:
    """An old client: no structured replies, so no contexts, no holes, no DF."""
    with serving(kind, image) as server, server.client(structured=False) as client:
        assert client.read(0, len(content)) == content
        assert client.read(MIB - 7, 100_000) == content[MIB - 7 : MIB + 99_993]
        client.write(70_001, b"y" * 70_001)
        assert client.read(70_000, 70_003)[1:-1] == b"y" * 70_001


@pytest.mark.parametrize("kind", KINDS)
def test_read_only(kind: str, image: Path, content: bytes) -> None:
    with serving(kind, image, "--read-only") as server:
        run("nbdinfo", "--is", "read-only", server.uri)
        out = run("qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", server.uri)
        assert "1 MiB" in out
        assert content_of(server.uri) == content
        with server.client() as client:
            assert client.flags & IS_READ_ONLY
            for attempt in (
                lambda: client.write(0, b"x"),
                lambda: client.write(0, b"x" * 300_000),
                lambda: client.call(TRIM, 0, 4096),
                lambda: client.call(WRITE_ZEROES, 0, 4096),
            ):
                with pytest.raises(NbdError) as raised:
                    attempt()
                assert raised.value.code == EPERM
    assert image.read_bytes() == content


def test_the_socket(image: Path, tmp_path: Path) -> None:
    """Its mode; a live one is refused, one of a dead server is replaced, a file is not touched."""
    path = tmp_path / "s"
    with serving("aio", image) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        done = refused("ram:1M", "--socket", path)
        assert done.startswith(f"tapdisk: {path}: ")
        with server.client() as client:
            client.read(0, 512)
    assert not path.exists()
    with subprocess.Popen(
        [TAPDISK, "serve", image, "--socket", path], stdout=subprocess.PIPE
    ) as dead:
        assert dead.stdout is not None
        dead.stdout.readline()
        dead.kill()
    with serving("aio", image) as server, server.client() as client:
        client.read(0, 512)
    path.write_text("precious")
    refused("ram:1M", "--socket", path)
    assert path.read_text() == "precious"


def refused(*words: object) -> str:
    """One line, exit status 1, and nothing else."""
    done = subprocess.run(
        [TAPDISK, "serve", *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


class Writer(threading.Thread):
    """Writes a known pattern, many requests at once, until its server goes; notes the answered."""

    def __init__(self, uri: str, start: int, end: int, seed: int) -> None:
        super().__init__()
        self._client = Client(uri)
        self._range = start, end
        self._rng = random.Random(seed)
        self.sent: dict[int, tuple[int, bytes]] = {}
        self.answered: set[int] = set()
        self.at_work = threading.Event()
        """Some were answered, and more are under way."""

    def run(self) -> None:
        at, end = self._range
        parser = self._client.parser
        with self._client, contextlib.suppress(OSError, EOFError):
            while True:
                while len(parser.waiting) < 16 and at < end:
                    size = min(self._rng.choice([512, 4096, 70_000, 200_000]), end - at)
                    data = self._rng.randbytes(8) * (size // 8)
                    cookie = self._client.send(1, at, payload=data)
                    self.sent[cookie] = at, data
                    at += len(data)
                if not parser.waiting:
                    break
                if not self._client.receive():
                    break
                if len(parser.order) > 8:
                    self.at_work.set()
        self.answered = {cookie for cookie in self.sent if parser.answers[cookie].done}
        assert not any(parser.answers[cookie].error for cookie in self.answered)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["aio", "aio-none", "sync"])
def test_stopped_under_load(kind: str, signum: signal.Signals, tmp_path: Path) -> None:
    """Everything that was answered is in the file; it exits with 0."""
    path = tmp_path / "load.img"
    with path.open("wb") as file:
        file.truncate(512 * MIB)
    with serving(kind, path) as server:
        writers = [Writer(server.uri, n * 128 * MIB, (n + 1) * 128 * MIB, seed=n) for n in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            assert writer.at_work.wait(60)
        server.process.send_signal(signum)
        server.process.wait(60)
        for writer in writers:
            writer.join(60)
            assert not writer.is_alive()
    checked = 0
    with path.open("rb") as file:
        for writer in writers:
            for cookie in writer.answered:
                at, data = writer.sent[cookie]
                file.seek(at)
                assert file.read(len(data)) == data
                checked += 1
    assert checked > 20
    assert os.listdir(tmp_path) == ["load.img"]
