"""Ways to run `tapdisk serve`: sockets that are open already, and reasons to end."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbd_client import Client, connect
from served import TAPDISK, served

from peers import peer

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * MIB)
    return path


def listening(path: Path | None = None) -> socket.socket:
    """A socket that listens, of a kind or the other."""
    if path is None:
        return socket.create_server(("127.0.0.1", 0))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def stopped(process: subprocess.Popen[str]) -> None:
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def refused(*words: object, **more: object) -> str:
    command = [TAPDISK, "serve", *map(str, words)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,  # type: ignore[call-overload]
    )
    assert (done.returncode != 0, done.stdout) == (True, "")
    return str(done.stderr)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_an_open_socket(kind: str, image: Path) -> None:
    path = image.parent / "s" if kind == "unix" else None
    with listening(path) as sock:
        process = subprocess.Popen(
            [str(TAPDISK), "serve", str(image), "--socket", f"fd:{sock.fileno()}"],
            pass_fds=[sock.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        port = sock.getsockname()[1]
    assert process.stdout is not None
    uri = process.stdout.readline().strip()
    assert uri == (f"nbd+unix:///?socket={path}" if path else f"nbd://127.0.0.1:{port}/")
    with Client(uri) as client:
        assert client.read(0, 512) == b"x" * 512
    stopped(process)
    assert path is None or path.exists(), "it is another's"


def test_what_is_no_listening_socket(image: Path) -> None:
    with socket.socket() as sock:
        fd = sock.fileno()
        said = refused(image, "--socket", f"fd:{fd}", pass_fds=[fd])
        assert said == f"tapdisk: fd:{fd}: is not a socket that listens\n"
    assert "fd:0: is not a socket" in refused(image, "--socket", "fd:0", stdin=subprocess.DEVNULL)
    assert "fd:999: is not a socket" in refused(image, "--socket", "fd:999")


_ACTIVATE = """
import os, sys
wanted = [int(each) for each in sys.argv[1].split(",")]
spare = [os.dup(fd) for fd in wanted]
for place, fd in enumerate(spare, 3):
    os.dup2(fd, place)
    os.set_inheritable(place, True)
os.environ |= {"LISTEN_FDS": str(len(wanted)), "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_sockets_of_systemd(image: Path) -> None:
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(image.parent / "notify"))
    told.settimeout(60)
    first, second = listening(image.parent / "one"), listening()
    fds = [first.fileno(), second.fileno()]
    words = [sys.executable, "-c", _ACTIVATE, ",".join(map(str, fds))]
    words += [str(TAPDISK), "serve", str(image)]
    with told, first, second:
        process = subprocess.Popen(
            words,
            pass_fds=fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": str(image.parent / "notify")},
        )
        assert told.recv(100) == b"READY=1"
    assert process.stdout is not None
    uris = [process.stdout.readline().strip() for _ in range(2)]
    assert uris[0] == f"nbd+unix:///?socket={image.parent}/one"
    for uri in uris:
        with Client(uri) as client:
            assert client.size == MIB
    stopped(process)


def test_a_socket_of_systemd_by_its_name(image: Path) -> None:
    """Two servers of one unit may have one each."""
    first, second = listening(), listening(image.parent / "two")
    fds = [first.fileno(), second.fileno()]
    words = [sys.executable, "-c", _ACTIVATE, ",".join(map(str, fds))]
    words += [str(TAPDISK), "serve", str(image), "--socket"]
    more = {"pass_fds": fds, "env": {**os.environ, "LISTEN_FDNAMES": "one:two"}}
    with first, second:
        process = subprocess.Popen(
            [*words, "fd:two"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,  # type: ignore[call-overload]
        )
        assert process.stdout.readline() == f"nbd+unix:///?socket={image.parent}/two\n"
        process.terminate()
        assert process.communicate(timeout=60) == ("", "")
        done = subprocess.run([*words, "fd:three"], capture_output=True, text=True, **more)  # type: ignore[call-overload]
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "none of the sockets is named 'three' (LISTEN_FDNAMES is 'one:two')" in done.stderr
    assert "LISTEN_FDS is not set" in refused(image, "--socket", "fd:two")


def test_vsock(image: Path) -> None:
    """That it listens; only a kernel with vsock_loopback, or a guest, can connect to it."""
    try:
        socket.socket(socket.AF_VSOCK).close()
    except OSError:
        pytest.skip("the kernel has no vsock")
    with served(image, "--socket", "vsock:0") as server:
        assert re.fullmatch(r"nbd\+vsock://\d+:[1-9]\d*/", server.uri)
        port = int(server.uri.split(":")[2].rstrip("/"))
        said = refused("ram:1M", "--socket", f"vsock:{port}")
        assert f"vsock:{port}: cannot listen here: " in said
    assert "needs a number" in refused(image, "--socket", "vsock:x")


def test_sockets_for_somebody_else(image: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LISTEN_FDS", "1")
        patch.setenv("LISTEN_PID", "1")
        with served(image, "--port", "0") as server:
            assert server.uri.startswith("nbd://127.0.0.1:")


def test_sockets_and_an_address(image: Path) -> None:
    with listening() as sock:
        words = [sys.executable, "-c", _ACTIVATE, str(sock.fileno())]
        words += [str(TAPDISK), "serve", str(image)]
        done = subprocess.run(
            [*words, "--port", "0"], pass_fds=[sock.fileno()], capture_output=True, text=True
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert "LISTEN_FDS is set" in done.stderr


def test_idle(image: Path) -> None:
    where = image.parent / "s"
    with served(image, "--socket", where, "--idle-timeout", "0.2") as server:
        with server.client() as client:
            assert server.idle_for(0.4)
            assert client.read(0, 1) == b"x"
            left = time.monotonic()
        assert server.process.wait(60) == 0
        assert time.monotonic() - left >= 0.2
    assert not where.exists()


def test_nobody_ever_comes(image: Path) -> None:
    with served(image, "--port", "0", "--idle-timeout", "0.3") as server:
        assert server.process.wait(60) == 0


def test_one_client_too_many(image: Path) -> None:
    options = ["--socket", image.parent / "s", "--max-connections", "2"]
    with (
        served(image, *options, quiet=False) as server,
        server.client() as one,
        server.client() as other,
    ):
        with connect(server.uri) as third:
            assert third.recv(18) == b""
        assert one.read(0, 1) == other.read(0, 1) == b"x"
        one.close()
        server.until(lambda: server.fds < server.quiet_fds + 2)
        with server.client() as third_time:
            assert third_time.read(0, 1) == b"x"
    assert server.messages == ["tapdisk: a client was refused: there are 2 already"]


def test_the_end_of_the_parent(image: Path) -> None:
    where = image.parent / "s"
    code = "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:])\ntime.sleep(600)\n"
    words = [str(TAPDISK), "serve", str(image), "--socket", str(where), "--exit-with-parent"]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("nbd+unix:")
        assert where.exists()
        parent.kill()
        assert parent.stdout.read() == ""  # the server has ended, and let go of it
    assert not where.exists()


# ---- a command, and the background -------------------------------------------------------------


def ran(*words: object, status: int = 0) -> str:
    done = subprocess.run(
        [TAPDISK, "serve", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, ""), done.stderr
    return done.stdout


def test_a_command(image: Path) -> None:
    said = ran(image, "--run", f'echo "$unixsocket"; {peer("nbdinfo")} --size "$uri"')
    path, size = said.splitlines()
    assert size == str(MIB)
    assert not Path(path).parent.exists()
    assert ran(image, "--port", "0", "--run", 'echo "$uri $port"').startswith("nbd://127.0.0.1:")


@pytest.mark.parametrize(
    ("command", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("no-such", 127)]
)
def test_the_status_of_a_command(command: str, status: int, image: Path) -> None:
    ran(image, "--run", f"{command} 2>/dev/null", status=status)


def test_a_command_whose_server_is_stopped(image: Path) -> None:
    """It is told to end too, and hears signals though the server waits for them in a thread."""
    words = [str(TAPDISK), "serve", str(image), "--run", "echo begun; exec sleep 600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.wait(60) == 128 + 15


def test_in_the_background(image: Path) -> None:
    where, number = image.parent / "s", image.parent / "pid"
    options = ["--socket", where, "--fork", "--pid-file", number]
    (uri,) = ran(image, *options).splitlines()  # it ends, and so does its output
    pid = int(number.read_text())
    with Client(uri) as client:
        assert client.read(0, 1) == b"x"
        assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 60
    while where.exists() or number.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_fails_in_the_background(image: Path) -> None:
    missing = image.parent / "missing.img"
    said = refused(missing, "--port", "0", "--fork")
    assert said == f"tapdisk: {missing}: No such file or directory\n"
    said = refused(image, "--port", "0", "--fork", "--pid-file", image / "pid")
    assert said == f"tapdisk: {image}/pid: Not a directory\n"


def test_a_pid_file_of_another_is_left(image: Path) -> None:
    number = image.parent / "pid"
    with served(image, "--port", "0", "--pid-file", number) as server:
        server.until(number.exists)
        assert number.read_text() == f"{server.process.pid}\n"
        number.write_text("1\n")
    assert number.read_text() == "1\n"


def test_what_does_not_go_together(image: Path) -> None:
    assert "--fork does not go with" in refused(image, "--fork", "--run", "true")
    assert "--fork does not go with" in refused(image, "--fork", "--exit-with-parent")


def test_on_every_address_with_a_warning_and_a_line_for_each_client(image: Path) -> None:
    words = ["--bind", "0.0.0.0", "--port", "0", "--read-only", "--log-level", "info"]
    command = [str(TAPDISK), "serve", str(image), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        uri = server.stdout.readline().strip()
        assert "0.0.0.0" not in uri
        with Client(uri) as client:
            assert client.read(0, 4) == b"xxxx"
        server.terminate()
        _, told = server.communicate(timeout=60)
    warning, *lines = told.splitlines()
    assert "0.0.0.0: whoever reaches this machine may read;" in warning
    assert all(re.match(r"tapdisk: \d\d:\d\d:\d\d\.\d{3} ", line) for line in lines)
    texts = [line[len("tapdisk: 00:00:00.000 ") :] for line in lines]
    assert texts[0] == f"serving {uri}"
    assert re.fullmatch(r"client 1 \(127\.\S+ port \d+\) uses the export ''", texts[1])
    assert texts[-1] == "stopped"
    assert sorted(texts[2:-1]) == [  # both may be heard at once
        "client 1 has gone",
        "stopping: clients get the answers that they are owed",
    ]
