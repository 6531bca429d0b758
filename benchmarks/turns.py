"""A kind of disk: its servers take turns in each row of each round."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import disks
import procs
from cases import Case
from lineup import command_of, specs
from results import Results, Turn
from servers import Server, ServerError, Spec
from workloads import FioError, Row, run_fio


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is measured.

    Attributes:
        tapdisk: the command that is judged.
        rounds: of each row.
        seconds: of a turn.
        ramp: seconds that do not count, before the first turn of a row; of each server.
        size: of a disk, bytes.
        folder: where the images lie.
        servers: the names of those that take part.
    """

    tapdisk: str | None
    rounds: int
    seconds: float
    ramp: float
    size: int
    folder: Path
    servers: frozenset[str]


def say(text: str) -> None:
    """How it goes; the tables go to standard output."""
    print(text, file=sys.stderr, flush=True)


def taking_part(case: Case, plan: Plan) -> list[Spec]:
    """The servers of a case that are installed and wanted."""
    return [spec for spec in specs(case.kind) if spec.name in plan.servers]


@dataclass
class CaseRun:
    """One case on its way.

    Attributes:
        case: the kind of disk.
        plan: how it is measured.
        results: where the turns go.
        rows: those of the case that are wanted.
        specs: its servers; one that cannot be started, or ends, is left out from then on.
        images: of each server.
        running: those that stay up.
        folder: of sockets and logs.
    """

    case: Case
    plan: Plan
    results: Results
    rows: list[Row]
    specs: list[Spec]
    folder: Path
    images: dict[str, Path] = field(default_factory=dict)
    running: dict[str, Server] = field(default_factory=dict)

    def measure(self) -> None:
        """Every row in every round by every server."""
        with contextlib.ExitStack() as stack:
            data = stack.enter_context(
                tempfile.TemporaryDirectory(
                    dir=self.case.where or self.plan.folder, prefix="tapbench-"
                )
            )
            self._copy_images(Path(data))
            if not self.case.fresh:
                for spec in list(self.specs):
                    self._start(spec, stack)
            for round_, row, spec in self._turns():
                if spec in self.specs:
                    self._take(round_, row, spec)

    def _turns(self) -> Iterator[tuple[int, Row, Spec]]:
        """Who begins changes from round to round."""
        for round_ in range(self.plan.rounds):
            first = round_ % len(self.specs) if self.specs else 0
            order = self.specs[first:] + self.specs[:first]
            for row in self.rows:
                for spec in order:
                    yield round_, row, spec

    def _copy_images(self, folder: Path) -> None:
        """Each server its own image: QEMU locks those that it opens."""
        first = folder / self.specs[0].name
        first.mkdir()
        image = self.case.make(first, self.plan.size)
        self.images[self.specs[0].name] = image
        for spec in self.specs[1:]:
            shutil.copytree(first, folder / spec.name)
            self.images[spec.name] = folder / spec.name / image.name
        if self.case.where is None:
            for path in folder.glob("*/*"):
                disks.cool(path)  # in larger units than a copy's, pages take longer to write to

    def _start(self, spec: Spec, stack: contextlib.ExitStack) -> None:
        try:
            server = self._server(spec, self.images[spec.name])
            self.running[spec.name] = stack.enter_context(server)
            if self.case.kind.memory:
                fill = Row(self.case.name, "1m", "write", 8)
                run_fio(fill, server.uri, 60, once=self.plan.size)
        except (ServerError, FioError, OSError) as error:
            self._leave_out(spec, error)

    def _server(self, spec: Spec, image: Path) -> Server:
        command = command_of(spec, self.plan.tapdisk)
        assert command is not None
        return Server(spec, command, image, self.folder)

    def _leave_out(self, spec: Spec, error: Exception) -> None:
        self.specs = [each for each in self.specs if each != spec]
        where = self.results.problems if spec.ours else self.results.left_out
        where.append(f"{self.case.name}, {spec.name}, left out: {error}")
        say(f"  {where[-1]}")

    def _take(self, round_: int, row: Row, spec: Spec) -> None:
        where = f"round {round_ + 1}, {row.name}, {spec.name}"
        try:
            turn = self._fresh_turn(row, spec) if self.case.fresh else self._turn(round_, row, spec)
        except (FioError, ServerError, OSError) as error:
            self.results.problems.append(f"{where}: {error}")
            say(f"  {where}: {error}")
            try:
                if (server := self.running.get(spec.name)) is not None:
                    server.check()
            except ServerError as gone:
                self._leave_out(spec, gone)
            return
        self.results.add(row, spec.name, round_, turn)
        say(f"  {where}: {turn.fio.iops:,.0f} IOPS, {turn.cpu_us:.1f} us CPU a request")

    def _turn(self, round_: int, row: Row, spec: Spec) -> Turn:
        """The same state of the page cache before each, and nothing left to be written back."""
        server = self.running[spec.name]
        server.check()
        os.sync()
        for path in server.file.parent.iterdir():  # its parents, too
            (disks.cool if self.case.kind.direct else disks.warm)(path)
        if not round_ and self.plan.ramp:
            # A run of its own: with fio's ramp_time the CPU time would count requests that its
            # report leaves out.
            run_fio(row, server.uri, self.plan.ramp)
        turn = self._measured(row, server, 0)
        server.check()
        return turn

    def _fresh_turn(self, row: Row, spec: Spec) -> Turn:
        image = self.case.make(self.images[spec.name].parent, self.plan.size)
        os.sync()
        with self._server(spec, image) as server:
            disks.have_memory(self.plan.folder, self.plan.size)
            return self._measured(row, server, self.plan.size)

    def _measured(self, row: Row, server: Server, once: int) -> Turn:
        watch = procs.Watch(server.pid)
        before = procs.cpu_seconds(server.pid)
        fio = run_fio(row, server.uri, self.plan.seconds, once=once, look=watch.look)
        cpu = procs.cpu_seconds(server.pid) - before
        watch.look()
        return Turn(fio, cpu / fio.ios * 1e6, watch.switches / fio.ios, watch.anonymous)
