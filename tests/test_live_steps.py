"""Live changes with a client that goes on at each of their steps: nothing is lost."""

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from livesteps import Change, Stepped
from nbd_client import FLUSH, WRITE

import tapcore
from tapcore import DiskId, UnixAddress, nbd_server
from tapcore.files.imagefile import ImageFile
from tapcore.live import Live, commit, folding
from tapcore.process.workers import Completions, WorkerPool, do_task
from tapcore.tools.check import check_image

KIB, MIB = 1 << 10, 1 << 20
SIZE = 2 * MIB
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
FORMATS = ("qcow2", "qcow", "vmdk", "vhd", "vdi", "vhdx")
OPTIONS = {"qcow2": {"cluster_size": "4K"}, "vdi": {}, "vhd": {}}


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of a small disk takes many batches, and comes to an end without a hurry."""
    monkeypatch.setattr(folding, "PIECE", 64 * KIB)
    monkeypatch.setattr(folding, "LOOK", 256 * KIB)
    monkeypatch.setattr(folding, "AT_ONCE", 1)
    monkeypatch.setattr(commit, "FEW", 256 * KIB)
    monkeypatch.setattr(commit, "MOST_PASSES", 3)


def make_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever could be done at once has to be waited for; answers come one by one."""
    monkeypatch.setattr(ImageFile, "write_now", lambda *_: None)
    monkeypatch.setattr(ImageFile, "read_now", lambda *_: None)
    monkeypatch.setattr("tapcore.files.windows.maps_well", lambda fd: False)

    def take_one(self: Completions) -> list[tuple[int, Any]]:
        found = [self._done.popleft()] if self._done else []
        if self._done:
            os.eventfd_write(self.eventfd, 1)
        return found

    monkeypatch.setattr(Completions, "take", take_one)


@contextlib.contextmanager
def stepped(image: str, rng: random.Random, **how: Any) -> Iterator[Stepped]:
    """A disk that is served."""
    folder = Path(image.partition(":")[2]).parent
    server = nbd_server([image], UnixAddress(str(folder / "s")))
    disk = Stepped(server, Live(server, **how), SIZE, rng)
    yield disk
    disk.close()


def made(folder: Path, handle: str) -> str:
    image = f"{handle}:{folder / f'a.{handle}'}"
    tapcore.create_image(image, SIZE, options=OPTIONS.get(handle))
    return image


def content(image: str) -> bytes:
    with tapcore.open(image) as disk:
        return disk.pread(0, length=disk.size)


def fill(disk: Stepped, count: int) -> None:
    for _ in range(count):
        disk.ask_something()
        disk.step()
    disk.answered()


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("seed", range(2 * THOROUGH))
@pytest.mark.parametrize("handle", FORMATS)
def test_what_comes_at_each_step_of_each_change_is_kept(
    handle: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot, a pause, a commit that is cancelled, one that is not, a swap for a copy."""
    if seed % 2:
        make_late(monkeypatch)
    rng = random.Random(f"{handle} {seed}")
    old = made(tmp_path, handle)
    new = f"{handle}:{tmp_path / f'b.{handle}'}"
    copy = f"{handle}:{tmp_path / f'c.{handle}'}"
    with stepped(old, rng) as disk:
        live = disk.live
        fill(disk, 20)
        snapshot = disk.change(lambda c: live.snapshot("", new, c.done), busy=4)
        assert snapshot.error is None
        assert snapshot.result["image"] == new
        fill(disk, 20)
        assert disk.change(lambda c: live.pause("", c.done)).error is None
        assert disk.change(lambda c: live.resume("", c.done)).error is None
        cancelled = Change()
        live.commit("", cancelled.told, cancelled.done)
        for _ in range(rng.randrange(3, 30)):
            disk.ask_something()
            disk.step()
        if not cancelled.over:
            live.cancel_commit("")
        disk.until(lambda: cancelled.over)
        disk.check()
        if cancelled.error is not None:
            assert "cancelled" in str(cancelled.error)
            done = disk.change(lambda c: live.commit("", c.told, c.done), busy=3)
            assert done.error is None
        assert live.state("")["image"] == old
        disk.check()
        disk.change(lambda c: live.pause("", c.done), busy=2)
        assert content(new) == content(old)  # the child was emptied
        tapcore.convert_image(old, copy)
        swapped = disk.change(lambda c: live.swap("", copy, c.done), busy=4)
        assert swapped.error is None
        fill(disk, 10)
        disk.check()
    assert content(copy) == bytes(disk.model)
    for image in (old, new, copy):
        if handle != "qcow":  # which has nothing to check
            assert sound(image)


def sound(image: str) -> bool:
    result = check_image(image)
    return not (result.corruptions or result.leaks)


# ---- a process that dies -------------------------------------------------------------------------


def _at_once(pool: WorkerPool, work: Any, args: tuple[Any, ...], to: Any, token: Any) -> None:
    do_task(work, args, to, token)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("handle", ["qcow2", *(FORMATS[1:] if THOROUGH > 1 else ())])
def test_whatever_step_is_the_last_all_that_was_flushed_is_there(
    handle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each batch the files are looked at as a process that died would have left them."""
    rng = random.Random(handle)
    folder, after = tmp_path / "disk", tmp_path / "after"
    folder.mkdir()
    names = [made(folder, handle)]
    looks = 0

    def renamed(_: str, image: DiskId) -> None:
        names.append(str(image))

    def look(disk: Stepped) -> None:
        nonlocal looks
        shutil.rmtree(after, ignore_errors=True)
        shutil.copytree(folder, after, ignore=shutil.ignore_patterns("s"))
        image = names[-1].replace(str(folder), str(after))
        assert content(image) == disk.model
        looks += 1

    with stepped(names[0], rng, renamed=renamed) as disk:
        for _ in range(12):
            disk.ask(WRITE, *disk._range())
            disk.answered()
        live = disk.live
        child = f"{handle}:{folder / f'b.{handle}'}"
        monkeypatch.setattr(WorkerPool, "put", _at_once)
        changes: list[Callable[[Change], None]] = [
            lambda c: live.snapshot("", child, c.done),
            lambda c: live.commit("", c.told, c.done),
        ]
        for begin in changes:
            disk.ask(FLUSH, 0, 0)
            disk.answered()
            change = Change()
            begin(change)
            while not change.over:
                disk.step()
                look(disk)
            assert change.error is None
            for _ in range(12):
                disk.ask(WRITE, *disk._range())
                disk.answered()
    assert names == [names[0], child, names[0]]
    assert looks > 10
    assert content(names[0]) == bytes(disk.model)
