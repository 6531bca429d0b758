"""Names that `serve` is given: of images, exports and sockets, in whatever bytes they come."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from nbd_client import hello
from served import TAPDISK, served

from tapcore import UnixAddress, UsageError, nbd_server
from tapcore.cli.main import main

MIB = 1 << 20
RAW = os.fsdecode(b"d\xff\xfe.img")


Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Refused:
    """What is written where the server does not start: one line, and nothing is left."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        before = os.listdir(tmp_path)
        assert main(["serve", *words]) in (1, 2)
        out, err = capfdbinary.readouterr()
        assert out == b""
        line = err.decode()  # it is UTF-8, whatever the names are
        assert line.count("\n") == 1
        assert "udc" not in line
        assert "unexpected" not in line
        assert os.listdir(tmp_path) == before
        return line

    return run


def test_an_image_whose_name_is_not_utf_8_is_served(tmp_path: Path) -> None:
    (tmp_path / RAW).write_bytes(b"x" * MIB)
    with served(RAW, "--socket", "s", cwd=tmp_path) as server, server.client() as client:
        assert client.read(0, 4) == b"xxxx"
    names = ("--export", "a", "--export", "b")
    with served(RAW, "ram:1M", "--socket", "s", *names, cwd=tmp_path, uris=2) as server:
        assert [uri.partition("?")[0][-2:] for uri in server.uris] == ["/a", "/b"]


def test_a_socket_whose_name_is_not_utf_8_is_told_by_its_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"s\xff %&")
    with served("ram:1M", "--socket", name, cwd=tmp_path) as server:
        query = server.uri.partition("?socket=")[2]
        assert query.endswith("/s%FF%20%25%26")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(unquote_to_bytes(query))
            sock.sendall(hello())
            assert sock.recv(8) == b"NBDMAGIC"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--export", os.fsdecode(b"e\xff")),
            "e\\xff: an export's name has to be UTF-8, and is not",
        ),
        (("--export", "e" * 4097), "an export's name has 4096 bytes at most, and this one 4097"),
        (("--export", "€" * 1366), "an export's name has 4096 bytes at most, and this one 4098"),
        (("--socket", ""), "serve: --socket needs a path (see 'tapdisk serve --help')"),
        (("--bind", os.fsdecode(b"h\xff"), "--port", "0"), "h\\xff:0: is not the name of a host"),
        (("--bind", "a" * 80, "--port", "0"), f"{'a' * 80}:0: is not the name of a host"),
    ],
    ids=lambda each: "-".join(each)[:20] if isinstance(each, tuple) else "",
)
def test_names_that_cannot_be(words: tuple[str, ...], said: str, refused: Refused) -> None:
    place = () if "--socket" in words or "--bind" in words else ("--socket", "s")
    assert refused("ram:1M", *words, *place) == f"tapdisk: {said}\n"


def test_several_images_of_which_one_cannot_name_its_export(
    tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / RAW).write_bytes(bytes(512))
    line = refused("ram:1M", RAW, "--socket", "s")
    assert line.startswith(
        "tapdisk: d\\xff\\xfe.img: its name is not UTF-8, as an export's has to be"
    )
    assert "--export" in line


@pytest.mark.parametrize("size", [107, 108, 109, 5000])
def test_a_socket_has_so_long_a_path_as_the_kernel_takes(
    size: int, tmp_path: Path, refused: Refused
) -> None:
    where = f"{tmp_path}/".ljust(size, "s")
    if size <= 107:
        with served("ram:1M", "--socket", where) as server, server.client() as client:
            assert client.size == MIB
        return
    line = refused("ram:1M", "--socket", where)
    assert line.endswith(f"a Unix socket's path has 107 bytes at most, and this one {size}\n")


def test_a_socket_that_only_a_relative_path_reaches_is_said_to_be_one(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with served("ram:1M", "--socket", "s", cwd=deep, quiet=False) as server:
        assert server.uri.endswith("/s")
    assert server.messages == ["tapdisk: s: clients can use this socket by its relative path only"]


def test_the_longest_name_of_an_export_is_found(tmp_path: Path) -> None:
    name = "€" * 1365 + "e"
    words = ("--socket", "s", "--export", name)
    with served("ram:1M", *words, cwd=tmp_path) as server, server.client() as client:
        assert client.size == MIB


def test_a_path_with_a_nul_byte_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a path"):
        nbd_server(["ram:1M"], UnixAddress(f"{tmp_path}/a\0b"))
    with pytest.raises(UsageError, match="NUL"):
        nbd_server(["ram:1M"], UnixAddress(f"{tmp_path}/s"), names=["a\0b"])
    assert os.listdir(tmp_path) == []


def test_a_server_whose_address_nobody_can_be_told_does_not_run(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [TAPDISK, "serve", "ram:1M", "--socket", "s"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "tapdisk: standard output: No space left on device\n",
    )
    assert os.listdir(tmp_path) == []
