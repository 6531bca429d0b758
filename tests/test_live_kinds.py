"""Every kind of disk through changes at random while a client writes it: nothing is lost.

The short form of `benchmarks/live_soak.py`, in one thread.
"""

import os
import random
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from livechanges import Changes, Image
from livekinds import KINDS, keys, make, same_in_qemu
from livesteps import Stepped

import tapcore
from peers import peer
from tapcore import UnixAddress, nbd_server
from tapcore.interface.options import CacheMode
from tapcore.live import Live
from tapcore.process.workers import WorkerPool, do_task

MIB = 1 << 20
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
CHANGES = 6
CACHES: tuple[CacheMode, ...] = ("writeback", "none")
TRIALS = [
    (name, cache)
    for number, name in enumerate(KINDS)
    for cache in (CACHES if THOROUGH > 1 else [CACHES[number % 2]])
]
"""Each kind in one of the two modes, by turns; the long form has them all in both."""


@attrs.define(eq=False)
class SteppedCalls:
    """The calls of `LiveCalls`, with requests of the client at each step of each."""

    disk: Stepped
    busy: int = 3

    def _call(self, begin: Any) -> dict[str, Any]:
        change = self.disk.change(begin, busy=self.busy)
        if change.error is not None:
            raise change.error
        return change.result

    def state(self, name: str) -> dict[str, Any]:
        return self.disk.live.state(name)

    def pause(self, name: str) -> dict[str, Any]:
        return self._call(lambda c: self.disk.live.pause(name, c.done))

    def resume(self, name: str) -> dict[str, Any]:
        return self._call(lambda c: self.disk.live.resume(name, c.done))

    def swap(self, name: str, image: str) -> dict[str, Any]:
        return self._call(lambda c: self.disk.live.swap(name, image, c.done))

    def snapshot(
        self, name: str, child: str, *, options: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        live = self.disk.live
        return self._call(lambda c: live.snapshot(name, child, c.done, options=options))

    def resize(self, name: str, size: str, *, shrink: bool = False) -> dict[str, Any]:
        live = self.disk.live
        return self._call(lambda c: live.resize(name, size, c.done, shrink=shrink))

    def commit(self, name: str) -> dict[str, Any]:
        return self._call(lambda c: self.disk.live.commit(name, c.told, c.done))

    def begin_commit(self, name: str) -> dict[str, Any]:
        return self._call(lambda c: self.disk.live.commit(name, c.done))

    def commit_progress(self, name: str) -> dict[str, Any]:
        return self.disk.live.commit_progress(name)

    def cancel_commit(self, name: str) -> dict[str, Any]:
        return self.disk.live.cancel_commit(name)


def wait(disk: Stepped, part: float) -> None:
    for _ in range(int(20 * part)):
        if len(disk.asked) < 6:
            disk.ask_something()
        disk.step(0.001)


def resized(disk: Stepped, new: int, old: int) -> None:
    if new < old:
        disk.answered()
    disk.known.resize(new)


def trial(name: str, cache: CacheMode, folder: Path, rng: random.Random) -> None:
    """One disk: made, changed at random, folded together, and looked at by others."""
    kind = KINDS[name]
    size, raw = 4 * MIB, folder / "content.raw"
    image = make(kind, folder, size)
    how: dict[str, Any] = {"keys": keys(kind)} if kind.locked else {}
    address = UnixAddress(str(folder / "s"))
    if cache in kind.lacks:
        with pytest.raises(tapcore.TapError, match=kind.lacks[cache]) as refused:
            nbd_server([image], address, cache=cache, **how)
        assert len(str(refused.value).splitlines()) == 1
        return
    server = nbd_server([image], address, cache=cache, **how)
    disk = Stepped(server, Live(server), size, random.Random(rng.random()))
    disk.begin()
    calls = SteppedCalls(disk)
    changes = Changes(
        calls,
        kind,
        folder,
        rng,
        [Image(image, size)],
        3 * MIB,
        9 * MIB,
        partial(resized, disk),
        partial(wait, disk),
    )
    try:
        for _ in range(CHANGES):
            wait(disk, 1)
            changes.change()
        calls.busy = 0
        disk.check()
        raw.write_bytes(disk.model)
        if kind.handle != "ram":
            calls.pause("")
            same_in_qemu(kind, changes.image.name, raw, child=changes.is_child)
            calls.resume("")
            changes.fold()
        disk.check()
        raw.write_bytes(disk.model)
    finally:
        disk.close()
    if kind.handle != "ram":
        changes.check()
        same_in_qemu(kind, changes.image.name, raw, child=changes.is_child)
        with tapcore.open(changes.image.name, **how) as read:
            assert read.pread(0, length=read.size) == disk.model


def _at_once(pool: WorkerPool, work: Any, args: tuple[Any, ...], to: Any, token: Any) -> None:
    do_task(work, args, to, token)


@pytest.mark.parametrize(("name", "cache"), TRIALS)
def test_nothing_is_lost(
    name: str, cache: CacheMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No change lasts longer, or is shorter, for what else the machine does."""
    for program in ("qemu-img", "cryptsetup", "sfdisk"):
        peer(program)
    monkeypatch.setattr(WorkerPool, "put", _at_once)
    monkeypatch.setattr("tapcore.formats.luks.keys.iterations_for", lambda *_: 1000)
    for turn in range(THOROUGH):
        folder = tmp_path / str(turn)
        folder.mkdir()
        trial(name, cache, folder, random.Random(f"{name} {cache} {turn}"))
        shutil.rmtree(folder)
