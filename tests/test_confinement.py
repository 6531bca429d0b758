"""A process that has given up what it does not need: what it cannot do, and all that it can."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aims import aims, done, kept_from, tried
from commandline import tapdisk
from drivers import hostile
from nbd_client import TRIM, WRITE_ZEROES, Client
from served import served
from test_nbd_tls import context, shown
from tlscerts import Authority

import tapcore
from peers import missing
from tapcore.interface.registry import default_registry
from tapcore.process.confinement import calls, landlock, seccomp
from tapcore.process.stopping import StopSignals
from tapcore.process.workers import end_idle_threads, shared_pool
from tapcore.ring.client import RingClient

MIB = 1 << 20
ATTACKED = (sys.executable, hostile.__file__)
needs_landlock = pytest.mark.skipif(
    landlock.version() < 6, reason="the kernel has no Landlock that knows signals"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name in ("disk.img", "other", "unwanted", "useless"):
        (tmp_path / name).write_bytes(bytes(MIB))
    return tmp_path / "disk.img"


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with aims() as found:
        monkeypatch.setenv("HOSTILE", found)
        yield


@needs_landlock
@pytest.mark.usefixtures("targets")
def test_a_driver_that_was_taken_over_reaches_its_disk_alone(image: Path) -> None:
    where = ("--socket", image.parent / "s")
    with (
        served(f"hostile:{image}", "--confine", *where, program=ATTACKED) as server,
        server.client() as client,
    ):
        found = tried(client), tried(client, in_a_thread=True)
    for results in found:
        assert done(results) == set()
        assert kept_from(results) == {}
    assert sorted(os.listdir(image.parent)) == ["disk.img", "other", "unwanted", "useless"]
    assert (image.parent / "other").read_bytes() == bytes(MIB)


@pytest.mark.usefixtures("targets")
def test_without_confinement_each_of_these_would_be_done(image: Path) -> None:
    with (
        served(f"hostile:{image}", "--port", 0, program=ATTACKED) as server,
        server.client() as client,
    ):
        found = tried(client)
    assert {name: result for name, result in found.items() if result != "done"} == {}


@needs_landlock
def test_all_threads_are_bound(image: Path) -> None:
    with served(f"aio:{image}", "--confine", "--port", 0) as server:
        client = server.client()
        for number in range(64):
            client.write(number << 12, bytes(4096))
        client.flush()  # a thread waits for the disk
        states = [
            task.read_text() for task in Path(f"/proc/{server.process.pid}/task").glob("*/status")
        ]
        client.close()
    assert len(states) > 2
    assert all("NoNewPrivs:\t1\n" in state and "Seccomp:\t2\n" in state for state in states)


def test_a_thread_that_was_there_before_is_told_of(image: Path) -> None:
    with served(
        f"threaded:{image}", "--confine", "--port", 0, quiet=False, program=ATTACKED
    ) as server:
        pass
    assert "no hold on threads that are older: driver's own" in " ".join(server.messages)


# ---- kernels that have less ------------------------------------------------------------------

OLD_VERSIONS = """
import os, sys
from tapcore.process.confinement import kernel, landlock

for version in range(1, landlock.version() + 1):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, version
        continue
    room = landlock.Room(sys.argv[1], landlock.Right.READ_FILE | landlock.Right.WRITE_FILE)
    kernel.give_up_new_privileges()
    landlock.restrict([room, landlock.Room("/no/such/file", room.rights)], version)
    open(sys.argv[1], "r+b").close()
    try:
        open("/etc/passwd")
    except PermissionError:
        os._exit(0)
    os._exit(1)
"""


def test_each_version_of_landlock_is_used_as_it_is(image: Path) -> None:
    subprocess.run([sys.executable, "-c", OLD_VERSIONS, image], check=True)
    assert [len(landlock.missing(version)) for version in range(1, 9)] == [4, 4, 3, 2, 1, 0, 0, 0]
    assert landlock.handled_rights(1) == landlock.Right((1 << 13) - 1)
    assert landlock.handled_rights(5) == landlock.Right((1 << 16) - 1)


def test_what_the_kernel_lacks_is_said_once_and_the_rest_is_done(image: Path) -> None:
    where = "tapcore.process.confinement."
    changes = {f"{where}landlock._CREATE_RULESET": 9999, f"{where}seccomp._SET_MODE_FILTER": 99}
    options = ("--confine", "--socket", image.parent / "s")
    with served(f"aio:{image}", *options, changes=changes, quiet=False) as server:
        with server.client() as client:
            assert client.read(0, 512) == bytes(512)
        status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
    (line,) = server.messages
    assert "no Landlock, so that all files of this user can be reached" in line
    assert "no filter of system calls (Invalid argument)" in line


# ---- what goes on as before --------------------------------------------------------------------


def writable_formats() -> list[str]:
    return [
        info.handle
        for info in default_registry().drivers()
        if {"create", "write"} <= set(info.capabilities)
    ]


def works(client: Client) -> None:
    """A disk of 16 MiB does all that clients ask for."""
    client.write(0, b"one" * 1000)
    client.write(MIB, b"two" * 1000)
    client.write(9 * MIB + 512, b"two" * 512)
    client.call(WRITE_ZEROES, MIB, MIB)
    client.call(TRIM, 2 * MIB, MIB // 2)
    client.flush()
    assert client.read(0, 3 * 1000) == b"one" * 1000
    assert client.read(MIB, MIB) == bytes(MIB)
    assert client.read(9 * MIB, 2048) == bytes(512) + b"two" * 512


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_disks_of_all_formats_do_all_their_work(tmp_path: Path, cache: str) -> None:
    formats = [each for each in writable_formats() if (each, cache) != ("sync", "none")]
    assert {"qcow2", "vmdk", "vhdx"} <= set(formats)
    images = [f"{handle}:{tmp_path}/{handle}.image" for handle in formats]
    for name in images:
        tapcore.create_image(name, 16 * MIB)
    where = ("--socket", tmp_path / "s", "--cache", cache)
    quiet = cache == "writeback"  # VHD tells that it has no O_DIRECT
    with served(*images, "--confine", *where, uris=len(images), quiet=quiet) as server:
        for uri in server.uris:
            with Client(uri) as client:
                works(client)
    assert not [line for line in server.messages if "confine" in line]
    for name in images:
        with tapcore.open(name) as disk:
            assert disk.pread(9 * MIB, length=2048) == bytes(512) + b"two" * 512, name
    assert not (tmp_path / "s").exists()


def test_a_ring_is_served(image: Path, tmp_path: Path) -> None:
    where = ("--socket", tmp_path / "s", "--ring", tmp_path / "ring")
    with served(f"aio:{image}", "--confine", *where):
        for _ in range(2):  # front ends come and go
            with RingClient(tmp_path / "ring") as ring:
                ring.write(4096, b"ring" * 1024)
                ring.flush()
                assert ring.read(4096, 4096) == b"ring" * 1024
    assert image.read_bytes()[4096:8192] == b"ring" * 1024


def test_a_chain_under_a_filter(tmp_path: Path) -> None:
    tapcore.create_image(f"qcow2:{tmp_path}/parent", 16 * MIB)
    with tapcore.open(f"qcow2:{tmp_path}/parent", readonly=False) as disk:
        disk.pwrite(4 * MIB, b"below" * 1000)
    tapcore.create_image(f"qcow2:{tmp_path}/child", parent=f"qcow2:{tmp_path}/parent")
    stats = tmp_path / "stats"
    options = ("--confine", "--socket", tmp_path / "s", "--filter", f"stats:file={stats}")
    with served(f"qcow2:{tmp_path}/child", *options) as server, server.client() as client:
        works(client)
        assert client.read(4 * MIB, 5000) == b"below" * 1000
    lines = stats.read_text().splitlines()
    assert {Path(json.loads(line)["image"]).name for line in lines} == {"child", "parent"}


MAKE_ALL = """
import sys
import tapcore
from tapcore.interface.registry import default_registry
from tapcore.process.confinement import Confinement, confine

where = sys.argv[1]
infos = [each for each in default_registry().drivers() if "create" in each.capabilities]
confine(Confinement(writable=[where]))
for info in infos:
    name = f"{info.handle}:{where}/{info.handle}"
    for size in (1 << 20, 2 << 20):
        tapcore.create_image(name, size, force=True)
    if "parents" in info.capabilities:
        tapcore.create_image(f"{name}.child", parent=name)
        with tapcore.open(f"{name}.child", readonly=False) as disk:
            disk.pwrite(4096, b"child")
            assert disk.size == 2 << 20
"""


def test_images_of_all_formats_are_made_where_that_is_allowed(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", MAKE_ALL, tmp_path], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert {"qcow2", "qcow2.child", "vdi", "vdi.child", "vmdk.child"} <= {*os.listdir(tmp_path)}


def test_views_are_made_and_kept(image: Path) -> None:
    kept = image.parent / "kept"
    kept.mkdir()
    options = ("--overlay", "name", "--overlay-dir", kept, "--keep", f"qcow2:{kept}", "--confine")
    with (
        served(f"aio:{image}", *options, "--socket", image.parent / "s") as server,
        Client(server.uri.replace("?", "@one?")) as client,
    ):
        client.write(4096, b"view" * 1024)
    [made] = os.listdir(kept)
    with tapcore.open(f"qcow2:{kept / made}", parents=[image.parent]) as disk:
        assert disk.pread(4096, length=4096) == b"view" * 1024
    assert image.read_bytes() == bytes(MIB)


def test_certificates_are_read_again(image: Path, tmp_path: Path) -> None:
    authority = Authority()
    real = authority.give(tmp_path / "real", "server")
    named = tmp_path / "named"
    named.mkdir()
    for file in real.iterdir():  # as clients of ACME keep them
        (named / file.name).symlink_to(file)
    options = ("--tls-certificates", named, "--confine", "--bind", "127.0.0.1", "--port", 0)
    with served(f"aio:{image}", *options) as server:
        first = shown(server)
        authority.give(real, "server")
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: shown(server) != first)
        with Client(server.uri, tls=context(named)) as client:
            assert client.read(0, 512) == bytes(512)


def gone_when_empty(where: Path) -> None:
    """Wait until what removes files has done so; it is a process of its own."""
    end = time.monotonic() + 60
    while os.listdir(where):
        assert time.monotonic() < end, "it does not go"
        time.sleep(0.005)


# ---- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_the_socket_and_the_pid_file_go_whatever_ends_it(image: Path, signum: int) -> None:
    where = image.parent / "run"
    where.mkdir()
    sockets = ("--socket", where / "s", "--ring", where / "ring")
    with served(f"aio:{image}", "--confine", *sockets, "--pid-file", where / "pid") as server:
        with server.client() as client:  # it is confined
            client.read(0, 512)
        assert sorted(os.listdir(where)) == ["pid", "ring", "s"]
        if signum == signal.SIGKILL:
            server.ends(signum)
            server.process.wait()
            gone_when_empty(where)
    assert os.listdir(where) == []


def test_a_socket_of_another_server_stays(image: Path) -> None:
    """Which has put its own in the place of this one's."""
    where = image.parent / "s"
    with served(f"aio:{image}", "--confine", "--socket", where) as server:
        with server.client() as client:
            client.read(0, 512)
        where.unlink()
        where.write_text("another's")
    assert where.read_text() == "another's"


def test_a_signal_is_heard_by_the_thread_that_took_over() -> None:
    heard = threading.Event()
    signals = StopSignals(heard.set, [signal.SIGUSR1])
    try:
        signals.renew_thread()
        assert not heard.is_set()
        [waits] = [each for each in threading.enumerate() if each.name == "tapcore-stop"]
        signal.pthread_kill(waits.ident or 0, signal.SIGUSR1)
        assert heard.wait(60)
        signals.renew_thread()  # nobody waits any more
    finally:
        signals.close()


def test_threads_end_after_their_work_and_others_do_what_comes_next() -> None:
    done = threading.Semaphore(0)

    def work() -> int:
        done.release()
        return 0

    pool = shared_pool()
    for _ in range(5):
        pool.put(work, (), None, None)
    end_idle_threads()
    assert all(done.acquire(blocking=False) for _ in range(5))
    assert not [each for each in threading.enumerate() if each.name == "tapcore-io"]
    shared_pool().put(work, (), None, None)
    assert done.acquire(timeout=60)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_goes_on_as_another_user(image: Path) -> None:
    options = ("--confine", "--user", "nobody", "--port", 0)
    with served(f"aio:{image}", *options) as server, server.client() as client:
        client.write(0, b"nobody's" * 64)
        client.flush()
        status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert re.search(r"^Uid:(\t65534){4}$", status, re.MULTILINE)
    assert re.search(r"^Gid:(\t65534){4}$", status, re.MULTILINE)
    assert re.search(r"^Groups:\t65534 ?$", status, re.MULTILINE)
    assert re.search(r"^CapPrm:\t0{16}$", status, re.MULTILINE)
    assert image.read_bytes()[:512] == b"nobody's" * 64


@pytest.mark.parametrize(
    ("options", "message", "status"),
    [
        (("--confine", "--run", "true"), "--confine does not go with --run", 2),
        (("--user", "nobody"), "--user needs --confine", 2),
        (("--confine", "--user", "no such"), "there is no user 'no such'", 1),
    ],
)
def test_what_does_not_go(image: Path, options: tuple[str, ...], message: str, status: int) -> None:
    _, err = tapdisk("serve", image, *options, status=status)
    assert message in err


# ---- the filter of system calls ----------------------------------------------------------------

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50001, 0x50026


def answer(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the filter says to a call, as the kernel would run it."""
    found = {0: number, 4: MACHINES[machine] if arch is None else arch}
    for index, value in enumerate(arguments):
        found[16 + 8 * index] = value & 0xFFFFFFFF
    program, at, loaded = seccomp.program(machine, 77), 0, 0
    while True:
        code, true, false, constant = program[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            loaded = found[constant]
        else:
            holds = {
                0x15: loaded == constant,
                0x35: loaded >= constant,
                0x45: bool(loaded & constant),
            }
            at += true if holds[code] else false


@pytest.mark.skipif(not seccomp.known_machine(), reason="its numbers are not known")
def test_the_filter_that_is_prepared_is_the_same() -> None:
    wanted = seccomp.program(os.uname().machine, 4711)
    assert list(struct.iter_unpack("=HBBI", seccomp.packed(4711))) == wanted


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_of_each_machine(machine: str) -> None:
    looked_at, denied = calls.LOOKED_AT[machine], set(calls.DENIED[machine].values())
    for number in set(range(480)) - {*looked_at.values()}:
        assert answer(machine, number) == (EPERM if number in denied else ALLOW), number
    assert answer(machine, looked_at["clone3"]) == ENOSYS
    assert answer(machine, looked_at["clone"], 0x3D0F00) == ALLOW  # as pthread_create(3) does
    assert answer(machine, looked_at["clone"], 0x1200011) == EPERM  # as fork(2) does
    for name in ("kill", "tgkill"):
        assert answer(machine, looked_at[name], 77) == ALLOW
        for process in (0, -1, 78):
            assert answer(machine, looked_at[name], process) == EPERM
    assert answer(machine, looked_at["prlimit64"], 0) == ALLOW
    assert answer(machine, looked_at["prlimit64"], 78) == EPERM
    assert answer(machine, looked_at["ioctl"], 3, 0x5413) == ALLOW
    assert answer(machine, looked_at["ioctl"], 3, 0x5412) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_other_ways_into_the_kernel_are_shut(machine: str) -> None:
    """Those of 32 bits have numbers of their own."""
    assert answer(machine, 1, arch=0x40000003) == EPERM
    assert answer(machine, 0x40000001) == EPERM


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernel_s(machine: str) -> None:
    """Those that its headers, which came with the C compiler, know already."""
    if not HEADERS[machine].exists():
        missing("the kernel's headers are not installed (Debian package linux-libc-dev)")
    define = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
    known = {name: int(number) for name, number in define.findall(HEADERS[machine].read_text())}
    ours = calls.DENIED[machine] | calls.LOOKED_AT[machine]
    wrong = {name: number for name, number in ours.items() if known.get(name, number) != number}
    assert wrong == {}
    assert len(set(ours) & set(known)) > 80
