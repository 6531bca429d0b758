"""A call that Ctrl-C leaves in the middle: nothing waits for its answer, and the image is sound."""

import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from interrupts import Moments, When, planted

import tapcore
from tapcore.files import direct
from tapcore.interface.installed import entry_points
from tapcore.tools.check import check_image

pytestmark = pytest.mark.timeout(30)

SIZE = 4 << 20
FLUSHED, LATER = 100_000, 2_000_000
TRIALS = 12 * int(os.environ.get("TAPCORE_THOROUGH") or 1)

Call = Callable[[tapcore.Disk], object]

CALLS: dict[str, Call] = {
    "td_queue_read": lambda disk: disk.pread(FLUSHED, length=9000),
    "td_queue_write": lambda disk: disk.pwrite(LATER, b"n" * 200_000),
    "td_queue_write_zeroes": lambda disk: disk.zero(LATER, length=100_000),
    "td_queue_discard": lambda disk: disk.discard(LATER, length=100_000),
    "td_queue_flush": lambda disk: disk.sync(),
    "td_submit": lambda disk: disk.pwrite(LATER, b"n" * 200_000),
    "td_do_callbacks": lambda disk: disk.sync(),
}
KINDS = [
    "aio",
    "qcow2",
    "vmdk",
    "qcow",
    "vhd",
    "vdi",
    "aio none",
    "qcow2 none",
    "vmdk none",
]


class Subject:
    """An image with content that is flushed, and some that is not."""

    def __init__(self, kind: str, folder: Path, rng: random.Random) -> None:
        self.handle, _, cache = kind.partition(" ")
        self.name = f"{self.handle}:{folder / 'disk'}"
        self.cache: tapcore.CacheMode = "none" if cache else "writeback"
        self.content = rng.randbytes(70_000)
        tapcore.create_image(self.name, SIZE)

    def open(self) -> tapcore.Disk:
        disk = tapcore.open(self.name, cache=self.cache, readonly=False)
        disk.pwrite(FLUSHED, self.content)
        disk.sync()
        disk.pwrite(LATER, b"o" * 150_000)
        return disk

    def assert_sound(self) -> None:
        """It opens for writing, what was flushed is there, and nothing worse than leaks."""
        with tapcore.open(self.name, readonly=False) as disk:
            assert disk.pread(FLUSHED, length=70_000) == self.content
            disk.pwrite(LATER, b"goes on")
        with tapcore.open(self.name, readonly=True) as disk:
            assert disk.pread(LATER, length=7) == b"goes on"
        if self.handle in ("qcow2", "vmdk"):
            found = check_image(self.name)
            assert not found.corruptions + found.check_errors, found.messages


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random) -> Subject:
    return Subject(request.param, tmp_path, rng)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("hook", CALLS)
def test_a_hook_that_is_left(subject: Subject, hook: str, when: When) -> None:
    disk = subject.open()
    with planted(disk.state, hook, when), pytest.raises(KeyboardInterrupt):
        CALLS[hook](disk)
    for call in CALLS.values():
        with pytest.raises(tapcore.BrokenOffError, match="broken off"):
            call(disk)
    for ask in (disk.info, disk.snapshots, lambda: list(disk.extents()), lambda: disk.resize(512)):
        with pytest.raises(tapcore.BrokenOffError):
            ask()
    with pytest.raises(tapcore.BrokenOffError, match="what was not flushed may be lost"):
        disk.close()
    assert disk.closed
    disk.close()
    with pytest.raises(tapcore.ClosedError):
        disk.pread(0, length=1)
    subject.assert_sound()


def test_the_end_of_with_does_not_hide_what_ended_it(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    disk = subject.open()
    with pytest.raises(KeyboardInterrupt), disk, planted(disk.state, "td_queue_write", "before"):
        disk.pwrite(LATER, b"n" * 200_000)
    assert disk.closed
    (said,) = [each for each in caplog.records if "may be lost" in each.getMessage()]
    assert said.levelno == logging.ERROR
    assert str(disk.name) in said.getMessage()
    subject.assert_sound()


def test_an_end_of_with_that_nothing_else_says(subject: Subject) -> None:
    disk = subject.open()
    with pytest.raises(tapcore.BrokenOffError, match="may be lost"), disk:  # noqa: SIM117
        with pytest.raises(KeyboardInterrupt), planted(disk.state, "td_queue_flush", "after"):
            disk.sync()
    subject.assert_sound()


def test_what_is_only_read_loses_nothing(subject: Subject) -> None:
    subject.open().close()
    with tapcore.open(subject.name, readonly=True, cache=subject.cache) as disk:
        with planted(disk.state, "td_queue_read", "before"), pytest.raises(KeyboardInterrupt):
            disk.pread(0, length=4096)
        with pytest.raises(tapcore.BrokenOffError):
            disk.pread(0, length=4096)
    subject.assert_sound()


def test_interrupted_anywhere_in_a_call(subject: Subject, rng: random.Random) -> None:
    """At any moment in the core or the driver: a signal chooses none."""

    def work(disk: tapcore.Disk) -> None:
        for call in CALLS.values():
            call(disk)

    with subject.open() as disk:
        moments = Moments()
        moments.run(lambda: work(disk))
    for _ in range(TRIALS):
        disk = subject.open()
        at = rng.randint(1, moments.count)
        try:
            with pytest.raises(KeyboardInterrupt), disk:
                Moments(at).run(lambda disk=disk: work(disk))  # type: ignore[misc]
        except pytest.fail.Exception:
            continue  # there were fewer this time
        assert disk.closed
        subject.assert_sound()


def test_interrupted_anywhere_in_closing(subject: Subject, rng: random.Random) -> None:
    moments = Moments()
    moments.run(subject.open().close)
    for _ in range(TRIALS):
        disk = subject.open()
        try:
            with pytest.raises(KeyboardInterrupt):
                Moments(rng.randint(1, moments.count)).run(disk.close)
        except pytest.fail.Exception:
            continue
        disk.close()
        del disk
        subject.assert_sound()


def test_interrupted_anywhere_in_opening(
    subject: Subject, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing keeps the image's lock then."""
    subject.open().close()
    # a file of an installed distribution that is left open at that moment is the collector's
    engines = entry_points(direct.ENGINE_GROUP)
    monkeypatch.setattr(direct, "entry_points", lambda group: engines)

    def work() -> None:
        tapcore.open(subject.name, cache=subject.cache, readonly=False).close()

    work()  # the drivers are found by the first one
    moments = Moments()
    moments.run(work)
    for _ in range(TRIALS):
        with suppress(KeyboardInterrupt):
            Moments(rng.randint(1, moments.count)).run(work)
        subject.assert_sound()
