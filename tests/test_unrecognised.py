"""A text file that is served as a disk: one line says so. What may be a disk is served without."""

from pathlib import Path
from typing import Any

import pytest
from commandline import tapdisk
from daemons import daemon_in

from tapcore.cli.commands import attach
from tapcore.interface.registry import default_registry
from tapcore.nbd.listening import UnixAddress
from tapcore.tools.serve import nbd_server
from tapcore.tools.unrecognised import warn_of_unrecognised

TEXT = b"root:x:0:0:root:/root:/bin/bash\n" * 100
MBR = bytearray(1024)
MBR[446:462] = bytes(4) + b"\x83" + bytes(3) + b"\1\0\0\0\1\0\0\0"
MBR[510:512] = b"\x55\xaa"


@pytest.mark.parametrize(
    ("name", "content", "handle", "lines"),
    [
        ("passwd", TEXT, "aio", 1),
        ("raw:passwd", TEXT, "aio", 0),
        ("passwd.img", TEXT, "aio", 0),
        ("passwd", TEXT, "qcow2", 0),
        ("new", bytes(4096), "aio", 0),
        ("disk", bytes(MBR), "sync", 0),
        ("gone", None, "aio", 0),
    ],
)
def test_who_is_warned_of(
    name: str,
    content: bytes | None,
    handle: str,
    lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name.removeprefix("raw:")).write_bytes(content)
    warn_of_unrecognised(name, handle, default_registry())
    assert len(caplog.records) == lines
    assert not lines or "no format that is known here" in caplog.text


def test_a_server_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "passwd").write_bytes(TEXT)
    server = nbd_server([str(tmp_path / "passwd")], UnixAddress(str(tmp_path / "socket")))
    server.stop()
    server.run()
    assert [each.levelname for each in caplog.records] == ["WARNING"]


def test_attach_warns_where_the_user_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None: ...

        def attach(self, image: str, **_: object) -> dict[str, Any]:
            return {"uri": "nbd+unix:///?socket=s", "unrecognised": True}

    monkeypatch.setattr(attach, "daemon_client", lambda _: Client())
    (tmp_path / "passwd").write_bytes(TEXT)
    out, err = tapdisk("attach", tmp_path / "passwd", status=0)
    assert out == "nbd+unix:///?socket=s\n"
    assert (err.count("\n"), "no format" in err) == (1, True)


def test_the_daemon_knows_of_it(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_bytes(TEXT)
    (tmp_path / "new").write_bytes(bytes(4096))
    with daemon_in(tmp_path) as daemon, daemon.start() as client:
        assert client.attach(tmp_path / "passwd")["unrecognised"] is True
        assert client.attach(tmp_path / "new")["unrecognised"] is False
