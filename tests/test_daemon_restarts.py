"""Disks that nobody serves are brought back, and given up when that is of no use."""

from collections.abc import Callable

import pytest

from tapcore import IOFailedError, UnixAddress
from tapcore.daemon import restarts
from tapcore.daemon.disks import FAILED, RESTARTING, SERVING, Disk
from tapcore.daemon.restarts import DEATHS, PAUSES, Restarts
from tapcore.daemon.spec import DiskSpec
from tapcore.daemon.verbs import Later
from tapcore.process.timer import Timer


class Clock(Timer):
    """A timer whose time passes when a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def put(self, seconds: float, do: Callable[[], object]) -> None:
        self.pauses.append(seconds)
        super().put(seconds, do)


@pytest.fixture
def disk() -> Disk:
    return Disk(DiskSpec("i", "d"), UnixAddress("/nowhere"), SERVING)


def test_a_disk_whose_process_dies_too_often_is_given_up(disk: Disk) -> None:
    timer, started = Clock(), []

    def start(disk: Disk) -> Later:
        started.append(disk)
        disk.state = SERVING
        later = Later()
        later.answer(disk)
        return later

    brought = Restarts(timer, start, lambda disk: None, lambda disk: True)
    for _ in range(DEATHS):
        brought.after_death(disk, "its process was ended by SIGKILL")
        assert disk.state == RESTARTING
        timer.run_due(all_of_it=True)
        assert disk.state == SERVING
    assert timer.pauses == list(PAUSES)
    assert (disk.restarts, len(started)) == (DEATHS, DEATHS)
    brought.after_death(disk, "its process was ended by SIGKILL")
    assert disk.state == FAILED
    assert disk.reason == "given up after 6 attempts: its process was ended by SIGKILL"
    timer.abandon()


def test_one_that_dies_now_and_then_is_brought_back_each_time(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer, now = Clock(), [0.0]
    monkeypatch.setattr(restarts, "monotonic", lambda: now[0])

    def start(disk: Disk) -> Later:
        later = Later()
        later.answer(disk)
        return later

    brought = Restarts(timer, start, lambda disk: None, lambda disk: True)
    for _ in range(3 * DEATHS):
        now[0] += restarts.DEATHS_SECONDS / 3
        brought.after_death(disk, "")
        timer.run_due(all_of_it=True)
    assert disk.state == RESTARTING  # as `start` has left it
    assert disk.restarts == 3 * DEATHS
    assert max(timer.pauses) == PAUSES[2]
    timer.abandon()


def test_an_image_that_cannot_be_opened_any_more_is_the_reason(disk: Disk) -> None:
    timer = Clock()
    let_go: list[Disk] = []

    def start(disk: Disk) -> Later:
        later = Later()
        later.fail(IOFailedError("No such file or directory", image="i"))
        return later

    brought = Restarts(timer, start, let_go.append, lambda disk: True)
    brought.bring_back(disk)
    while timer.pending is not None:
        timer.run_due(all_of_it=True)
    assert disk.state == FAILED
    assert disk.reason == "given up after 6 attempts: No such file or directory"
    assert len(let_go) == DEATHS + 1
    timer.abandon()


def test_what_was_detached_meanwhile_is_not_brought_back(disk: Disk) -> None:
    timer = Clock()

    def start(disk: Disk) -> Later:
        raise AssertionError

    brought = Restarts(timer, start, lambda disk: None, lambda disk: False)
    brought.after_death(disk, "")
    timer.run_due(all_of_it=True)
    timer.abandon()


def test_a_death_that_two_tell_of_counts_once(disk: Disk) -> None:
    timer, opening = Clock(), Later()
    brought = Restarts(timer, lambda disk: opening, lambda disk: None, lambda disk: True)
    brought.after_death(disk, "its process was ended by SIGKILL")
    timer.run_due(all_of_it=True)
    brought.after_death(disk, "its process was ended by SIGKILL")  # while it opens the image
    opening.fail(IOFailedError("its process died while it opened the image"))
    assert len(disk.deaths) == len(timer.pauses) == 2
    timer.abandon()
