"""`tapdisk serve --overlay`: clients write into views, and the images stay as they are."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from nbd_client import (
    ENOSPC,
    EPERM,
    IS_READ_ONLY,
    MULTI_CONN,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Client,
    NbdError,
)
from served import TAPDISK, served
from servedhere import running

import tapcore
from tapcore import NbdServer, Overlay, UnixAddress, UsageError, nbd_server
from tapcore.nbd import views
from tapcore.nbd.views import Views

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "base.qcow2"
    tapcore.create_image(f"qcow2:{path}", 4 * MIB)
    with tapcore.open(f"qcow2:{path}", readonly=False) as disk:
        disk.pwrite(0, b"b" * MIB)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before


def serving(*images: object, names: tuple[str, ...] = (), **overlay: Any) -> NbdServer:
    where = UnixAddress(str(Path(str(images[0])).parent / "s"))
    named = [str(each) for each in images]
    return nbd_server(named, where, names=names, overlay=Overlay(**overlay))


def opened(server: NbdServer) -> list[str]:
    """The views that are open."""
    found = server._exports
    assert isinstance(found, Views)
    return [each.export.info.name for each in found._open]


def to(server: NbdServer, export: str) -> Client:
    return Client(server.addresses[0].uri(export))


def test_one_for_each_connection(base: Path) -> None:
    with running(serving(base)) as server, ExitStack() as stack:
        one, other = (stack.enter_context(to(server, "")) for _ in range(2))
        assert not (one.flags & (MULTI_CONN | IS_READ_ONLY))
        one.write(0, b"1" * 4096)
        other.write(2048, b"2" * 4096)
        assert one.read(0, 8192) == b"1" * 4096 + b"b" * 4096
        assert other.read(0, 8192) == b"b" * 2048 + b"2" * 4096 + b"b" * 2048
        one.call(WRITE_ZEROES, 0, 64 * KIB)
        one.call(TRIM, 512 * KIB, 64 * KIB)
        assert one.read(0, 64 * KIB) == one.read(512 * KIB, 64 * KIB) == bytes(64 * KIB)
        assert opened(server) == ["", ""]
        one.close()
        while len(opened(server)) > 1:
            other.read(0, 1)
        with to(server, "") as again:
            assert again.read(0, 4096) == b"b" * 4096


def test_one_for_each_name(base: Path) -> None:
    with (
        running(serving(base, names=("disk",), named=True)) as server,
        to(server, "disk@a") as one,
        to(server, "disk@b") as other,
        to(server, "disk") as plain,
    ):
        assert one.flags & MULTI_CONN
        assert plain.flags & IS_READ_ONLY
        one.write(0, b"1" * 4096)
        with to(server, "disk@a") as beside:
            assert beside.read(0, 4096) == b"1" * 4096
        assert other.read(0, 4096) == plain.read(0, 4096) == b"b" * 4096
        one.close()
        with to(server, "disk@a") as again:
            assert again.read(0, 4096) == b"1" * 4096
        with pytest.raises(NbdError, match=str(EPERM)):
            plain.write(0, b"x")
        assert opened(server) == ["disk@a", "disk@b"]
        assert [info.name for info in server._exports.list_exports()] == [
            "disk",
            "disk@a",
            "disk@b",
        ]
        for name in ("disk@", "other@a", "disk@" + "x" * (views.MAX_VIEW_NAME + 1)):
            with pytest.raises(NbdError):
                to(server, name)


def test_several_images_and_a_chain(base: Path) -> None:
    child = base.with_name("child.qcow2")
    tapcore.create_image(f"qcow2:{child}", None, parent="qcow2:base.qcow2")
    with (
        running(serving(base, child, named=True)) as server,
        to(server, "base.qcow2@x") as one,
        to(server, "child.qcow2@x") as other,
    ):
        one.write(0, b"1" * 512)
        other.write(512, b"2" * 512)
        assert one.read(0, 1024) == b"1" * 512 + b"b" * 512
        assert other.read(0, 1024) == b"b" * 512 + b"2" * 512


def test_a_name_that_looks_like_a_view(base: Path) -> None:
    with pytest.raises(UsageError, match="has an @ in its name"):
        serving(base, names=("a@b",), named=True)
    with running(serving(base, names=("a@b",))) as server, to(server, "a@b") as client:
        client.write(0, b"x")


def test_a_full_view_is_its_own_clients_trouble(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        running(serving(base, limit=MIB)) as server,
        to(server, "") as greedy,
        to(server, "") as modest,
    ):
        greedy.write(0, b"g" * MIB)
        for _ in range(3):
            with pytest.raises(NbdError) as caught:
                greedy.write(2 * MIB, b"g" * 4096)
            assert caught.value.code == ENOSPC
        greedy.write(4096, b"h" * 4096)
        modest.write(0, b"m" * MIB)
        assert greedy.read(4096, 4096) == b"h" * 4096
    said = [each.getMessage() for each in caplog.records if "full" in each.getMessage()]
    assert len(said) == 1


def test_there_are_so_many_views_at_most(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(views, "MOST_VIEWS", 2)
    with (
        running(serving(base, named=True)) as server,
        to(server, "@a") as one,
        to(server, "@b"),
        to(server, "@a"),
    ):
        with pytest.raises(NbdError):
            to(server, "@c")
        assert one.read(0, 1) == b"b"
    assert "there are 2 views already" in caplog.text


def test_no_room_for_a_view_is_a_line(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with running(serving(base)) as server, to(server, "") as there:
        there.read(0, 1)  # its view is there
        monkeypatch.setattr(os, "memfd_create", refuse)
        with to(server, "") as client, pytest.raises((EOFError, OSError)):
            client.read(0, 1)
        assert there.read(0, 1) == b"b"
    assert "there can be no view more: Too many open files" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("named", [False, True])
def test_kept_views(named: bool, base: Path) -> None:
    """Of those that were written to; what a client calls them leads nowhere."""
    kept = base.parent / "kept"
    kept.mkdir()
    with running(serving(base, named=named, keep=("qcow2", str(kept)))) as server:
        for name in ("@../../x", "@ü", "@never") if named else ("", "", ""):
            with to(server, name) as client:
                if name != "@never":
                    client.write(MIB - 100, b"w" * 1000)
    names = sorted(path.name for path in kept.iterdir())
    if named:
        assert names == ["@%2E%2E%2F%2E%2E%2Fx.qcow2", "@%C3%BC.qcow2"]
    else:
        assert names == ["view-2.qcow2", "view-3.qcow2", "view.qcow2"]
    for name in names:
        with tapcore.open(f"qcow2:{kept / name}", readonly=True, parents=base.parent) as disk:
            assert disk.pread(MIB - 200, length=1200) == b"b" * 100 + b"w" * 1000 + bytes(100)


def test_a_view_that_cannot_be_kept_ends_in_an_error(base: Path) -> None:
    kept = base.parent / "kept"
    kept.mkdir()
    server = serving(base, keep=("raw", str(kept)))

    def serve() -> None:
        with running(server), to(server, "") as client:
            client.write(0, b"x")
            kept.rmdir()

    with pytest.raises(tapcore.TapError, match="No such file"):
        serve()
    assert not kept.exists()


@pytest.mark.parametrize(
    ("keep", "said"),
    [(("qcow2", "none"), "is no directory"), (("ram", "."), "exists only while it is open")],
)
def test_keeping_that_cannot_be_is_known_before(
    keep: tuple[str, str], said: str, base: Path
) -> None:
    with pytest.raises(tapcore.TapError, match=said):
        serving(base, keep=keep)


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(base: Path) -> None:
    with running(serving(base)) as server, to(server, "") as there:
        there.read(0, 1)  # its view is there
        fds = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with to(server, "") as client:
                client.send(WRITE, 0, payload=b"w" * MIB)
                client.send(READ, 0, MIB)
        while len(opened(server)) > 1 or len(os.listdir("/proc/self/fd")) > fds:
            there.read(0, 1)


def test_from_the_command_line(base: Path) -> None:
    kept = base.parent / "kept"
    kept.mkdir()
    # without a word of its own it is a view for each connection
    words = ["--socket", "s", "--overlay", "--overlay-dir", ".", "--keep", "raw:kept"]
    with served(base, *words, "--overlay-limit", "2M", cwd=base.parent) as server:
        uri = server.uri.replace("socket=s", f"socket={base.parent}/s")
        with Client(uri) as client:
            client.write(0, b"c" * MIB)
            with pytest.raises(NbdError):
                client.write(MIB, b"c" * 2 * MIB)
        server.until(lambda: list(kept.iterdir()))
        server.process.terminate()
        assert server.process.wait(60) == 0
        server.stopped = True
    assert (kept / "view.img").read_bytes()[:MIB] == b"c" * MIB


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "qcow2:."], "need --overlay"),
        (["--overlay", "name", "--read-only"], "--overlay is for writing"),
        (["--overlay", "name", "--keep", "kept"], "--keep needs HANDLE:DIR"),
        (["--overlay", "both"], "is not one of"),
    ],
)
def test_words_that_do_not_go_together(words: list[str], said: str) -> None:
    done = subprocess.run(
        [TAPDISK, "serve", "ram:1M", "--socket", "/nowhere/s", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
