"""The daemon as a process, with real disk processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from commandline import tapdisk
from daemons import TAPDISK, RunningDaemon, daemon_in, until
from nbd_client import IS_READ_ONLY, Client

import tapcore
from docpages import DOCS
from tapcore import TapError, UnknownHandleError
from tapcore.cli.completion import LINE, complete
from tapcore.cli.group import tapdisk as group
from tapcore.daemon.client import DaemonClient
from tapcore.testkit import ThrowAway
from tapcore.tools.picture import DATA, HOLE
from tapcore.tools.sketch import Sketch

MIB = 1 << 20
PAGE = (DOCS / "daemon.md").read_text().partition("<!-- fields: list -->")[2].partition("\n\n")[0]
FIELDS = {
    name for row in PAGE.splitlines()[3:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
}


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


def test_the_map_of_a_disk_comes_from_its_process(client: DaemonClient) -> None:
    tapcore.create_image("qcow2:d.qcow2", 8 * MIB)
    disk = client.attach("d.qcow2", name="vm1")
    with Client(disk["uri"]) as guest:
        guest.write(MIB, b"x" * MIB)
        (row,) = Sketch.from_dict(client.call("map", name="vm1")).rows
        assert row.size == 8 * MIB
        assert row.totals == {HOLE: 7 * MIB, DATA: MIB}
        client.call("pause", name="vm1")
        with pytest.raises(TapError, match="is paused"):
            client.call("map", name="vm1")
        client.call("resume-io", name="vm1")
    until(lambda: client.disks()[0]["clients"] == 0)


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


def test_a_process_that_is_asked_to_end_ends_cleanly_and_comes_back(client: DaemonClient) -> None:
    tapcore.create_image("qcow2:d.qcow2", MIB)
    disk = client.attach("d.qcow2")
    client.log_level("info", "d")
    with Client(disk["uri"]) as guest:
        guest.write(0, b"x" * 4096)
        os.kill(disk["pid"], signal.SIGTERM)
        assert guest.sock.recv(1) == b""
    with Client(disk["uri"]) as guest:
        assert guest.read(0, 4096) == b"x" * 4096
    (row,) = until(lambda: [row for row in client.disks() if row["restarts"]])
    assert row["state"] == "serving"


def test_the_last_lines_of_a_dead_process_are_told(
    running: tuple[RunningDaemon, DaemonClient], client: DaemonClient
) -> None:
    daemon, _ = running
    disk = client.attach("ram:1M", name="a")
    client.log_level("info", "a")
    with Client(disk["uri"]) as guest:
        guest.sock.sendall(bytes(64))  # no request begins so
        assert guest.sock.recv(1) == b""
    os.kill(disk["pid"], signal.SIGKILL)
    (row,) = until(lambda: [row for row in client.disks() if row["restarts"]])
    assert "client" in row["last_log"][-1]
    assert f"a: its process {disk['pid']} was ended by SIGKILL" in daemon.log
    assert "a: its log: " in daemon.log


def test_whoever_uses_it_a_disk_can_be_detached_by_force(client: DaemonClient) -> None:
    tapcore.create_image("qcow2:d.qcow2", MIB)
    disk = client.attach("d.qcow2")
    with Client(disk["uri"]) as guest:
        guest.write(0, b"x" * 4096)
        client.detach("d", force=True)
        assert guest.sock.recv(1) == b""
    assert not runs(disk["pid"])
    with tapcore.open("d.qcow2", readonly=True) as again:
        assert again.pread(0, length=4096) == b"x" * 4096
    client.attach("d.qcow2")  # its name is free


def test_a_disk_is_served_where_and_how_it_is_asked_for(
    client: DaemonClient, tmp_path: Path
) -> None:
    Path("d.img").write_bytes(b"x" * MIB)
    trace = "trace:file=/dev/null"
    disk = client.attach("aio:d.img", name="a", nbd="s", readonly=True, filters=[trace])
    assert disk["uri"] == f"nbd+unix:///a?socket={tmp_path / 's'}"
    assert os.stat("s").st_mode & 0o777 == 0o600
    with Client(disk["uri"]) as guest:
        assert guest.flags & IS_READ_ONLY
        assert guest.read(0, 512) == b"x" * 512
    other = client.attach("aio:d.img", name="b", nbd="127.0.0.1:0", readonly=True)
    with Client(other["uri"]) as guest:
        assert guest.read(0, 512) == b"x" * 512
    with pytest.raises(TapError, match="Address already in use"):
        client.attach("ram:1M", name="c", nbd="s")
    client.detach("a")
    assert not os.path.exists("s")


def test_names_are_taken_once_and_made_of_the_images(client: DaemonClient) -> None:
    Path("d.img").write_bytes(bytes(MIB))
    names = [client.attach("d.img", readonly=True)["name"] for _ in range(3)]
    assert names == ["d", "d-2", "d-3"]
    with pytest.raises(FileExistsError, match="is attached already"):
        client.attach("d.img", name="d")
    for wrong in ("../d", "@ram", "a/b"):
        with pytest.raises(tapcore.UsageError):
            client.attach("d.img", name=wrong)
    with pytest.raises(FileNotFoundError, match="no disk of this name"):
        client.detach("e")
    with pytest.raises(FileNotFoundError, match="is attached, but 'd' is"):
        client.detach("aio:./d.img")


def test_the_control_socket_is_for_its_user_alone(
    running: tuple[RunningDaemon, DaemonClient],
) -> None:
    daemon, _ = running
    assert os.stat(daemon.run_dir / "control.sock").st_mode & 0o777 == 0o600
    assert os.stat(daemon.run_dir).st_mode & 0o777 == 0o700
    out, err = tapdisk("daemon", "--run-dir", daemon.run_dir, status=1)
    assert out == ""
    assert "another daemon has this directory" in err


# ---- the commands ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["gone.qcow2"],
        ["odd:x"],
        ["sync:."],
        ["archive.img"],
        ["qcow2:short.img"],
        ["locked.qcow2"],
        ["child.qcow2"],
        ["child.qcow2", "--parents", "none"],
        ["ram:1M", "--filter", "nosuch"],
        ["ram:1M", "--key-file", "gone.key"],
    ],
    ids=" ".join,
)
def test_attach_fails_with_the_line_of_serve(
    words: list[str], running: tuple[RunningDaemon, DaemonClient], client: DaemonClient
) -> None:
    (Path("elsewhere")).mkdir()
    tapcore.create_image("qcow2:elsewhere/parent.qcow2", MIB)
    tapcore.create_image("qcow2:child.qcow2", parent="qcow2:elsewhere/parent.qcow2")
    os.rename("elsewhere/parent.qcow2", "elsewhere/gone.qcow2")
    Path("archive.img").write_bytes(b"PK\3\4" + bytes(4096))
    Path("short.img").write_bytes(b"QFI\xfb\0\0\0\3")
    tapcore.create_image("qcow2:locked.qcow2", MIB)
    with tapcore.open("qcow2:locked.qcow2", readonly=False):
        _, served = tapdisk("serve", *words, "--socket", "s", status=1)
        out, err = tapdisk("attach", *words, "--run-dir", running[0].run_dir, status=1)
    assert out == ""
    # who has it is this process itself for one, and another for the other
    assert err.partition("in use by")[0] == served.partition("in use by")[0]
    assert client.disks() == []


def test_the_commands_say_what_the_client_says(
    running: tuple[RunningDaemon, DaemonClient], client: DaemonClient
) -> None:
    where = ("--run-dir", running[0].run_dir)
    assert tapdisk("list", *where, status=0)[0] == "no disk is attached\n"
    assert tapdisk("stats", *where, status=0)[0] == "no disk is served\n"
    uri, _ = tapdisk("attach", "ram:1M", "--name", "vm1", *where, status=0)
    (row,) = client.disks()
    assert {*row} == FIELDS
    assert uri == row["uri"] + "\n"
    header, shown = tapdisk("list", *where, status=0)[0].splitlines()
    assert header.split() == ["NAME", "STATE", "HANDLE", "PID", "CLIENTS", "IMAGE", "URI"]
    assert shown.split() == ["vm1", "serving", "ram", str(row["pid"]), "0", "1M", row["uri"]]
    assert json.loads(tapdisk("list", "--json", *where, status=0)[0]) == [row]
    (stats,) = json.loads(tapdisk("stats", "vm1", "--json", *where, status=0)[0])
    assert stats["name"] == "vm1"
    assert tapdisk("log-level", "warning", "vm1", *where, status=0) == ("", "")
    line = ["tapdisk", "detach", "--run-dir", str(running[0].run_dir), "v"]
    assert complete(group, {LINE: " ".join(line)}).startswith("plain\tvm1\t")
    assert tapdisk("detach", "vm1", *where, status=0) == ("", "")
    assert tapdisk("detach", "vm1", *where, status=1)[1] == (
        "tapdisk: vm1: no disk of this name is attached\n"
    )
    gone = Path("nowhere").absolute()
    assert "no daemon runs here" in tapdisk("list", "--run-dir", gone, status=1)[1]


def test_what_users_of_qemu_nbd_type_is_understood(
    running: tuple[RunningDaemon, DaemonClient], client: DaemonClient, tmp_path: Path
) -> None:
    tapcore.create_image("qcow2:d.img", MIB)
    where = ("--run-dir", running[0].run_dir)
    words = ("-f", "qcow2", "d.img", "-k", "s", "-x", "vm1", "--output=json")
    disk = json.loads(tapdisk("attach", *words, *where, status=0)[0])
    assert disk["uri"] == f"nbd+unix:///vm1?socket={tmp_path / 's'}"
    (row,) = json.loads(tapdisk("list", "--output=json", *where, status=0)[0])
    assert (row["name"], row["handle"]) == ("vm1", "qcow2")
    assert client.stats("vm1")


def test_a_daemon_goes_on_in_the_background_and_says_as_what(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon:
        words = ["daemon", "--run-dir", str(daemon.run_dir), "--fork", "--pid-file", "pid"]
        done = subprocess.run(
            [TAPDISK, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == (f"{daemon.run_dir / 'control.sock'}\n", "")
        pid = int((tmp_path / "pid").read_text())
        with daemon.client() as client:
            assert client.call("version")["pid"] == pid
            client.stop()
        until(lambda: not runs(pid))
        assert not (tmp_path / "pid").exists()


def test_a_daemon_that_can_remember_nothing_does_not_begin(tmp_path: Path) -> None:
    words = ("daemon", "--run-dir", tmp_path / "run", "--state", tmp_path / "gone" / "state.json")
    done = subprocess.run(
        [TAPDISK, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("No such file or directory\n")
    assert not (tmp_path / "run" / "control.sock").exists()


# ---- several ---------------------------------------------------------------------------------


def test_a_process_that_dies_is_its_own_disks_matter(client: DaemonClient) -> None:
    handles = ("aio", "sync", "qcow", "vmdk", "vdi", "vhd", "vhdx", "qcow2")
    for handle in handles:
        tapcore.create_image(f"{handle}:{handle}.disk", MIB)
    disks = {each: client.attach(f"{each}:{each}.disk", name=each) for each in handles}
    with ExitStack() as stack:
        guests = {each: stack.enter_context(Client(disks[each]["uri"])) for each in handles}
        for number, guest in enumerate(guests.values()):
            guest.write(0, bytes([number]) * 4096)
            guest.flush()
        os.kill(disks["qcow2"]["pid"], signal.SIGKILL)
        for number, handle in enumerate(handles[:-1]):
            guests[handle].write(4096, bytes([number]) * 4096)
            assert guests[handle].read(0, 8192) == bytes([number]) * 8192
        assert guests["qcow2"].sock.recv(1) == b""
        again = stack.enter_context(Client(disks["qcow2"]["uri"]))
        assert again.read(0, 4096) == bytes([7]) * 4096
        until(lambda: {row["state"] for row in client.disks()} == {"serving"})
        rows = {row["name"]: row for row in client.disks()}
        assert {each: rows[each]["restarts"] for each in handles} == {
            **dict.fromkeys(handles, 0),
            "qcow2": 1,
        }
        for handle in handles[:-1]:
            assert rows[handle]["pid"] == disks[handle]["pid"]


# ---- drivers ---------------------------------------------------------------------------------


def test_a_new_driver_is_found_while_disks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "x").write_bytes(bytes(MIB))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(site))
    with daemon_in(tmp_path) as daemon, daemon.start() as client:
        before = client.attach("ram:1M", name="a")
        with pytest.raises(UnknownHandleError):
            client.attach("new:x", name="b")
        ThrowAway(site).install("new", "new_driver:New", {"new_driver.py": NEW_DRIVER})
        found = client.reload()
        assert (found["added"], found["removed"]) == (["new"], [])
        with Client(client.attach("new:x", name="b", readonly=True)["uri"]) as guest:
            assert guest.read(0, 512) == b"n" * 512
        assert client.disks()[0]["pid"] == before["pid"]
        shutil.rmtree(next(site.glob("*.dist-info")))
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: not _attached(client, "new:x"))


def _attached(client: DaemonClient, image: str) -> bool:
    """Whether it can be."""
    try:
        client.detach(client.attach(image, name="c", readonly=True)["name"])
    except UnknownHandleError:
        return False
    return True


NEW_DRIVER = """
from tapcore import SimpleDriver

class New(SimpleDriver):
    handle, api = "new", 1

    def open(self):
        self.size = 1 << 20

    def pread(self, offset, length):
        return b"n" * length
"""


# ---- its end, and the next one ---------------------------------------------------------------


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


def test_lost_disks_are_told_of_and_attached_again_when_that_is_wanted(tmp_path: Path) -> None:
    tapcore.create_image(f"qcow2:{tmp_path / 'a.qcow2'}", MIB)
    with daemon_in(tmp_path) as daemon:
        with daemon.start() as client:
            disk = client.attach(tmp_path / "a.qcow2", name="a", nbd=str(tmp_path / "s"))
            client.attach("ram:1M", name="b")
            with Client(disk["uri"]) as guest:
                guest.write(0, b"x" * 512)
                guest.flush()
            pids = {row["pid"] for row in client.disks()}
        daemon.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with daemon.start() as client:
            assert {row["name"]: row["state"] for row in client.disks()} == {
                "a": "lost",
                "b": "lost",
            }
            client.detach("b")
        daemon.kill()
        with daemon.start("--restore") as client:
            with Client(disk["uri"]) as guest:
                assert guest.read(0, 512) == b"x" * 512
            (row,) = client.disks()
            assert (row["name"], row["state"], row["uri"]) == ("a", "serving", disk["uri"])


def test_a_daemon_that_stops_saves_its_disks_or_leaves_them(tmp_path: Path) -> None:
    tapcore.create_image(f"qcow2:{tmp_path / 'd.qcow2'}", MIB)
    with daemon_in(tmp_path) as daemon:
        with daemon.start() as client:
            disk = client.attach(tmp_path / "d.qcow2", name="d")
        with Client(disk["uri"]) as guest:
            tapdisk("daemon", "--stop", "--keep-disks", "--run-dir", daemon.run_dir, status=0)
            assert daemon.process is not None
            assert daemon.process.wait(60) == 0
            guest.write(0, b"x" * 4096)
            with daemon.start() as client:
                assert [row["pid"] for row in client.disks()] == [disk["pid"]]
            tapdisk("daemon", "--stop", "--run-dir", daemon.run_dir, status=0)
            assert daemon.process.wait(60) == 0
            assert guest.sock.recv(1) == b""
        assert not runs(disk["pid"])
        left = {*os.listdir(daemon.run_dir / "nbd"), *os.listdir(daemon.run_dir / "disks")}
        assert left == {"d.log"}
    with tapcore.open(f"{tmp_path / 'd.qcow2'}", readonly=True) as again:
        assert again.pread(0, length=4096) == b"x" * 4096


def test_a_warm_parent_that_dies_is_replaced(
    running: tuple[RunningDaemon, DaemonClient], client: DaemonClient
) -> None:
    daemon, _ = running
    assert daemon.process is not None
    (parent,) = children_called(daemon.process.pid, "tapdisk warm")
    os.kill(parent, signal.SIGKILL)
    pid = daemon.process.pid
    until(lambda: children_called(pid, "tapdisk warm") not in ([], [parent]))
    client.attach("ram:1M", name="a")


def children_called(pid: int, name: str) -> list[int]:
    """Children of a process that have a name."""
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [each for each in found if called(each) == name]


def called(pid: int) -> str:
    """The name of a process; empty: it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def runs(pid: int) -> bool:
    """Whether a process does; one that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_image_that_never_opens_keeps_nobody_else_and_can_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = NEW_DRIVER.replace("self.size = 1 << 20", "import os; os.read(os.pipe()[0], 1)")
    ThrowAway(tmp_path / "site").install("new", "new_driver:New", {"new_driver.py": source})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "x").write_bytes(bytes(MIB))
    errors: list[TapError] = []

    def attach() -> None:
        with daemon.client() as other, pytest.raises(TapError) as found:
            other.attach(f"new:{tmp_path / 'x'}", name="stuck", readonly=True)
        errors.append(found.value)

    with daemon_in(tmp_path) as daemon, daemon.start() as client:
        waiting = threading.Thread(target=attach)
        waiting.start()
        row = until(lambda: [each for each in client.disks() if each["pid"]])[0]
        assert row["state"] == "starting"
        client.attach("ram:1M", name="a")
        with pytest.raises(TapError, match="stuck: is starting"):
            client.detach("stuck")
        client.detach("stuck", force=True)
        waiting.join(60)
        assert [str(each) for each in errors] == ["stuck: was detached meanwhile"]
        until(lambda: not runs(row["pid"]))
        assert [each["name"] for each in client.disks()] == ["a"]
