"""Live changes through the daemon: the disk keeps its clients, and the daemon the image's name."""

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from daemons import RunningDaemon, daemon_in, until
from nbd_client import READ, Client

import tapcore
from tapcore import TapError
from tapcore.cli.group import LazyGroup
from tapcore.daemon.client import DaemonClient
from tapcore.interface.options import CacheMode

MIB = 1 << 20
PAGE = 4096


def image_of(client: DaemonClient) -> str:
    return str(client.disks()[0]["image"]).rpartition("/")[2]


def test_a_disk_goes_through_all_changes_with_one_client(client: DaemonClient) -> None:
    tapcore.create_image("qcow2:a.qcow2", MIB)
    tapcore.create_image("qcow2:c.qcow2", MIB)
    disk = client.attach("a.qcow2", name="vm1")
    with Client(disk["uri"]) as guest:
        guest.write(0, b"1" * PAGE)
        told = client.snapshot_live("vm1", "b.qcow2", options={"cluster_size": "4K"})
        assert (told["state"], image_of(client)) == ("serving", "b.qcow2")
        guest.write(PAGE, b"2" * PAGE)
        assert client.pause("vm1")["state"] == "paused"
        assert client.disks()[0]["state"] == "paused"
        waiting = guest.send(READ, 0, 2 * PAGE)
        with tapcore.open("qcow2:b.qcow2", readonly=False) as other:  # nobody has it open
            assert other.pread(0, length=2 * PAGE) == b"1" * PAGE + b"2" * PAGE
        client.resume_io("vm1")
        assert guest.answer(waiting).content(0, 2 * PAGE) == b"1" * PAGE + b"2" * PAGE
        client.commit_live("vm1")
        until(lambda: client.commit_status("vm1")["phase"] == "done")
        assert image_of(client) == "a.qcow2"
        assert guest.read(0, 2 * PAGE) == b"1" * PAGE + b"2" * PAGE
        assert client.resize_live("vm1", "+1M")["virtual_size"] == 2 * MIB
        with pytest.raises(TapError, match="has 1 MiB"):
            client.swap("vm1", "c.qcow2")
        assert client.resize_live("vm1", "1M", shrink=True)["virtual_size"] == MIB
        client.swap("vm1", "c.qcow2")
        assert guest.read(0, PAGE) == bytes(PAGE)
        assert (image_of(client), client.disks()[0]["clients"]) == ("c.qcow2", 1)


CHANGED: dict[str, CacheMode] = {
    "qcow": "none",
    "qcow2": "none",
    "vdi": "writeback",
    "vhd": "writeback",
    "vhdx": "none",
    "vmdk": "none",
}
"""Formats with children, and how their disks are opened."""


@pytest.mark.parametrize(("handle", "cache"), CHANGED.items())
def test_a_process_that_opens_nothing_changes_its_disk(
    client: DaemonClient, handle: str, cache: CacheMode
) -> None:
    first, child, other = (f"{handle}:{name}.{handle}" for name in "abc")
    for name in (first, other):
        tapcore.create_image(name, MIB)
    disk = client.attach(first, name="d", cache=cache)
    with Client(disk["uri"]) as guest:
        guest.write(0, b"1" * PAGE)
        client.snapshot_live("d", child)
        guest.write(PAGE, b"2" * PAGE)
        client.pause("d")
        client.resume_io("d")
        guest.write(2 * PAGE, b"3" * PAGE)
        client.commit_live("d")
        until(lambda: client.commit_status("d")["phase"] == "done")
        assert guest.read(0, 3 * PAGE) == b"1" * PAGE + b"2" * PAGE + b"3" * PAGE
        client.swap("d", other)
        assert guest.read(0, PAGE) == bytes(PAGE)
    client.detach("d", force=True)
    with tapcore.open(child) as left:
        assert left.pread(0, length=PAGE) == b"1" * PAGE


def test_after_its_process_died_a_disk_is_the_image_that_it_had_become(
    client: DaemonClient,
) -> None:
    tapcore.create_image("qcow2:a.qcow2", MIB)
    disk = client.attach("a.qcow2", name="vm1")
    client.snapshot_live("vm1", "b.qcow2")
    with Client(disk["uri"]) as guest:
        guest.write(0, b"2" * PAGE)
        guest.flush()
    os.kill(disk["pid"], signal.SIGKILL)
    with Client(disk["uri"]) as guest:
        assert guest.read(0, PAGE) == b"2" * PAGE
    assert image_of(client) == "b.qcow2"


def test_a_disk_gets_no_file_that_its_image_names_only_since_it_is_served(
    client: DaemonClient,
) -> None:
    """As a process that was taken over could write it there, and die."""
    Path("other.img").write_bytes(b"other" * 1000)
    tapcore.create_image("qcow2:a.qcow2", MIB)
    options = {"data_file": "other.raw"}
    tapcore.create_image("qcow2:names", MIB, options=options)
    Path("other.raw").unlink()
    disk = client.attach("a.qcow2", name="vm1")
    named = Path("names").read_bytes().replace(b"other.raw", b"other.img")
    Path("a.qcow2").write_bytes(named)
    os.kill(disk["pid"], signal.SIGKILL)
    until(lambda: "which was no part of it" in (client.disks()[0]["reason"] or ""))
    assert Path("other.img").read_bytes() == b"other" * 1000


def test_another_daemon_knows_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tapcore.create_image("qcow2:a.qcow2", MIB)
    with daemon_in(tmp_path) as daemon:
        with daemon.start() as client:
            client.attach("a.qcow2", name="vm1")
            client.snapshot_live("vm1", "b.qcow2")
        daemon.kill()
        with daemon.start() as client:
            assert image_of(client) == "b.qcow2"
            client.commit_live("vm1")
            until(lambda: client.commit_status("vm1")["phase"] == "done")
        state = json.loads((daemon.run_dir / "state.json").read_text())
        assert state["disks"][0]["spec"]["image"].endswith("/a.qcow2")


def test_a_disk_that_gave_up_opening_files_is_not_paused(client: DaemonClient) -> None:
    tapcore.create_image("qcow2:a.qcow2", MIB)
    client.attach("a.qcow2", name="vm1", fixed=True)
    for change in (client.pause, client.commit_live):
        with pytest.raises(TapError, match="with --fixed"):
            change("vm1")
    assert client.resize_live("vm1", "2M")["virtual_size"] == 2 * MIB


def test_the_commands_say_what_they_did(
    running: tuple[RunningDaemon, DaemonClient], client: DaemonClient
) -> None:
    tapcore.create_image("qcow2:a.qcow2", MIB)
    client.attach("a.qcow2", name="vm1")
    daemon, _ = running

    def said(line: str) -> str:
        words = [*line.split(), "--run-dir", str(daemon.run_dir)]
        done = CliRunner().invoke(LazyGroup(), words, catch_exceptions=False)
        return done.stdout.strip().replace(os.getcwd() + "/", "")

    assert said("snapshot-live vm1 qcow2:b.img -o cluster_size=4K") == "vm1 is qcow2:b.img now"
    assert json.loads(said("commit-live vm1 --json"))["phase"] == "done"
    assert said("commit-live vm1 --status").startswith("vm1 is qcow2:a.qcow2 now: ")
    assert said("pause vm1") == "vm1 is paused: qcow2:a.qcow2 is closed"
    assert said("resume-io vm1") == "vm1 goes on with qcow2:a.qcow2"
    tapcore.create_image("qcow2:c.qcow2", MIB)
    assert said("swap vm1 c.qcow2") == "vm1 is qcow2:c.qcow2 now"
    text = "vm1 has 2 MiB now, not 1 MiB; clients see it when they connect again"
    assert said("resize-live vm1 2M") == text
