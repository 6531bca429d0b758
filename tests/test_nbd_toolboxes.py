"""Real clients, those installed and those of a newer Debian, with every option that they have.

Extended headers, and the lengths of 64 bits that come with them, are spoken by the newer ones.
"""

import json
import os
import random
import re
import subprocess
import time
from pathlib import Path

import pytest
from nbd_client import WRITE_ZEROES
from served import served
from tlscerts import Authority
from toolboxes import Toolbox, toolbox

from peers import missing, peer

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

NBDCOPY = {
    "allocated": [""],
    "connections": ["1", "4"],
    "destination-is-zero": [""],
    "flush": [""],
    "no-extents": [""],
    "progress": [""],
    "queue-size": ["1048576"],
    "request-size": ["4096", "33554432"],
    "requests": ["1", "128"],
    "sparse": ["0", "512", "1048576"],
    "synchronous": [""],
    "target-is-zero": [""],
    "threads": ["1", "4"],
    "verbose": [""],
}
"""Each option but --help and --version, and values for it."""

CAN = ["cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero"]


@pytest.fixture(params=["installed", "newer"])
def tools(request: pytest.FixtureRequest) -> Toolbox:
    return toolbox(request.param)


@pytest.fixture
def newer() -> Toolbox:
    return toolbox("newer")


# ---- nbdcopy and nbdinfo -------------------------------------------------------------------


def test_nbdcopy_with_each_option(tools: Toolbox, tmp_path: Path, rng: random.Random) -> None:
    """Out of a server, into one, and from one into another: what arrives is what there was."""
    listed = set(tools.run("nbdcopy", "--long-options").replace("--", "").split())
    assert listed - {"help", "version"} == set(NBDCOPY)
    content = rng.randbytes(300 * KIB) + bytes(MIB) + rng.randbytes(700 * KIB) + bytes(48 * KIB)
    source, copied = tmp_path / "source.img", tmp_path / "copied.img"
    source.write_bytes(content)
    size = len(content)
    with served(source, f"ram:{size}", "--socket", tmp_path / "s", uris=2) as server:
        disk, memory = server.uris
        with server.client() as client:
            assert client.size == size
        for number, (name, value) in enumerate((n, v) for n, vs in NBDCOPY.items() for v in vs):
            option = f"--{name}={value}" if value else f"--{name}"
            copied.unlink(missing_ok=True)
            zero_all(memory, size)
            if number % 2:
                tools.run("nbdcopy", option, disk, memory)
            else:
                tools.run("nbdcopy", option, source, memory)
            tools.run("nbdcopy", option, memory, copied)
            assert copied.read_bytes() == content, option


def zero_all(uri: str, size: int) -> None:
    from nbd_client import Client

    with Client(uri) as client:
        client.call(WRITE_ZEROES, 0, size)


def test_nbdinfo(tools: Toolbox, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * 65536 + bytes(MIB))
    os.truncate(tmp_path / "disk.img", 8 * MIB)
    with served("disk.img", "--socket", "s", cwd=tmp_path) as server:
        uri = f"nbd+unix:///?socket={tmp_path / 's'}"
        assert tools.run("nbdinfo", "--size", uri) == f"{8 * MIB}\n"
        for each in CAN:
            tools.run("nbdinfo", "--can", each, uri)
        tools.run("nbdinfo", "--is", "read-only", uri, status=2)
        tools.run("nbdinfo", "--is", "rotational", uri, status=2)
        for each in ("structured-reply", "extended-headers") if tools.extended else ():
            tools.run("nbdinfo", "--has", each, uri)
        text = tools.run("nbdinfo", "--content", uri)
        assert ("extended packets" if tools.extended else "structured packets") in text
        told = json.loads(tools.run("nbdinfo", "--list", "--json", uri))
        assert [export["description"] for export in told["exports"]] == ["aio:disk.img"]
        if tools.extended:
            assert told["extended"]
        for context in ("base:allocation", "qemu:allocation-depth", "tapcore:depth"):
            runs = json.loads(tools.run("nbdinfo", "--json", f"--map={context}", uri))
            again = json.loads(tools.run("nbdinfo", "--json", f"--map={context}", uri))
            assert runs == again
            assert sum(run["length"] for run in runs) == 8 * MIB
            tools.run("nbdinfo", "--totals", f"--map={context}", uri)
        assert server.process.poll() is None


def test_the_list_of_nbd_client(tools: Toolbox) -> None:
    """It speaks neither of the newer headers; the rest of it needs a kernel's device."""
    with served("ram:1M", "ram:2M", "--port", "0", uris=2) as server:
        port = re.findall(r":(\d+)/", server.uri)[0]
        printed = tools.run("nbd-client", "-l", "localhost", port)
        assert printed.splitlines()[-2:] == ["1M: ram:1M", "2M: ram:2M"]


def test_nbdkit_as_a_client(newer: Toolbox, tmp_path: Path, rng: random.Random) -> None:
    """Its nbd plugin hands on what our server says, the reason of an error among it."""
    content = rng.randbytes(100 * KIB) + bytes(MIB)
    (tmp_path / "disk.img").write_bytes(content)
    assert newer.folder is not None
    [plugin] = newer.folder.glob("lib/*/nbdkit/plugins/nbdkit-nbd-plugin.so")
    socket = tmp_path / "k"
    with served("disk.img", "--socket", "s", cwd=tmp_path) as server:
        uri = f"nbd+unix:///?socket={tmp_path / 's'}"
        command = [*newer.command("nbdkit"), "-f", "-v", "-U", str(socket), str(plugin)]
        with subprocess.Popen(
            [*command, f"uri={uri}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as proxy:
            try:
                server.until(socket.exists)
                there = f"nbd+unix:///?socket={socket}"
                newer.run("nbdcopy", there, tmp_path / "copied")
                assert (tmp_path / "copied").read_bytes() == content
                newer.run("nbdinfo", "--map", there)
            finally:
                proxy.terminate()
                _, said = proxy.communicate(timeout=30)
        assert "Traceback" not in said


# ---- libnbd itself -------------------------------------------------------------------------

WRONG = """
h.add_meta_context("base:allocation")
h.connect_uri({uri!r})
size = h.get_size()
auto = getattr(nbd, "STRICT_AUTO_FLAG", 0)
h.set_strict_mode(auto)
def status(*args): pass
for what in [
    lambda: h.pread(512, size),
    lambda: h.pread(512, size - 1),
    lambda: h.pread(512, 1 << 63),
    lambda: h.pread(33 << 20, 0),
    lambda: h.pread(512, 0, 0x8000),
    lambda: h.pwrite(b"w" * 512, size),
    lambda: h.pwrite(b"w" * 512, 0, nbd.CMD_FLAG_NO_HOLE),
    lambda: h.pwrite(bytes((32 if auto else 33) << 20), 512),
    lambda: h.flush(0x8000),
    lambda: h.trim(512, size),
    lambda: h.trim(1 << 63 if auto else 1 << 31, 0),
    lambda: h.trim(512, 0, nbd.CMD_FLAG_REQ_ONE),
    lambda: h.zero(512, size),
    lambda: h.zero(512, 0, 0x4000),
    lambda: h.cache(512, size),
    lambda: h.cache(512, 0, nbd.CMD_FLAG_NO_HOLE),
    lambda: h.block_status(512, size, status),
    lambda: h.block_status(0, 0, status),
    lambda: h.block_status(512, 0, status, 0x2000),
]:
    try:
        what()
    except nbd.Error as error:
        print(error.errno)
    else:
        print("done")
for what in [
    lambda: h.pread(0, 0),
    lambda: h.pwrite(b"", 5),
    lambda: h.trim(0, 0),
    lambda: h.zero(0, 0),
    lambda: h.cache(0, 0),
    lambda: h.flush(nbd.CMD_FLAG_FUA),
]:
    what()
assert h.pread(3, 0) == b"abc"
h.shutdown()
"""


def test_nbdsh_in_strict_mode_off(tools: Toolbox, tmp_path: Path) -> None:
    """What a client should never ask for is an error of that request, and of nothing else."""
    (tmp_path / "disk.img").write_bytes(b"abc".ljust(MIB, b"\0"))
    with served("disk.img", "--socket", "s", cwd=tmp_path) as server:
        uri = f"nbd+unix:///?socket={tmp_path / 's'}"
        printed = tools.nbdsh(WRONG.format(uri=uri)).split()
        wrong, full = "EINVAL", "ENOSPC"
        expected = [wrong] * 5 + [full, wrong, full if tools.extended else wrong]
        expected += [wrong] * 4 + [full] + [wrong] * 6
        assert printed == expected
        with server.client() as client:
            assert client.read(0, 3) == b"abc"


def test_a_write_without_the_flag_of_its_payload(newer: Toolbox, tmp_path: Path) -> None:
    """libnbd leaves it out where it is told to, QEMU's client always: its data comes anyway."""
    code = """
h.connect_uri({uri!r})
assert h.get_extended_headers_negotiated()
h.set_strict_mode(0)
h.pwrite(b"w" * 512, 1)
h.shutdown()
"""
    with served("ram:1M", "--socket", tmp_path / "s") as server:
        newer.nbdsh(code.format(uri=server.uri))
        with server.client() as client:
            assert client.read(0, 514) == b"\0" + b"w" * 512 + b"\0"


def test_the_reason_of_an_error_reaches_the_user(tools: Toolbox, tmp_path: Path) -> None:
    code = "h.connect_uri({uri!r}); h.set_strict_mode(0); h.pread(512, 1 << 20)"
    with served("ram:1M", "--socket", tmp_path / "s") as server:
        said = tools.nbdsh(code.format(uri=server.uri), status=1, debug=True)
        assert "512 bytes at 1048576 end behind the disk, which has 1048576" in said


LARGE = """
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:allocation-depth")
h.connect_uri({uri!r})
assert h.get_extended_headers_negotiated() and h.can_block_status_payload()
size = h.get_size()
told = []
def status(name, offset, runs, error): told.append((name, offset, runs))
def runs_of(name): return [[list(run) for run in runs] for at, _, runs in told if at == name]
def all_runs():
    at, found = 0, []
    while at < size:
        told.clear()
        h.block_status_filter(size - at, at, ["base:allocation"], status)
        [runs] = runs_of("base:allocation")
        assert len(told) == 1
        for run in runs:
            at += run[0]
            if found and found[-1][1] == run[1]: found[-1][0] += run[0]
            else: found.append(run)
    return found
h.pwrite(b"data" * 1024, 6 << 30)
assert all_runs() == [[6 << 30, 3], [4096, 0], [size - (6 << 30) - 4096, 3]]
told.clear()
h.block_status_64(5 << 30, 0, status)
assert runs_of("qemu:allocation-depth") == [[[5 << 30, 1]]]
assert runs_of("base:allocation") == [[[5 << 30, 3]]]
h.cache(size, 0)
h.zero(size, 0)
assert h.pread(16, 6 << 30) == bytes(16)
h.pwrite(b"data" * 1024, 6 << 30)
h.zero(size, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert h.pread(16, 6 << 30) == bytes(16)
h.pwrite(b"data" * 1024, 6 << 30)
h.trim(size, 0)
assert all_runs() == [[size, 3]]
h.shutdown()
"""


def test_the_whole_of_a_large_disk_in_one_request(newer: Toolbox, tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    path.touch()
    os.truncate(path, TIB)
    with served(path, "--socket", tmp_path / "s") as server:
        newer.nbdsh(LARGE.format(uri=server.uri))
        runs = json.loads(newer.run("nbdinfo", "--json", "--map", server.uri))
        assert [(run["offset"], run["length"], run["type"]) for run in runs] == [(0, TIB, 3)]
    assert path.stat().st_blocks * 512 < MIB


def test_qemu_with_extended_headers(newer: Toolbox, tmp_path: Path, rng: random.Random) -> None:
    """QEMU negotiates them since 8.2."""
    content = rng.randbytes(MIB)
    path = tmp_path / "large.img"
    path.write_bytes(content)
    os.truncate(path, 9 * GIB)
    copy = tmp_path / "copy.qcow2"
    with served(path, "--socket", tmp_path / "s") as server:
        uri = server.uri
        newer.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, copy)
        newer.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, copy)
        runs = json.loads(newer.run("qemu-img", "map", "-f", "raw", "--output=json", uri))
        assert [(run["start"], run["length"], run["zero"]) for run in runs] == [
            (0, MIB, False),
            (MIB, 9 * GIB - MIB, True),
        ]
        commands = ["write -z -n 0 8G", "read -P 0 0 1M", "write -P 5 8G 1M", "write -P 6 5 999"]
        commands += ["flush", "read -P 5 8G 1M", "read -P 6 5 999"]
        words = [word for command in commands for word in ("-c", command)]
        newer.run("qemu-io", "-f", "raw", *words, uri)
        newer.run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", copy, uri)
        newer.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, copy)


# ---- with TLS ------------------------------------------------------------------------------


def test_tls_with_certificates(newer: Toolbox, tmp_path: Path, rng: random.Random) -> None:
    """What `test_nbd_tls` has the installed clients do."""
    content = rng.randbytes(300 * KIB) + bytes(MIB)
    (tmp_path / "disk.img").write_bytes(content)
    directory = Authority().give(tmp_path / "tls", "server")
    options = ["--bind", "localhost", "--port", "0", "--tls-certificates", directory]
    with served("disk.img", *options, cwd=tmp_path) as server:
        uri = f"{server.uri}?tls-certificates={directory}"
        assert "with TLS, using extended packets" in newer.run("nbdinfo", uri)
        newer.run("nbdcopy", uri, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
        newer.run("nbdcopy", "--requests=64", tmp_path / "copy", uri)
        port = re.findall(r":(\d+)/", server.uri)[0]
        creds = f"tls-creds-x509,id=t,dir={directory},endpoint=client"
        where = f"driver=nbd,host=localhost,port={port},tls-creds=t"
        assert "1.29 MiB" in newer.run("qemu-img", "info", "--object", creds, "--image-opts", where)


def test_tls_with_keys(newer: Toolbox, tmp_path: Path, rng: random.Random) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text(f"guest:{rng.randbytes(32).hex()}\n")
    with served("ram:1M", "--bind", "localhost", "--port", "0", "--tls-psk", keys) as server:
        uri = server.uri.replace("nbds://", "nbds://guest@")
        assert newer.run("nbdinfo", "--size", f"{uri}?tls-psk-file={keys}") == f"{MIB}\n"
        port = re.findall(r":(\d+)/", server.uri)[0]
        creds = f"tls-creds-psk,id=t,dir={tmp_path},username=guest,endpoint=client"
        where = f"driver=nbd,host=localhost,port={port},tls-creds=t"
        assert "1 MiB" in newer.run("qemu-img", "info", "--object", creds, "--image-opts", where)


# ---- as a file -----------------------------------------------------------------------------


def test_nbdfuse(tmp_path: Path, rng: random.Random) -> None:
    """The disk as a file of this machine: read, written, synced, punched."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse cannot be used")
    content = rng.randbytes(MIB)
    (tmp_path / "disk.img").write_bytes(content)
    (mount := tmp_path / "mnt").mkdir()
    with served("disk.img", "--socket", "s", cwd=tmp_path) as server:
        uri = f"nbd+unix:///?socket={tmp_path / 's'}"
        with subprocess.Popen([peer("nbdfuse"), str(mount), uri], stderr=subprocess.PIPE) as fuse:
            try:
                disk = mount / "nbd"
                while not disk.exists():
                    if fuse.poll() is not None:
                        missing(f"nbdfuse cannot mount here: {(fuse.communicate()[1])!r}")
                    time.sleep(0.01)
                assert disk.read_bytes() == content
                fd = os.open(disk, os.O_RDWR)
                os.pwrite(fd, b"written", 4000)
                os.fsync(fd)
                os.close(fd)
                assert disk.read_bytes() == content[:4000] + b"written" + content[4007:]
            finally:
                fuse.terminate()
                fuse.wait(30)
        assert server.process.poll() is None
    assert (tmp_path / "disk.img").read_bytes()[4000:4007] == b"written"
