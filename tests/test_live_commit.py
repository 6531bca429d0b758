"""A child folded into its parent while it is served: what comes of it, and what is refused."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from livehere import MIB, PAGE, LiveHere, filled, first_page, live_here, made
from nbd_client import Client

import tap_qcow2.change.empty
import tapcore
from tapcore import ImageFile, TapError, UsageError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def child_of(parent: str, size: int | None = None, name: str = "qcow2:b.qcow2") -> str:
    tapcore.create_image(name, size, parent=parent)
    return name


def test_the_parent_is_the_disk_afterwards() -> None:
    parent = filled("qcow2:a.qcow2", b"1")
    child = child_of(parent)
    with live_here(child) as here, here.client() as client:
        client.write(PAGE, b"2" * PAGE)
        told = here.calls.commit("0")
        assert (told["phase"], told["emptied"]) == ("done", True)
        assert told["image"] == f"qcow2:{os.path.abspath('a.qcow2')}"
        assert told["copied"] >= PAGE
        assert here.calls.commit_progress("0")["done"] == MIB
        client.write(2 * PAGE, b"3" * PAGE)
        expected = b"1" * PAGE + b"2" * PAGE + b"3" * PAGE
        assert client.read(0, 3 * PAGE) == expected
    with tapcore.open(parent) as disk:
        assert disk.pread(0, length=3 * PAGE) == expected
    with tapcore.open(child) as disk:
        assert disk.pread(0, length=3 * PAGE) == expected


def test_into_a_raw_parent_that_is_smaller() -> None:
    Path("a.img").write_bytes(b"1" * PAGE)
    child = child_of("aio:a.img", 16 * PAGE)
    with live_here(child) as here, here.client() as client:
        client.write(8 * PAGE, b"2" * PAGE)
        assert here.calls.commit("0")["image"].endswith("a.img")
        assert client.read(8 * PAGE, PAGE) == b"2" * PAGE
    data = Path("a.img").read_bytes()
    assert data == b"1" * PAGE + bytes(7 * PAGE) + b"2" * PAGE + bytes(7 * PAGE)


def test_the_parent_is_safe_before_the_child_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child held is nowhere else then."""
    Path("a.img").write_bytes(b"1" * 16 * PAGE)
    child = child_of("aio:a.img", 16 * PAGE)
    steps: list[str] = []
    flush, empty = ImageFile.flush_blocking, tap_qcow2.change.empty.make_empty

    def flushed(file: ImageFile) -> int:
        res = flush(file)
        if file.path.endswith("a.img"):
            steps.append("safe")
        return res

    def emptied(image: Any) -> None:
        steps.append("empty")
        empty(image)

    with live_here(child) as here, here.client() as client:
        client.write(8 * PAGE, b"2" * PAGE)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "flush_blocking", flushed)
            patch.setattr(tap_qcow2.change.empty, "make_empty", emptied)
            here.calls.commit("0")
    assert steps[:2] == ["safe", "empty"]


def test_a_parent_that_cannot_be_written_leaves_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.img").write_bytes(b"1" * 16 * PAGE)
    child = child_of("aio:a.img", 16 * PAGE)
    with live_here(child) as here, here.client() as client:
        client.write(8 * PAGE, b"2" * PAGE)
        with monkeypatch.context() as patch:
            for name in ("write_now", "write_blocking", "write_mapped"):
                _fails_in(patch, name, "a.img")
            with pytest.raises(TapError, match="writing into the parent failed"):
                here.calls.commit("0")
        assert here.calls.commit_progress("0")["phase"] == "failed"
        assert client.read(8 * PAGE, PAGE) == b"2" * PAGE
    with tapcore.open(child) as disk:
        assert disk.pread(8 * PAGE, length=PAGE) == b"2" * PAGE


def _fails_in(patch: pytest.MonkeyPatch, name: str, where: str) -> None:
    real = getattr(ImageFile, name)

    def call(file: ImageFile, *args: Any) -> Any:
        if not file.path.endswith(where):
            return real(file, *args)
        return False if name == "write_mapped" else -errno.EIO

    patch.setattr(ImageFile, name, call)


def refused(here: LiveHere, client: Client, why: str) -> None:
    with pytest.raises((TapError, OSError), match=why):
        here.calls.commit("0")
    client.write(0, b"9" * PAGE)
    assert client.read(0, PAGE) == b"9" * PAGE
    assert here.calls.state("0")["state"] == "running"


def test_no_parent() -> None:
    with live_here(made("qcow2:a.qcow2")) as here, here.client() as client:
        refused(here, client, "has no parent")
        with pytest.raises(UsageError, match="there was no commit"):
            here.calls.commit_progress("0")


def test_a_parent_that_is_larger() -> None:
    child = child_of(made("qcow2:a.qcow2", 2 * MIB), MIB)
    with live_here(child) as here, here.client() as client:
        refused(here, client, "larger than its child")


def test_a_parent_that_others_use() -> None:
    """Another disk of the same server, and another program."""
    parent = made("qcow2:a.qcow2")
    first, second = child_of(parent), child_of(parent, name="qcow2:c.qcow2")
    with live_here(first, second) as here, here.client() as client:
        refused(here, client, "is a parent of '1' too")
    with live_here(first) as here, here.client() as client, tapcore.open(second):
        refused(here, client, "is in use")


def test_a_disk_that_is_only_read() -> None:
    child = child_of(made("qcow2:a.qcow2"))
    with live_here(child, readonly=True) as here:
        for change in (here.calls.commit, lambda name: here.calls.snapshot(name, "c.qcow2")):
            with pytest.raises(UsageError, match="for reading only"):
                change("0")
        here.calls.pause("0")
        here.calls.resume("0")


def test_nothing_else_is_done_to_a_disk_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that waits for a request in its way; it can be asked, and cancelled."""
    monkeypatch.setattr("tapcore.live.commit._few_are_left", lambda folding: False)
    child = child_of(made("qcow2:a.qcow2"))
    with live_here(child) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        assert here.calls.begin_commit("0")["phase"] == "copying"
        for change in (here.calls.pause, here.calls.commit, here.calls.resume):
            with pytest.raises(UsageError, match="commit-live is going on"):
                change("0")
        assert here.calls.commit_progress("0")["phase"] == "copying"
        client.write(PAGE, b"2" * PAGE)
        here.calls.cancel_commit("0")
        while here.calls.state("0")["changing"]:
            pass
        assert here.calls.commit_progress("0")["phase"] == "cancelled"
        with pytest.raises(UsageError, match="the commit is cancelled"):
            here.calls.cancel_commit("0")
        assert (here.image("0"), client.read(PAGE, PAGE)) == (child, b"2" * PAGE)


def test_a_commit_that_goes_on_when_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapcore.live.commit._few_are_left", lambda folding: False)
    parent = made("qcow2:a.qcow2")
    child = child_of(parent)
    with live_here(child) as here, here.client() as client:
        client.write(0, b"1" * PAGE)
        here.calls.begin_commit("0")
    assert first_page(child) == b"1" * PAGE
    with tapcore.open(child) as disk:
        assert [run.depth for run in disk.extents(0, length=PAGE)] == [0]
