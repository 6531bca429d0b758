"""The daemon as a process, with real disk processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import RunningDaemon, daemon_in, until
from nbd_client import Client

import tapcore
from tapcore import TapError
from tapcore.daemon.client import DaemonClient

MIB = 1 << 20


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningDaemon, DaemonClient]]:
    with daemon_in(tmp_path_factory.mktemp("daemon")) as daemon, daemon.start() as client:
        yield daemon, client


@pytest.fixture
def client(
    running: tuple[RunningDaemon, DaemonClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DaemonClient]:
    monkeypatch.chdir(tmp_path)
    _, client = running
    yield client
    for disk in client.disks():
        client.detach(disk["name"], force=True)


def test_a_disk_is_attached_used_and_detached(client: DaemonClient) -> None:
    tapcore.create_image("qcow2:d.qcow2", MIB)
    disk = client.attach("d.qcow2", name="vm1")
    assert disk["uri"].startswith("nbd+unix:///vm1?socket=/")
    with Client(disk["uri"]) as guest:
        guest.write(0, b"x" * 4096)
        (row,) = client.disks()
        assert (row["state"], row["clients"], row["handle"]) == ("serving", 1, "qcow2")
        with pytest.raises(TapError, match="a client is connected"):
            client.detach("vm1")
    until(lambda: client.disks()[0]["clients"] == 0)
    client.detach("vm1")
    assert client.disks() == []
    with tapcore.open("d.qcow2", readonly=True) as again:
        assert again.pread(0, length=4096) == b"x" * 4096


def test_an_image_that_cannot_be_opened_is_told_of_as_here(client: DaemonClient) -> None:
    with pytest.raises(FileNotFoundError) as found:
        client.attach("gone.qcow2")
    assert str(found.value) == "gone.qcow2: No such file or directory"
    Path("other.img").write_bytes(b"PK\3\4" + bytes(4096))
    with pytest.raises(tapcore.ImageFormatError):
        client.attach("other.img")
    assert client.disks() == []


def test_a_disk_whose_process_dies_is_served_again(client: DaemonClient) -> None:
    tapcore.create_image("qcow2:d.qcow2", MIB)
    disk = client.attach("d.qcow2")
    with Client(disk["uri"]) as guest:
        guest.write(0, b"x" * 4096)
        guest.flush()
    os.kill(disk["pid"], signal.SIGKILL)
    with Client(disk["uri"]) as guest:  # it waits until somebody is there again
        assert guest.read(0, 4096) == b"x" * 4096
    row = until(lambda: [row for row in client.disks() if row["state"] == "serving"])[0]
    assert row["restarts"] == 1
    assert row["pid"] != disk["pid"]


def test_disks_in_memory_share_a_process(client: DaemonClient) -> None:
    first, second = client.attach("ram:1M", name="a"), client.attach("ram:1M", name="b")
    assert first["pid"] == second["pid"]
    client.detach("a")
    with Client(second["uri"]) as guest:
        assert guest.read(0, 512) == bytes(512)


def test_disks_outlive_a_daemon_and_the_next_one_finds_them(tmp_path: Path) -> None:
    (tmp_path / "d.img").write_bytes(bytes(MIB))
    with daemon_in(tmp_path) as daemon:
        with daemon.start() as client:
            disk = client.attach(tmp_path / "d.img", name="d")
        with Client(disk["uri"]) as guest:
            daemon.kill()
            guest.write(0, b"x" * 512)
            with daemon.start() as client:
                (row,) = client.disks()
                assert (row["pid"], row["state"]) == (disk["pid"], "serving")
                guest.flush()
                os.kill(disk["pid"], signal.SIGKILL)
                with Client(disk["uri"]) as other:
                    assert other.read(0, 512) == b"x" * 512
        assert daemon.end() == 0
        assert not list((daemon.run_dir / "disks").glob("*.sock"))
