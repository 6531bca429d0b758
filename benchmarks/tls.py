"""TLS beside nbdkit and qemu-nbd, by turns in one run; and 1000 clients that come, read and go.

    .venv/bin/python benchmarks/tls.py [--size 256M] [--rounds 3]

The last row is how long one who asks for 4 KiB at a time waits while others come and go: with keys
of RSA each handshake takes a server a millisecond or two.

On a busy machine only a real-time class (`chrt -r 5 ...`) makes wall times mean something; the CPU
time of a server counts in any case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tapcore import parse_size

TAPDISK = Path(sys.executable).parent / "tapdisk"
_EC = "-newkey ec -pkeyopt ec_paramgen_curve:P-256"
_RSA = "-newkey rsa:3072"
_OPENSSL = """
openssl req -x509 KIND -nodes -subj /CN=a -days 2 -keyout a.pem -out ca-cert.pem
openssl req KIND -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout server-key.pem -out s.csr
openssl x509 -req -in s.csr -CA ca-cert.pem -CAkey a.pem -CAcreateserial -copy_extensions copy -days 2 -out server-cert.pem
"""  # noqa: E501
BESIDE = "beside handshakes"
BESIDE_SECONDS = 3.0
_TICK = os.sysconf("SC_CLK_TCK")


def make_keys(where: Path, kind: str) -> Path:
    """A directory of certificates and keys."""
    where.mkdir()
    script = _OPENSSL.replace("KIND", kind)
    subprocess.run(["sh", "-ec", script], cwd=where, check=True, capture_output=True)
    return where


def command(kind: str, image: Path, keys: Path | None, port: int, mode: str) -> list[str]:
    """How a server is started; without keys it does no TLS."""
    tls: list[str] = []
    if kind == "tapdisk":
        tls = ["--tls-certificates", str(keys), "--tls", mode] if keys else []
        return [
            str(TAPDISK),
            "serve",
            f"raw:{image}",
            "--bind",
            "localhost",
            f"--port={port}",
            *tls,
        ]
    if kind == "nbdkit":
        tls = [f"--tls={mode}", f"--tls-certificates={keys}"] if keys else []
        return ["nbdkit", "-f", "-p", str(port), "-i", "localhost", *tls, "file", str(image)]
    creds = f"tls-creds-x509,id=t,dir={keys},endpoint=server,verify-peer=no"
    tls = ["--object", creds, "--tls-creds", "t"] if keys else []
    return [
        "qemu-nbd",
        "-f",
        "raw",
        "-t",
        "-e",
        "16",
        "-b",
        "localhost",
        "-p",
        str(port),
        *tls,
        str(image),
    ]


class Server:
    """One of them, running."""

    def __init__(self, kind: str, image: Path, keys: Path | None, mode: str = "require") -> None:
        with socket.create_server(("localhost", 0)) as free:
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            command(kind, image, keys, self.port, mode),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(1000):
            try:
                socket.create_connection(("localhost", self.port)).close()
                break
            except OSError:
                time.sleep(0.01)

    @property
    def cpu(self) -> float:
        """Seconds of CPU time used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def _hello(sock: socket.socket) -> None:
    """Client flags, and GO for the default export; the answer is read up to its ACK."""
    sock.sendall(struct.pack(">8sIIIH", b"IHAVEOPT", 7, 6, 0, 0))
    kind = 3
    while kind != 1:
        _, _, kind, length = struct.unpack(">QIII", _exactly(sock, 20))
        _exactly(sock, length)


def _exactly(sock: socket.socket, count: int) -> bytes:
    out = b""
    while len(out) < count:
        out += sock.recv(count - len(out))
    return out


def _secured(port: int, context: ssl.SSLContext | None) -> socket.socket:
    """A connection, to the handshake of NBD, with TLS where there is a context."""
    sock = socket.create_connection(("localhost", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _exactly(sock, 18)
    sock.sendall(struct.pack(">I", 3))
    if context is None:
        return sock
    sock.sendall(struct.pack(">8sII", b"IHAVEOPT", 5, 0))
    _exactly(sock, 20)
    return context.wrap_socket(sock, server_hostname="localhost")


def _read(sock: socket.socket) -> None:
    sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4096))
    _exactly(sock, 16 + 4096)


def visits(port: int, keys: Path | None, count: int) -> None:
    """So many clients, one after the other: each connects, reads 4 KiB and goes."""
    context = ssl.create_default_context(cafile=str(keys / "ca-cert.pem")) if keys else None
    for _ in range(count):
        sock = _secured(port, context)
        _hello(sock)
        _read(sock)
        sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 2, 0, 0))
        sock.close()


def come_and_go(port: int, keys: Path) -> None:
    """Handshakes, one after the other, until somebody ends this process."""
    context = ssl.create_default_context(cafile=str(keys / "ca-cert.pem"))
    while True:
        _secured(port, context).close()
        time.sleep(0.002)


def waits(port: int, seconds: float) -> float:
    """Seconds that a read of 4 KiB takes in 99 of 100 cases."""
    sock, took = _secured(port, None), []
    _hello(sock)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        before = time.perf_counter()
        _read(sock)
        took.append(time.perf_counter() - before)
        time.sleep(0.001)
    return statistics.quantiles(took, n=100)[98]


def beside_others(kind: str, image: Path, keys: Path, seconds: float) -> tuple[float, float]:
    """`waits` alone, and beside one who comes and goes."""
    server = Server(kind, image, keys, "on")
    other = multiprocessing.Process(target=come_and_go, args=(server.port, keys))
    try:
        alone = waits(server.port, seconds)
        other.start()
        return alone, waits(server.port, seconds)
    finally:
        other.kill()
        other.join()
        server.stop()


def measured(server: Server, work: Callable[[], object]) -> tuple[float, float, float]:
    """Wall time, the server's CPU time, the client's CPU time."""
    before, children, began = server.cpu, _children(), time.perf_counter()
    work()
    return time.perf_counter() - began, server.cpu - before, _children() - children


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--size", default="256M")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--row", default="", help="only those with this in their names")
    options.add_argument("--visits", type=int, default=1000)
    options.add_argument("--directory", default="/dev/shm")
    chosen = options.parse_args()
    kinds = ["tapdisk", *(kind for kind in ("nbdkit", "qemu-nbd") if shutil.which(kind))]
    with tempfile.TemporaryDirectory(dir=chosen.directory) as where:
        keys, image, copy = (Path(where) / name for name in ("keys", "image", "copy"))
        make_keys(keys, _EC)
        image.write_bytes(os.urandom(1 << 20) * (parse_size(chosen.size) >> 20))
        shutil.copy(image, copy)

        def copying(*words: str) -> Callable[[Server], Callable[[], object]]:
            def of(server: Server) -> Callable[[], object]:
                uri = f"nbds://localhost:{server.port}/?tls-certificates={keys}"
                full = [word.replace("URI", uri) for word in ("nbdcopy", *words)]
                return lambda: subprocess.run(full, check=True)

            return of

        rows: dict[str, tuple[Callable[[Server], Callable[[], object]], Path | None]] = {
            "read, 1 connection": (copying("--connections=1", "URI", "null:"), keys),
            "read, 4 connections": (copying("URI", "null:"), keys),
            "write, 1 connection": (copying("--connections=1", str(image), "URI"), keys),
            "write, 4 connections": (copying(str(image), "URI"), keys),
            f"{chosen.visits} visits, TLS": (
                lambda server: lambda: visits(server.port, keys, chosen.visits),
                keys,
            ),
            f"{chosen.visits} visits": (
                lambda server: lambda: visits(server.port, None, chosen.visits),
                None,
            ),
        }
        for name, (work, tls) in rows.items():
            if chosen.row and chosen.row not in name:
                continue
            best: dict[str, tuple[float, float, float]] = {}
            for _ in range(chosen.rounds):
                for kind in kinds:
                    server = Server(kind, copy, tls)
                    try:
                        found = measured(server, work(server))
                    finally:
                        server.stop()
                    best[kind] = tuple(map(min, found, best.get(kind, found)))  # type: ignore[assignment]
            words = [
                f"{k} {w:.2f} s (CPU {s:.2f}, client {c:.2f})" for k, (w, s, c) in best.items()
            ]
            others = min(
                (wall for kind, (wall, _, _) in best.items() if kind != "tapdisk"), default=0.0
            )
            print(f"{name:22} {others / best['tapdisk'][0]:.2f}x  " + "; ".join(words), flush=True)

        if chosen.row in BESIDE:
            report_beside(kinds, copy, make_keys(Path(where) / "rsa", _RSA), chosen.rounds)


def report_beside(kinds: list[str], image: Path, keys: Path, rounds: int) -> None:
    """The row of who waits beside others, for servers that let one in without TLS beside them."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds if "qemu" not in kind}
    for _ in range(rounds):
        for kind, of_kind in found.items():
            of_kind.append(beside_others(kind, image, keys, BESIDE_SECONDS))
    words = []
    for kind, of_kind in found.items():
        alone, beside = (statistics.median(each) for each in zip(*of_kind, strict=True))
        words.append(f"{kind} {alone * 1e6:.0f} us alone, {beside * 1e6:.0f} us beside")
    print(f"{BESIDE:22} (p99) " + "; ".join(words), flush=True)


if __name__ == "__main__":
    main()
