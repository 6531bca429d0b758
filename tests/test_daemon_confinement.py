"""The disk processes of a daemon: confined, unless somebody does not want that."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aims import aims, done, kept_from, tried
from daemons import RunningDaemon, daemon_in
from drivers import hostile
from nbd_client import Client

from tapcore.daemon.client import DaemonClient
from tapcore.process.confinement import landlock
from tapcore.testkit import ThrowAway

MIB = 1 << 20
FILES = ["disk.img", "other", "unwanted", "useless"]

pytestmark = pytest.mark.skipif(
    landlock.version() < 6, reason="the kernel has no Landlock that knows signals"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return image_in(tmp_path / "images")


def image_in(where: Path) -> Path:
    """An image, and files beside it that are no matter of its process."""
    where.mkdir()
    for name in FILES:
        (where / name).write_bytes(bytes(MIB))
    return where / "disk.img"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """In which the hostile drivers are installed; not started."""
    folder = tmp_path_factory.mktemp("daemon")
    source = {"hostile_driver.py": Path(hostile.__file__).read_text()}
    site = ThrowAway(folder / "site")
    site.install("hostile", "hostile_driver:driver", source)
    site.install("crowd", "hostile_driver:crowd", source)
    with pytest.MonkeyPatch.context() as patch, aims() as found, daemon_in(folder) as daemon:
        patch.setenv("PYTHONPATH", str(site.site))
        patch.setenv("HOSTILE", found)
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: RunningDaemon) -> Iterator[DaemonClient]:
    """Of the daemon, which confines its disks' processes."""
    with daemon.start() as client:
        yield client
    assert daemon.end() == 0


def results(client: DaemonClient, image: Path) -> dict[str, str]:
    disk = client.attach(f"hostile:{image}", name="d")
    with Client(disk["uri"]) as guest:
        found = tried(guest)
    client.detach("d", force=True)
    return found


def test_a_disk_is_all_that_its_process_reaches(client: DaemonClient, image: Path) -> None:
    found = results(client, image)
    assert (done(found), kept_from(found)) == (set(), {})
    assert sorted(os.listdir(image.parent)) == sorted(FILES)
    assert (image.parent / "other").read_bytes() == bytes(MIB)


def test_nor_does_it_reach_more_after_each_kind_of_change(
    client: DaemonClient, image: Path, tmp_path: Path
) -> None:
    second = image_in(tmp_path / "elsewhere")
    disk = client.attach(f"hostile:{image}", name="d")
    with Client(disk["uri"]) as guest:
        client.pause("d")
        client.resume_io("d")
        assert done(tried(guest)) == set()
        client.swap("d", f"hostile:{second}")
        assert done(tried(guest)) == set()
    client.detach("d", force=True)
    assert [sorted(os.listdir(each.parent)) for each in (image, second)] == [sorted(FILES)] * 2


def test_disks_of_one_process_come_from_anywhere_and_it_reaches_nothing_else(
    client: DaemonClient, daemon: RunningDaemon, image: Path
) -> None:
    second_image = daemon.cwd / "disk.img"
    second_image.write_bytes(bytes(MIB))
    first = client.attach(f"crowd:{image}", name="a")
    second = client.attach(f"crowd:{second_image}", name="b")
    assert first["pid"] == second["pid"]
    with Client(first["uri"]) as guest, Client(second["uri"]) as other:
        assert other.read(512 * len(hostile.ATTACKS), 512)
        found = tried(guest)
    assert (done(found), kept_from(found)) == (set(), {})
    for name in "ab":
        client.detach(name, force=True)


def test_without_confinement_they_reach_what_their_user_does(
    daemon: RunningDaemon, image: Path, tmp_path: Path
) -> None:
    with daemon_in(tmp_path, "--no-confinement") as other, other.start() as client:
        assert done(results(client, image)) == set(hostile.ATTACKS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_disk_processes_go_on_as_another_user(tmp_path: Path, image: Path) -> None:
    with daemon_in(tmp_path) as daemon, daemon.start("--user", "nobody") as client:
        assert client.attach("ram:1M", name="a")["pid"] == client.attach("ram:1M", name="b")["pid"]
        disk = client.attach(image)
        with Client(disk["uri"]) as guest:
            guest.write(0, b"nobody's" * 64)
        status = Path(f"/proc/{disk['pid']}/status").read_text()
        client.detach(disk["name"], force=True)
    assert re.search(r"^Uid:(\t65534){4}$", status, re.MULTILINE)
    assert image.read_bytes()[:512] == b"nobody's" * 64


def test_the_engine_of_cache_none_is_loaded_before_anybody_is_confined() -> None:
    """Else a live snapshot of such a disk fails: its broker cannot open the library."""
    code = (
        "import sys; from tapcore.daemon.warmup import warm_up; "
        "from tapcore.interface.registry import Registry; warm_up(Registry()); "
        "print('libaio.libaio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
