"""Each live change: what it does, what it refuses, and how the disk goes on where it fails."""

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from livehere import MIB, PAGE, filled, first_page, first_page_of_files, live_here, made
from nbd_client import EIO, READ, WRITE, NbdError

import tapcore
from tapcore import DiskId, ImageLockedError, NotSupportedError, TapError, UsageError
from tapcore.live.serveddisk import ServedDisk
from tapcore.opening.parents import recorded_parent


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- pause ---------------------------------------------------------------------------------------


def test_a_paused_disk_is_another_programs(tmp_path: Path) -> None:
    """Its locks are given up; what that program has written is there afterwards."""
    name = made("qcow2:a.qcow2")
    with live_here(name) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        with pytest.raises(ImageLockedError):
            tapcore.open(name, readonly=False)
        assert here.calls.pause("0")["state"] == "paused"
        waiting = [client.send(READ, at, PAGE) for at in (0, PAGE)]
        with tapcore.open(name, readonly=False) as other:
            assert other.pread(0, length=PAGE) == b"1" * PAGE
            other.pwrite(PAGE, b"2" * PAGE)
        assert here.calls.resume("0")["state"] == "running"
        for cookie, byte, at in zip(waiting, (b"1", b"2"), (0, PAGE), strict=True):
            assert client.answer(cookie).content(at, PAGE) == byte * PAGE
        with pytest.raises(ImageLockedError):
            tapcore.open(name, readonly=False)


def test_twice_is_once_too_often() -> None:
    with live_here(made("qcow2:a.qcow2")) as here:
        with pytest.raises(UsageError, match="is not paused"):
            here.calls.resume("0")
        here.calls.pause("0")
        for again in (here.calls.pause, here.calls.commit):
            with pytest.raises(UsageError, match="is paused; resume-io first"):
                again("0")
        here.calls.resume("0")
        with pytest.raises(UsageError, match="there is no such disk"):
            here.calls.pause("1")


def test_clients_come_and_go_while_it_is_paused() -> None:
    with live_here(made("qcow2:a.qcow2")) as here:
        gone, stays = here.client(), here.client()
        gone.send(WRITE, 0, payload=b"x" * PAGE)
        here.calls.pause("0")
        gone.send(WRITE, 0, payload=b"y" * PAGE)
        gone.close()
        late = here.client()
        waiting = [client.send(READ, PAGE, PAGE) for client in (stays, late)]
        here.calls.resume("0")
        for client, cookie in zip((stays, late), waiting, strict=True):
            assert client.answer(cookie).content(PAGE, PAGE) == bytes(PAGE)
            client.close()


def test_requests_that_come_with_the_handshake_wait_as_others_do() -> None:
    with live_here(made("qcow2:a.qcow2")) as here:
        here.calls.pause("0")
        with here.client() as client:
            cookie = client.send(READ, 0, PAGE)
            here.calls.resume("0")
            assert client.answer(cookie).content(0, PAGE) == bytes(PAGE)


def test_a_server_that_stops_while_a_disk_is_paused(caplog: pytest.LogCaptureFixture) -> None:
    name = made("qcow2:a.qcow2")
    with live_here(name) as here:
        client = here.client()
        client.write(0, b"1" * PAGE)
        here.calls.pause("0")
        client.send(READ, 0, PAGE)
    assert client.at_end()
    client.close()
    assert not caplog.records
    assert first_page(name) == b"1" * PAGE


def test_where_the_images_cannot_be_opened_again_requests_fail_until_they_can() -> None:
    name = made("qcow2:a.qcow2")
    with live_here(name) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        here.calls.pause("0")
        waiting = client.send(READ, 0, PAGE)
        os.rename("a.qcow2", "elsewhere")
        with pytest.raises(FileNotFoundError):
            here.calls.resume("0")
        assert client.answer(waiting).error == EIO
        with pytest.raises(NbdError):
            client.write(0, b"2" * PAGE)
        assert here.calls.state("0")["state"] == "failed"
        client.flush()  # of all that was answered there is nothing that is not on disk
        with pytest.raises(FileNotFoundError):
            here.calls.resume("0")
        os.rename("elsewhere", "a.qcow2")
        here.calls.resume("0")
        assert client.read(0, PAGE) == b"1" * PAGE


def test_a_disk_in_memory_keeps_its_content() -> None:
    with live_here("ram:1M") as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        here.calls.pause("0")
        waiting = client.send(READ, 0, PAGE)
        here.calls.resume("0")
        assert client.answer(waiting).content(0, PAGE) == b"1" * PAGE
        with pytest.raises(NotSupportedError, match="only while it is open"):
            here.calls.snapshot("0", "qcow2:b.qcow2")


def test_a_probed_raw_disk_is_guarded_afterwards_too() -> None:
    Path("a.img").write_bytes(bytes(MIB))
    with live_here("a.img") as here, here.client() as client:
        here.calls.pause("0")
        here.calls.resume("0")
        with pytest.raises(NbdError):
            client.write(0, b"QFI\xfb\0\0\0\3" + bytes(504))
        client.write(0, b"1" * PAGE)


def test_what_a_slow_client_has_not_taken_is_read_out_first() -> None:
    """Replies that lie in the file are not lost with it, nor are they of another file."""
    name = made("qcow2:a.qcow2", 8 * MIB)
    data = random.Random(1).randbytes(8 * MIB)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, data)
    with live_here(name) as here, here.client() as client:
        cookies = [client.send(READ, at, MIB) for at in range(0, 8 * MIB, MIB)]
        here.calls.state("0")  # all of them are asked for
        here.calls.pause("0")
        with tapcore.open(name, readonly=False) as other:
            other.zero(0, length=8 * MIB)
        # what was not taken before the pause is asked afterwards
        answers = []
        here.calls.resume("0")
        for number, cookie in enumerate(cookies):
            content = client.answer(cookie).content(number * MIB, MIB)
            answers.append(content in (data[number * MIB : (number + 1) * MIB], bytes(MIB)))
        assert all(answers)


# ---- snapshot ------------------------------------------------------------------------------------


def test_a_snapshot_keeps_what_there_was() -> None:
    os.mkdir("sub")
    with live_here(made("qcow2:sub/a.qcow2")) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        told = here.calls.snapshot("0", "b.qcow2", options={"cluster_size": "4K"})
        assert told["image"] == here.image("0") == "qcow2:b.qcow2"
        client.write(0, b"2" * PAGE)
        client.flush()
        with pytest.raises(UsageError, match="exists already, and a snapshot"):
            here.calls.snapshot("0", "b.qcow2")
    assert (first_page("qcow2:sub/a.qcow2"), first_page("b.qcow2")) == (b"1" * PAGE, b"2" * PAGE)
    with tapcore.open("b.qcow2") as disk:
        assert recorded_parent(disk.state.disks) == DiskId("sub/a.qcow2", "qcow2")


@pytest.mark.parametrize(
    ("child", "options", "why"),
    [
        ("gone/b.qcow2", {}, "No such file"),
        ("aio:b.img", {}, "has no parents"),
        ("b.qcow2", {"cluster_size": "3"}, "cluster"),
        ("/dev/shm/tapcore-live-test.qcow2", {}, "--parents"),
    ],
)
def test_without_a_child_the_disk_goes_on_as_before(
    child: str, options: dict[str, str], why: str
) -> None:
    with live_here(made("qcow2:a.qcow2")) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        with pytest.raises((TapError, OSError), match=why):
            here.calls.snapshot("0", child, options=options)
        assert not os.path.exists(child.rpartition(":")[2])
        client.write(PAGE, b"2" * PAGE)
        assert client.read(0, 2 * PAGE) == b"1" * PAGE + b"2" * PAGE
        assert (here.image("0"), here.calls.state("0")["state"]) == ("qcow2:a.qcow2", "running")


def test_who_keeps_the_name_hears_it_before_any_request_gets_there() -> None:
    """And where he cannot keep it, there is no other image."""
    heard: list[str] = []
    full = threading.Event()

    def renamed(name: str, image: DiskId) -> Callable[[], bool] | None:
        heard.append(f"{name} {image}")
        assert first_page_of_files(str(image)) == b"1" * PAGE
        if full.is_set():
            raise UsageError("no space for it")
        return None

    with live_here(made("qcow2:a.qcow2"), renamed=renamed) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        here.calls.snapshot("0", "b.qcow2")
        here.calls.commit("0")
        assert [each.rpartition("/")[2] for each in heard] == ["0 qcow2:b.qcow2", "a.qcow2"]
        full.set()
        with pytest.raises(UsageError, match="no space"):
            here.calls.snapshot("0", "c.qcow2")
        assert not os.path.exists("c.qcow2")
        assert here.image("0").endswith("/a.qcow2")
        client.write(0, b"3" * PAGE)
    assert first_page("qcow2:a.qcow2") == b"3" * PAGE


# ---- swap ----------------------------------------------------------------------------------------


def test_another_image_is_served() -> None:
    first, second = filled("qcow2:a.qcow2", b"1"), filled("vdi:b.vdi", b"2")
    with live_here(first) as here, here.client() as client:
        assert client.read(0, PAGE) == b"1" * PAGE
        here.calls.swap("0", "b.vdi")
        assert (client.read(0, PAGE), here.image("0")) == (b"2" * PAGE, second)
        assert first_page(first) == b"1" * PAGE
        here.calls.pause("0")
        assert here.calls.swap("0", first)["state"] == "running"
        assert client.read(0, PAGE) == b"1" * PAGE


@pytest.mark.parametrize("paused", [False, True])
def test_an_image_that_does_not_fit_is_not_served(paused: bool) -> None:
    first = filled("qcow2:a.qcow2", b"1")
    made("qcow2:large.qcow2", 2 * MIB)
    with live_here(first) as here, here.client() as client:
        if paused:
            here.calls.pause("0")
        for image in ("large.qcow2", "gone.qcow2", "ram:1M:x"):
            with pytest.raises((TapError, OSError)):
                here.calls.swap("0", image)
        assert here.calls.state("0")["state"] == ("paused" if paused else "running")
        if paused:
            here.calls.resume("0")
        assert client.read(0, PAGE) == b"1" * PAGE


# ---- resize --------------------------------------------------------------------------------------


def test_another_size_is_seen_by_who_connects_again() -> None:
    with live_here(made("qcow2:a.qcow2")) as here:
        with here.client() as client:
            client.write(0, b"1" * PAGE)
            assert here.calls.resize("0", "+1M")["size"] == 2 * MIB
            assert client.size == MIB
            client.write(MIB, b"2" * PAGE)  # it is there all the same
        with here.client() as client:
            assert client.size == 2 * MIB
            with pytest.raises(UsageError, match="--shrink allows it"):
                here.calls.resize("0", "512K")
            here.calls.resize("0", "512K", shrink=True)
            with pytest.raises(NbdError):
                client.read(MIB, PAGE)
            assert client.read(0, PAGE) == b"1" * PAGE


# ---- other disks, other front ends ---------------------------------------------------------------


def test_the_others_of_a_server_are_served_all_the_time() -> None:
    """Also while one is paused, and while a step of it takes long."""
    with (
        live_here(made("qcow2:a.qcow2"), made("qcow2:b.qcow2")) as here,
        here.client(0) as held,
        here.client(1) as other,
    ):
        here.calls.pause("0")
        waiting = held.send(READ, 0, PAGE)
        for number in range(20):
            other.write(number * PAGE, bytes([number]) * PAGE)
        assert other.read(19 * PAGE, PAGE) == bytes([19]) * PAGE
        here.calls.snapshot("1", "c.qcow2")
        other.write(0, b"x" * PAGE)
        here.calls.commit("1")
        assert other.read(0, PAGE) == b"x" * PAGE
        here.calls.resume("0")
        assert held.answer(waiting).content(0, PAGE) == bytes(PAGE)


def test_what_takes_long_is_done_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are served while an image is being opened."""
    opening, go_on = threading.Event(), threading.Event()
    open_disk = ServedDisk.open.__globals__["open_disk"]

    def slow(*args: Any, **how: Any) -> Any:
        opening.set()
        assert go_on.wait(60)
        return open_disk(*args, **how)

    with live_here(made("qcow2:a.qcow2"), made("qcow2:b.qcow2")) as here, here.client(1) as other:
        here.calls.pause("0")
        monkeypatch.setattr("tapcore.live.serveddisk.open_disk", slow)
        resuming = threading.Thread(target=here.calls.resume, args=("0",))
        resuming.start()
        assert opening.wait(60)
        other.write(0, b"1" * PAGE)
        assert other.read(0, PAGE) == b"1" * PAGE
        go_on.set()
        resuming.join(60)


def test_block_status_is_that_of_the_images_that_there_are() -> None:
    with live_here(made("qcow2:a.qcow2")) as here, here.client() as client:
        client.write(0, b"1" * 65536)
        before = client.call(7, 0, 2 * 65536).runs
        here.calls.swap("0", made("qcow2:b.qcow2"))
        after = client.call(7, 0, 2 * 65536).runs
        assert (before[0], after[0]) == ((65536, 0), (2 * 65536, 3))


def test_a_disk_below_views_stays_as_it_is() -> None:
    views = tapcore.Overlay()
    with (
        live_here(made("qcow2:a.qcow2"), overlay=views) as here,
        pytest.raises(UsageError, match="through views"),
    ):
        here.calls.pause("0")


def test_filters_are_around_each_image() -> None:
    filters = ["delay:read=0.001"]
    with live_here(made("qcow2:a.qcow2"), filters=filters) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        here.calls.snapshot("0", "b.qcow2")
        client.write(PAGE, b"2" * PAGE)
        here.calls.commit("0")
        here.calls.pause("0")
        here.calls.resume("0")
        assert client.read(0, 2 * PAGE) == b"1" * PAGE + b"2" * PAGE
        assert len(here.live.disk("0").engine.disk.disks.options.filters) == 1


def test_nothing_can_be_asked_for_after_the_end() -> None:
    with live_here(made("qcow2:a.qcow2")) as here:
        calls = here.calls
    with pytest.raises(tapcore.ClosedError):
        calls.state("0")
