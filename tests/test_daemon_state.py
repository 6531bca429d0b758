"""The run directory and what a daemon remembers, whatever became of the files."""

import json
import os
from pathlib import Path

import pytest

from tapcore import UsageError
from tapcore.daemon.daemonverbs import DAEMON_VERBS
from tapcore.daemon.rundir import RunDirectory, check_name, default_run_directory
from tapcore.daemon.spec import DiskSpec, default_name
from tapcore.daemon.state import Remembered, StateFile
from tapcore.nbd.listening import TcpAddress, UnixAddress


def test_only_one_daemon_has_a_directory(tmp_path: Path) -> None:
    first, second = RunDirectory(str(tmp_path / "run")), RunDirectory(str(tmp_path / "run"))
    first.take()
    assert [oct(os.stat(tmp_path / "run" / each).st_mode) for each in (".", "disks", "nbd")] == [
        "0o40700"
    ] * 3
    with pytest.raises(UsageError, match=rf"another daemon .* \(process {os.getpid()}\)"):
        second.take()
    first.leave()
    second.take()
    second.leave()


def test_a_directory_that_others_may_enter_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    place = RunDirectory(str(tmp_path / "run"))
    place.take()
    assert os.stat(tmp_path / "run").st_mode & 0o777 == 0o700
    place.leave()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 65534, 65534)
    with pytest.raises(UsageError, match="another user"):
        RunDirectory(str(tmp_path / "run")).take()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is not a directory"):
        RunDirectory(str(tmp_path / "run")).take()


def test_where_sockets_lie_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("TAPCORE_RUN_DIR", raising=False)
    assert default_run_directory() == "/run/tapcore"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert default_run_directory() == "/run/user/1000/tapcore"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    with pytest.raises(UsageError, match="--run-dir"):
        default_run_directory()
    monkeypatch.setenv("TAPCORE_RUN_DIR", "/run/others")
    assert default_run_directory() == "/run/others"


# ---- names and places ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vm1", "a", "A.b_c-9", "x" * 64])
def test_names_that_disks_can_have(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "@ram", "-x", "a b", "ä", "a\0", "a\n", "x" * 65]
)
def test_names_that_would_lead_elsewhere(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("qcow2:/vm/disk one.qcow2", "disk-one"),
        ("ram:64M", "64M"),
        ("/vm/.hidden", "hidden"),
        ("/vm/ä", "disk"),
        ("x" * 200, "x" * 56),
        ("/vm/..", "disk"),
    ],
)
def test_a_disk_gets_a_name_from_its_image(image: str, name: str) -> None:
    assert check_name(default_name(image)) == name


@pytest.mark.parametrize(
    ("nbd", "address"),
    [
        ("", UnixAddress("/run/x.sock")),
        ("s", UnixAddress("/home/s")),
        ("/s", UnixAddress("/s")),
        ("10810", TcpAddress("127.0.0.1", 10810)),
        ("0.0.0.0:1", TcpAddress("0.0.0.0", 1)),
        ("[::1]:1", TcpAddress("::1", 1)),
        ("./10810", UnixAddress("/home/./10810")),
    ],
)
def test_where_a_disk_is_served(nbd: str, address: UnixAddress | TcpAddress) -> None:
    assert DiskSpec("i", "a", "/home", nbd).address("/run/x.sock") == address


@pytest.mark.parametrize(
    "spec",
    [
        DiskSpec("", "a"),
        DiskSpec("i\0", "a"),
        DiskSpec("i", "a", "relative"),
        DiskSpec("i", "a", cache="fast"),
        DiskSpec("i", "a", metadata_cache=-1),
    ],
)
def test_a_wish_that_cannot_be_meant(spec: DiskSpec) -> None:
    with pytest.raises(UsageError):
        spec.checked()


def test_a_port_is_a_small_number() -> None:
    with pytest.raises(UsageError):
        DiskSpec("i", "a", nbd="65536").address("")


# ---- state -----------------------------------------------------------------------------------

SPEC = DiskSpec(
    "qcow2:d.qcow2", "vm1", "/vm", filters=("delay",), metadata_cache=1, parents=("any",)
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    state = StateFile(str(tmp_path / "state.json"))
    assert state.read() == []
    rows = [Remembered(SPEC, "vm1"), Remembered(DiskSpec("ram:1M", "b"), "@ram")]
    state.write(rows)
    assert state.read() == rows
    assert os.listdir(tmp_path) == ["state.json"]
    assert os.stat(state.path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"version": 9}', b"[" * 9999])
def test_a_damaged_state_is_kept_beside_and_forgotten(content: bytes, tmp_path: Path) -> None:
    state = StateFile(str(tmp_path / "state.json"))
    Path(state.path).write_bytes(content)
    assert state.read() == []
    assert (tmp_path / "state.json.damaged").read_bytes() == content


@pytest.mark.parametrize(
    "row",
    [
        7,
        None,
        {},
        {"process": "x"},
        {"process": "x", "spec": []},
        {"process": "x", "spec": {"name": "../x", "image": "i"}},
        {"process": "x", "spec": {"name": "x"}},
        {"process": "x", "spec": {"name": "x", "image": 7}},
        {"process": "x", "spec": {"name": "x", "image": "i", "filters": 7}},
        {"process": "x", "spec": {"name": "x", "image": "i", "filters": "ab"}},
        {"process": "x", "spec": {"name": "x", "image": "i", "read_only": "no"}},
        {"process": "x", "spec": {"name": "x", "image": "i", "nbd": 10809}},
        {"process": 7, "spec": {"name": "x", "image": "i"}},
    ],
)
def test_a_disk_that_is_not_understood_is_left_out_alone(row: object, tmp_path: Path) -> None:
    state = StateFile(str(tmp_path / "state.json"))
    good = {"process": "vm1", "spec": SPEC.as_dict(), "of a later version": 1}
    good["spec"]["of a later version"] = 1  # type: ignore[index]
    Path(state.path).write_text(json.dumps({"version": 1, "disks": [row, good]}))
    assert state.read() == [Remembered(SPEC, "vm1")]


def test_a_disk_is_remembered_with_all_that_attach_takes() -> None:
    takes = {each.name for each in DAEMON_VERBS.find("attach").takes}
    assert {*SPEC.as_dict()} == takes
