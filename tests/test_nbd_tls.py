"""TLS: who comes in, who does not, and that nothing passes beside it."""

import contextlib
import random
import re
import shlex
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from nbd_client import BLOCK_STATUS, DISC, READ, WRITE_ZEROES, Client, connect, option, request
from served import TAPDISK, Served, served
from tlscerts import Authority

from docpages import ROOT
from peers import peer
from tapcore import TlsMode, TlsOptions
from tapcore.nbd.tlsfiles import Credentials

MIB = 1 << 20
ACK = struct.pack(">QIII", 0x0003E889045565A9, 5, 1, 0)
TLS_REQD = (1 << 31) + 5


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def server_dir(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority.give(tmp_path_factory.mktemp("tls") / "server", "server")


@pytest.fixture(scope="module")
def client_dir(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tls") / "client"
    return authority.give(where, "client", {"C": "FR", "O": "A, B", "CN": "guest"})


@pytest.fixture(scope="module")
def nobody_dir(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a client that knows the authority and has no certificate."""
    where = tmp_path_factory.mktemp("tls") / "nobody"
    where.mkdir()
    (where / "ca-cert.pem").write_bytes(authority.pem)
    return where


@pytest.fixture
def image(tmp_path: Path, rng: random.Random) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(rng.randbytes(3 * MIB) + bytes(MIB) + b"not for everybody " * 8192)
    with path.open("r+b") as file:
        file.truncate(5 * MIB)
    return path


def tls_served(image: Path | str, directory: Path, *options: object, **more: Any) -> Any:
    words = ["--port", "0", "--bind", "localhost", "--tls-certificates", directory]
    return served(image, *words, *options, **more)


def context(directory: Path, *, certificate: bool = True) -> ssl.SSLContext:
    """A client's, in Python."""
    made = ssl.create_default_context(cafile=str(directory / "ca-cert.pem"))
    if certificate and (directory / "client-cert.pem").exists():
        made.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
    return made


def run(*words: object) -> subprocess.CompletedProcess[bytes]:
    command = [peer(str(words[0])), *map(str, words[1:])]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def ok(*words: object) -> bytes:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def with_files(uri: str, directory: Path) -> str:
    return f"{uri}?tls-certificates={directory}"


def of_qemu(server: Served, directory: Path) -> list[str]:
    port = server.uri.split(":")[2].split("/")[0]
    creds = f"tls-creds-x509,id=t,dir={directory},endpoint=client"
    where = f"driver=nbd,host=localhost,port={port},tls-creds=t"
    return ["--object", creds, "--image-opts", where]


# ---- clients of others -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["on", "require"])
def test_libnbd(mode: str, image: Path, server_dir: Path, nobody_dir: Path) -> None:
    with tls_served(image, server_dir, "--tls", mode) as server:
        assert server.uri.startswith("nbds://localhost:")
        uri = with_files(server.uri, nobody_dir)
        assert b"with TLS" in ok("nbdinfo", uri).splitlines()[0]
        assert b"data" in ok("nbdinfo", "--map", uri)
        assert ok("nbdcopy", uri, "-") == image.read_bytes()
        plain = run("nbdinfo", "--size", server.uri.replace("nbds:", "nbd:"))
        assert plain.returncode == (0 if mode == "on" else 1)


def test_nbdcopy_writes(image: Path, server_dir: Path, nobody_dir: Path) -> None:
    target = image.parent / "target.img"
    target.write_bytes(b"\1" * 5 * MIB)
    with tls_served(target, server_dir) as server:
        ok("nbdcopy", "--requests=16", image, with_files(server.uri, nobody_dir))
    assert target.read_bytes() == image.read_bytes()


def test_qemu(image: Path, server_dir: Path, nobody_dir: Path) -> None:
    copy = image.parent / "copy.img"
    with tls_served(image, server_dir) as server:
        where = of_qemu(server, nobody_dir)
        assert b"5 MiB" in ok("qemu-img", "info", *where)
        ok("qemu-img", "convert", *where, "-O", "raw", copy)
        assert copy.read_bytes() == image.read_bytes()
        commands = ["-c", "write -P 7 100k 2M", "-c", "read -P 7 100k 2M", "-c", "flush"]
        done = ok("qemu-io", *where, *commands)
        assert b"failed" not in done
    assert image.read_bytes()[100 << 10 : 2 * MIB] == b"\7" * (2 * MIB - (100 << 10))


def test_a_unix_socket(image: Path, server_dir: Path, nobody_dir: Path) -> None:
    where = image.parent / "s"
    options = ["--socket", where, "--tls-certificates", server_dir]
    with served(image, *options) as server:
        assert server.uri == f"nbds+unix:///?socket={where}"
        with Client(server.uri, tls=context(nobody_dir)) as client:
            assert client.read(0, 5 * MIB) == image.read_bytes()


def test_the_commands_of_the_page(image: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tls.md").read_text()
    lines = re.findall(r"^    (openssl .*)$", page, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        subprocess.run(line.split(), cwd=tmp_path, check=True, capture_output=True)
    with tls_served(image, tmp_path) as server:
        for line in re.findall(r"^    (nbd.* 'nbds://HOST.*)$", page, re.MULTILINE):
            line = line.replace("nbds://HOST/", server.uri).replace(
                "/etc/pki/nbd-client", str(tmp_path)
            )
            ok(
                *(
                    word.replace("copy.raw", str(tmp_path / "copy.raw"))
                    for word in shlex.split(line)
                )
            )
    assert (tmp_path / "copy.raw").read_bytes() == image.read_bytes()


# ---- clients' certificates -------------------------------------------------------------------


def test_clients_need_a_certificate(
    image: Path, server_dir: Path, client_dir: Path, nobody_dir: Path, tmp_path: Path
) -> None:
    stranger = Authority().give(tmp_path / "stranger", "client")
    (stranger / "ca-cert.pem").write_bytes((client_dir / "ca-cert.pem").read_bytes())
    with tls_served(image, server_dir, "--tls-verify-peer") as server:
        assert ok("nbdinfo", "--size", with_files(server.uri, client_dir)) == b"5242880\n"
        ok("qemu-img", "info", *of_qemu(server, client_dir))
        for directory in (nobody_dir, stranger):
            assert run("nbdinfo", "--size", with_files(server.uri, directory)).returncode == 1
            assert run("qemu-img", "info", *of_qemu(server, directory)).returncode == 1
        assert server.until(lambda: server.fds == server.quiet_fds) is None


def test_only_some_subjects_may_come(
    image: Path, authority: Authority, server_dir: Path, client_dir: Path, tmp_path: Path
) -> None:
    other = authority.give(tmp_path / "other", "client", {"CN": "other"})
    words = ["openssl", "x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in"]
    printed = subprocess.run(
        [*words, client_dir / "client-cert.pem"], capture_output=True, text=True, check=True
    )
    subject = printed.stdout.strip().removeprefix("subject=")
    assert subject == "CN=guest,O=A\\, B,C=FR"
    options = ["--tls-allow", subject, "--tls-allow", "CN=nobody", "--log-level", "info"]
    with tls_served(image, server_dir, *options, quiet=False) as server:
        assert ok("nbdinfo", "--size", with_files(server.uri, client_dir)) == b"5242880\n"
        assert run("nbdinfo", "--size", with_files(server.uri, other)).returncode == 1
    assert any(
        "TLS has failed: its certificate's subject is CN=other" in m for m in server.messages
    )


def test_a_revoked_certificate(image: Path, authority: Authority, tmp_path: Path) -> None:
    directory = authority.give(tmp_path / "server", "server")
    good = authority.give(tmp_path / "good", "client", serial=1001)
    bad = authority.give(tmp_path / "bad", "client", serial=1002)
    authority.revoke(directory, 1002)
    with tls_served(image, directory, "--tls-verify-peer") as server:
        assert run("nbdinfo", "--size", with_files(server.uri, good)).returncode == 0
        assert run("nbdinfo", "--size", with_files(server.uri, bad)).returncode == 1


# ---- nothing beside it -----------------------------------------------------------------------


def greeted(uri: str) -> socket.socket:
    sock = connect(uri)
    assert len(sock.recv(18)) == 18
    return sock


def test_what_is_sent_too_early_is_the_end(image: Path, server_dir: Path) -> None:
    """What stands in clear behind STARTTLS might come from anybody, and must not count later."""
    with tls_served(image, server_dir, "--tls", "on") as server, greeted(server.uri) as sock:
        sock.sendall(struct.pack(">I", 3) + option(5) + option(3))
        assert sock.recv(100) == b""


def test_no_plaintext_after_the_upgrade(image: Path, server_dir: Path) -> None:
    with tls_served(image, server_dir, "--tls", "on") as server, greeted(server.uri) as sock:
        sock.sendall(struct.pack(">I", 3) + option(5))
        assert sock.recv(20) == ACK
        sock.sendall(option(3))
        answer = sock.recv(100)
        assert not answer or (answer[:1], len(answer)) == (b"\x15", 7), "no alert of TLS"
        assert sock.recv(100) == b""


@pytest.mark.parametrize("number", [2, 3, 6, 7, 8, 9, 10, 11, 77])
def test_every_option_needs_tls(number: int, image: Path, server_dir: Path) -> None:
    with tls_served(image, server_dir) as server, greeted(server.uri) as sock:
        sock.sendall(struct.pack(">I", 3) + option(number, b"" if number == 3 else bytes(6)))
        _, answered, kind, length = struct.unpack(">QIII", sock.recv(20, socket.MSG_WAITALL))
        assert (answered, kind) == (number, 1 if number == 2 else TLS_REQD)
        sock.recv(length)
        if number != 2:
            sock.sendall(option(5))
            assert sock.recv(20) == ACK


@pytest.mark.parametrize("flags", [0, 1, 3])
def test_an_export_name_without_tls_is_the_end(flags: int, image: Path, server_dir: Path) -> None:
    with tls_served(image, server_dir) as server, greeted(server.uri) as sock:
        sock.sendall(struct.pack(">I", flags) + option(1))
        assert sock.recv(100) == b""


class Tap:
    """A port that hands everything on to another, and keeps it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._listener = socket.create_server(("localhost", 0))
        self.uri = f"nbds://localhost:{self._listener.getsockname()[1]}/"
        self.seen = bytearray()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        ours, _ = self._listener.accept()
        with ours, connect(self._uri) as theirs:
            back = threading.Thread(target=self._pass, args=(theirs, ours))
            back.start()
            self._pass(ours, theirs)
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize("handle", ["aio", "sync", "ram"])
def test_nothing_can_be_read_on_the_way(
    handle: str, image: Path, server_dir: Path, nobody_dir: Path
) -> None:
    """Large reads of a file, and small ones in the page cache, have shorter ways without TLS."""
    secret = image.read_bytes()
    with tls_served(f"{handle}:{image}", server_dir) as server:
        tap = Tap(server.uri)
        with Client(tap.uri, tls=context(nobody_dir)) as client:
            for size in (4096, 16384, 32768, MIB, 5 * MIB):
                for _ in range(3):
                    at = 5 * MIB - size
                    assert client.read(at, size) == secret[at:]
            client.write(MIB, b"not for everybody " * 1000)
        tap.close()
    assert len(tap.seen) > 12 * MIB  # holes are not sent
    assert b"not for everybody" not in tap.seen
    assert all(secret[at : at + 64] not in tap.seen for at in range(0, MIB, 1 << 18))


# ---- requests --------------------------------------------------------------------------------


def test_what_was_agreed_in_the_clear_is_forgotten(
    image: Path, server_dir: Path, nobody_dir: Path
) -> None:
    """Structured replies among it: "NBD_OPT_STARTTLS"."""
    with tls_served(image, server_dir, "--tls", "on") as server:
        sock = greeted(server.uri)
        sock.sendall(struct.pack(">I", 3) + option(8))
        assert struct.unpack(">QIII", sock.recv(20))[1:3] == (8, 1)
        sock.sendall(option(5))
        assert sock.recv(20) == ACK
        with context(nobody_dir).wrap_socket(sock, server_hostname="localhost") as secure:
            secure.sendall(option(5))
            _, _, kind, length = struct.unpack(">QIII", secure.recv(20))
            assert kind == (1 << 31) + 3
            secure.recv(length)
            secure.sendall(option(9, struct.pack(">II", 0, 0)))
            assert struct.unpack(">QIII", secure.recv(20))[2] == (1 << 31) + 3


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_tls(
    version: ssl.TLSVersion, image: Path, server_dir: Path, nobody_dir: Path
) -> None:
    """With extended headers too, whose replies are longer."""
    secure = context(nobody_dir)
    secure.minimum_version = secure.maximum_version = version
    model = image.read_bytes()
    pieces = {"tapcore.nbd.longrequest.PIECE": 65536}
    with (
        tls_served(image, server_dir, changes=pieces) as server,
        Client(server.uri, extended=True, tls=secure) as client,
    ):
        assert client.read(5, 700_000) == model[5:700_005]
        client.call(WRITE_ZEROES, MIB, 3 * MIB)
        assert client.read(MIB, 3 * MIB) == bytes(3 * MIB)
        client.write(100, b"w" * 300_000)
        assert client.read(99, 300_002) == model[99:100] + b"w" * 300_000 + model[300_100:300_101]


@pytest.mark.parametrize("structured", [False, True])
def test_many_requests_at_once(
    structured: bool, image: Path, server_dir: Path, nobody_dir: Path, rng: random.Random
) -> None:
    model = bytearray(image.read_bytes())
    with tls_served(image, server_dir) as server:
        secure = context(nobody_dir)
        with Client(server.uri, structured=structured, tls=secure) as client:
            for _ in range(6):
                reads = []
                for _ in range(30):
                    size = rng.choice([1, 512, 4096, 70_000, 300_000, 2 * MIB])
                    at = rng.randrange(5 * MIB - size)
                    reads.append((client.send(READ, at, size), at, size))
                for cookie, at, size in reads:
                    assert client.answer(cookie).content(at, size) == model[at : at + size]
                size = rng.choice([1, 4096, 100_000, 130_000, 2 * MIB])
                at = rng.randrange(5 * MIB - size)
                model[at : at + size] = data = rng.randbytes(size)
                client.write(at, data)
            client.flush()
            if structured:
                assert client.call(BLOCK_STATUS, 0, 5 * MIB).runs
    assert image.read_bytes() == model


def test_a_client_that_does_not_read(image: Path, server_dir: Path, nobody_dir: Path) -> None:
    """It holds bounded memory, costs nothing, and has its answers when it wants them."""
    content, secure = image.read_bytes(), context(nobody_dir)
    changes = {"tapcore.nbd.transmission.MAX_HELD": 2 * MIB}
    with (
        tls_served(image, server_dir, changes=changes) as server,
        Client(server.uri, tls=secure) as client,
    ):
        client.read(0, MIB)  # what is needed for one
        before = server.rss
        cookies = [client.send(READ, 0, MIB) for _ in range(40)]
        assert server.idle_for(0.1)
        assert server.rss - before < 16 * MIB
        with Client(server.uri, tls=secure) as other:
            assert other.read(0, 4096) == content[:4096]
        for cookie in cookies:
            assert client.answer(cookie).content(0, MIB) == content[:MIB]


def test_goodbye_ends_tls_before_the_connection(
    image: Path, server_dir: Path, nobody_dir: Path
) -> None:
    """So a client knows that nobody has cut it off."""
    with (
        tls_served(image, server_dir) as server,
        Client(server.uri, tls=context(nobody_dir)) as client,
    ):
        vars(client.sock)["suppress_ragged_eofs"] = False
        cookie = client.send(READ, 0, 5 * MIB)
        client.sock.sendall(request(DISC, 99))
        assert client.answer(cookie).done
        assert client.sock.recv(1) == b""


def test_half_a_handshake_of_tls(image: Path, server_dir: Path) -> None:
    changes = {"tapcore.nbd.connection.HANDSHAKE_SECONDS": 0.5}
    with tls_served(image, server_dir, changes=changes) as server, greeted(server.uri) as sock:
        sock.sendall(struct.pack(">I", 3) + option(5))
        assert sock.recv(20) == ACK
        sock.sendall(b"\x16\x03\x01\x40\x00\x01")
        sock.settimeout(30)
        start = time.monotonic()
        assert sock.recv(100) == b""
        assert time.monotonic() - start < 20


def test_stopped_while_clients_are_there(image: Path, server_dir: Path, nobody_dir: Path) -> None:
    secure = context(nobody_dir)
    with tls_served(image, server_dir) as server, Client(server.uri, tls=secure) as client:
        cookie = client.send(READ, 0, 5 * MIB)
        client.wait_until(lambda: client.parser.answers[cookie].done)
        server.stop()
        assert client.at_end()


# ---- the files -------------------------------------------------------------------------------


def shown(server: Served) -> bytes:
    """The certificate that a server shows."""
    with greeted(server.uri) as sock:
        sock.sendall(struct.pack(">I", 3) + option(5))
        assert sock.recv(20) == ACK
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        with anybody.wrap_socket(sock) as secure:
            return secure.getpeercert(binary_form=True) or b""


def test_hanging_up_reads_the_certificates_again(
    image: Path, authority: Authority, tmp_path: Path, nobody_dir: Path
) -> None:
    directory = authority.give(tmp_path / "server", "server")
    with tls_served(image, directory, quiet=False) as server:
        first = shown(server)
        with Client(server.uri, tls=context(nobody_dir)) as client:
            authority.give(directory, "server")
            assert shown(server) == first
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: shown(server) != first)
            second = shown(server)
            (directory / "server-key.pem").write_text("nothing")
            server.process.send_signal(signal.SIGHUP)
            server.sees_an_end()
            assert shown(server) == second
            assert client.read(0, 512) == image.read_bytes()[:512]
    assert len(server.messages) == 1
    assert "the certificates stay as they were: " in server.messages[0]
    assert "server-cert.pem" in server.messages[0]


def refused(*words: object, status: int = 1) -> str:
    done = subprocess.run(
        [TAPDISK, "serve", "ram:1M", "--port", "0", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (status, "")
    return done.stderr


def test_files_that_do_not_do(authority: Authority, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    words = f"tapdisk: {missing}/server-cert.pem: No such file or directory\n"
    assert refused("--tls-certificates", missing) == words
    other = authority.give(tmp_path / "other", "server")
    directory = authority.give(tmp_path / "server", "server")
    (directory / "server-key.pem").write_bytes((other / "server-key.pem").read_bytes())
    assert "and server-key.pem are not a certificate and its key" in refused(
        "--tls-certificates", directory
    )
    authority.give(directory, "server", password=b"secret")
    assert "is encrypted" in refused("--tls-certificates", directory)
    authority.give(directory, "server")
    (directory / "ca-cert.pem").unlink()
    wanted = f"tapdisk: {directory}/ca-cert.pem: No such file or directory\n"
    assert refused("--tls-certificates", directory, "--tls-verify-peer") == wanted
    (directory / "ca-cert.pem").write_text("nothing")
    assert "is not what its name says" in refused(
        "--tls-certificates", directory, "--tls-allow", "CN=x"
    )


def test_options_that_do_not_fit(server_dir: Path) -> None:
    assert "TLS needs --tls-certificates DIR" in refused("--tls", "on", status=2)
    assert "another" in refused("--tls-psk", "x", "--tls-certificates", server_dir, status=2)


# ---- pre-shared keys -------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path, rng: random.Random) -> Path:
    path = tmp_path / "keys.psk"
    path.write_text(f"other:{'ab' * 32}\nguest:{rng.randbytes(32).hex()}\n")
    return path


def test_pre_shared_keys(image: Path, keys: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.psk"
    wrong.write_text(f"guest:{'cd' * 32}\n")
    with served(image, "--port", "0", "--bind", "localhost", "--tls-psk", keys) as server:
        uri = server.uri.replace("nbds://", "nbds://guest@")
        assert ok("nbdcopy", f"{uri}?tls-psk-file={keys}", "-") == image.read_bytes()
        assert run("nbdinfo", f"{uri}?tls-psk-file={wrong}").returncode == 1
        port = server.uri.split(":")[2].split("/")[0]
        creds = f"tls-creds-psk,id=t,dir={tmp_path},username=guest,endpoint=client"
        where = f"driver=nbd,host=localhost,port={port},tls-creds=t"
        ok("qemu-img", "info", "--object", creds, "--image-opts", where)
        stranger = uri.replace("guest@", "stranger@")
        assert run("nbdinfo", f"{stranger}?tls-psk-file={wrong}").returncode == 1


def test_keys_do_not_go_with_weak_ciphers(keys: Path) -> None:
    """OpenSSL counts ciphers that hide nothing (PSK-NULL-SHA) among those with keys."""
    found = Credentials(TlsOptions(TlsMode.REQUIRE, psk=str(keys))).context.get_ciphers()
    assert {each["protocol"] for each in found} == {"TLSv1.2", "TLSv1.3"}
    assert all(each["aead"] for each in found)


def test_a_file_that_has_no_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    for text in ("", "guest", "guest:", ":00", "guest:0", "guest:xx"):
        keys.write_text(text)
        assert refused("--tls-psk", keys).startswith(f"tapdisk: {keys}: ")
