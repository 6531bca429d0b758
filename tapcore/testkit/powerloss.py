"""Checks on what a power loss leaves: every order that the disk may have written in."""

from __future__ import annotations

import itertools
import operator
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tapcore.engine import WRITE, ZERO
from tapcore.errors import NotSupportedError, TapError, UsageError
from tapcore.testkit.crashstates import Change, State
from tapcore.testkit.failing import broken, compare
from tapcore.testkit.faults import Faults
from tapcore.testkit.needs import left_out, needs
from tapcore.testkit.recording import Recording, UnrecordedError
from tapcore.testkit.subject import Subject
from tapcore.testkit.workload import Workload
from tapcore.tools.commit import commit_image

BATCHES = 6
STATES = 4
BARRIERS = 3
_WINDOW = 96 << 10
_RACE_SECONDS = 0.1

_KEEP: Sequence[Callable[[Change], bool]] = (lambda change: False, lambda change: True)
"""Of what may be lost: none of it is there, or all."""


class PowerLossChecks(Subject):
    """A recorder notes every write and flush of the image's files, and a power loss is replayed.

    Of what no fdatasync had covered at that moment, anything may be lost or torn.
    """

    @needs("write", "lasting", "file")
    def test_a_power_loss_leaves_what_was_flushed(self, rng: random.Random) -> None:
        """At any moment the image opens, and holds what was flushed; it can be written again."""
        self.lose_power(self.make_image(self.small), None, [], rng)

    @needs("write", "lasting", "file", "parents")
    def test_a_power_loss_leaves_a_child(self, rng: random.Random) -> None:
        """The same for a child: what it has not got shows its parent."""
        parent, below = self.filled(rng, "parent", whole=True)
        child = self.make_child(parent, None)
        self.lose_power(child, below, self.host_files(parent), rng)

    @needs("write", "lasting", "file", "parents")
    def test_a_power_loss_during_a_commit(self, rng: random.Random) -> None:
        """The child reads as before, whatever of the commit has reached the disk."""
        parent, _ = self.filled(rng, "parent")
        child = self.make_child(parent, None)
        with self.open(child) as disk:
            for _ in range(3):
                at = rng.randrange(disk.size)
                disk.pwrite(at, rng.randbytes(min(9000, disk.size - at)))
            content = disk.pread(0, length=disk.size)
        files = [*self.host_files(child), *self.host_files(parent)]
        try:
            with Recording(*files) as recording:
                commit_image(f"{self.handle}:{child}", access=self.access())
        except (NotSupportedError, UsageError) as exc:
            left_out(f"these children cannot be committed: {exc}")
        except UnrecordedError:
            left_out("a commit writes to these files in ways that cannot be recorded")
        step = max(len(recording.changes) // 6, 1)
        for state in (*recording.prefixes(step), *recording.states(rng, 2 * STATES)):
            copy = self._put_down(state, files, child)
            try:
                with self.open(copy, readonly=True) as disk:
                    got = disk.pread(0, length=disk.size)
            except (TapError, OSError) as exc:
                broken(f"after a power loss during a commit the child is refused: {exc} ({state})")
            compare(got, content, 0, f"a child, after a power loss during its commit ({state})")

    @needs("write", "lasting", "file", "parents", "noticing")
    def test_a_change_before_a_power_loss_is_noticed(self, rng: random.Random) -> None:
        """A parent was written to, and the power went: its child is refused, or reads as before."""
        parent, _ = self.filled(rng, "parent", whole=True)
        child, files = self.make_child(parent, None), self.host_files(parent)
        with self.open(child, readonly=True) as disk:
            content = disk.pread(0, length=disk.size)
        try:
            with Recording(*files) as recording, self.open(parent) as disk:
                disk.pwrite(0, rng.randbytes(min(20_000, disk.size)))
                disk.sync()
        except UnrecordedError:
            left_out("the driver writes to its files in ways that cannot be recorded")
        lone = [
            recording.state(rng, each.done, partial(operator.is_, each))
            for each in recording.changes
        ]
        for state in (*lone, *recording.prefixes()):
            copy = self._put_down(state, files, child)
            try:
                with self.open(copy, readonly=True) as disk:
                    got = disk.pread(0, length=disk.size)
            except (TapError, OSError):
                continue
            compare(got, content, 0, f"a child whose parent was changed before a crash ({state})")

    def _put_down(self, state: State, files: list[str], image: str) -> str:
        """The files after a crash, and what of the image was not recorded; where the image is."""
        folder = os.path.join(self.folder, "after")
        os.makedirs(folder, exist_ok=True)
        for path in self.host_files(image):
            if path not in files:
                shutil.copy2(path, folder)
        state.write({path: os.path.join(folder, os.path.basename(path)) for path in files})
        return os.path.join(folder, os.path.basename(image))

    def lose_power(
        self, image: str, below: bytes | None, others: list[str], rng: random.Random
    ) -> None:
        """Work on an image while it is recorded, and look at what may be left of it.

        Args:
            image: that is not open.
            below: what its parents hold; None without any.
            others: host files that it needs beside it.
            rng: decides.
        """
        files = self.host_files(image)
        try:
            with Recording(*files) as recording:
                work, moments, raced = self._work(image, below, recording, rng)
        except UnrecordedError:
            left_out("the driver writes to its files in ways that cannot be recorded")
        folder = os.path.join(self.folder, "after")
        os.mkdir(folder)
        for path in others:
            shutil.copy2(path, folder)
        step = max(len(recording.changes) // (STATES // 2), 1)
        chosen = [recording.state(rng, moment, keep) for moment in moments for keep in _KEEP]
        single = self._single(recording, moments[-2], rng)
        raced_states = self._one_lost(recording, raced, rng)
        any_ = recording.states(rng, STATES)
        states = (recording.prefixes(step), any_, chosen, single, raced_states)
        for number, state in enumerate(itertools.chain(*states)):
            state.write({path: os.path.join(folder, os.path.basename(path)) for path in files})
            copy = os.path.join(folder, os.path.basename(image))
            self._look_after(copy, work, state)
            if number % 12 == 11:
                self._go_on(copy, state, rng)

    @staticmethod
    def _single(recording: Recording, moment: int, rng: random.Random) -> Iterator[State]:
        """Just before what was to be made safe is: the last of it alone is there, or all but one.

        That finds what is named before it is there.
        """
        barriers = [barrier.done - 1 for barrier in recording.barriers]
        for at in (moment, *rng.sample(barriers, min(len(barriers), BARRIERS))):
            pending = [each for each in recording.changes if each.began <= at < each.safe]
            if pending:
                yield recording.state(rng, at, partial(operator.is_, pending[-1]))
                yield recording.state(rng, at, partial(operator.is_not, rng.choice(pending)))

    @staticmethod
    def _one_lost(
        recording: Recording, span: tuple[int, int], rng: random.Random
    ) -> Iterator[State]:
        """Before the end of each barrier of a span: all is there but one piece of content."""
        for barrier in recording.barriers:
            if not span[0] < barrier.done <= span[1]:
                continue
            at = barrier.done - 1
            for each in recording.changes:
                if each.began <= at < each.safe and not each.metadata:
                    yield recording.state(rng, at, partial(operator.is_not, each))

    def _work(
        self, image: str, below: bytes | None, recording: Recording, rng: random.Random
    ) -> tuple[Workload, list[int], tuple[int, int]]:
        """Any work, and what drivers are most often wrong about, each with its moment.

        Returns:
            The work; those moments; the beginning and the end of a flush and a write beside it.
        """
        files, moments = recording.before, []
        with Faults(*files, rng=rng, late=0.4) as faults, self.open(image) as disk:
            work = Workload(disk, recording, rng, _windows(disk.size), below, largest=24 << 10)
            start, length = work.windows[-1]
            unit = min(max(disk.state.sector_size, 4096), length)
            half = max(length // 2 // unit * unit, unit)
            began = recording.now()
            if half < length:
                work.write(WRITE, start, rng.randbytes(unit))
                faults.hold("flush", done=True)
                piece = rng.randbytes(min(unit, length - half))
                moments.append(work.write_beside_a_flush(start + half, piece, _RACE_SECONDS))
                faults.release()
                work.end()
                work.flush()
                moments.append(recording.now())
            race = began, recording.now()
            work.run(BATCHES)
            work.write(WRITE, start, rng.randbytes(half))
            work.flush()
            moments.append(recording.now())
            work.write(WRITE, start, rng.randbytes(unit))  # in place: no table changes
            work.flush()
            moments.append(recording.now())
            work.change(ZERO, start, half // 2 // unit * unit)  # what is freed is used again, early
            if half < length:
                work.write(WRITE, start + half, rng.randbytes(length - half))
            moments.append(recording.now())
            began = recording.now()
        work.closed(began)
        return work, [*moments, recording.now()], race

    def _look_after(self, copy: str, work: Workload, state: State) -> None:
        try:
            with self.open(copy, readonly=True) as disk:
                found = {at: disk.pread(at, length=length) for at, length in work.windows}
        except (TapError, OSError) as exc:
            broken(f"after a power loss the image cannot be read: {exc} ({state})")
        for at, content in found.items():
            wrong = work.wrong(state.moment, at, content)
            if wrong:
                broken(f"after a power loss {wrong} ({state})")

    def _go_on(self, copy: str, state: State, rng: random.Random) -> None:
        """What was lost is of no harm to what is written after it."""
        with self.open(copy) as disk:
            for _ in range(4):
                at = rng.randrange(disk.size)
                disk.pwrite(at, rng.randbytes(min(20_000, disk.size - at)))
            want = disk.pread(0, length=disk.size)
        with self.open(copy, readonly=True) as disk:
            got = disk.pread(0, length=disk.size)
        compare(got, want, 0, f"written, and opened again, after a power loss ({state})")


def _windows(size: int) -> list[tuple[int, int]]:
    """Where there is work: everywhere, or in a large image at both ends."""
    if size <= 4 * _WINDOW:
        return [(0, size)]
    return [(0, _WINDOW), (size - _WINDOW, _WINDOW)]
