"""Turns into medians and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from workloads import FioResult, Row

WALL_TARGET = 1.0
"""At least this multiple of the best peer's requests a second, in each row."""

WALL_MEDIAN_TARGET = 1.5
"""The same for the median of all rows."""

MEMORY_TARGET = 60 << 20
"""Bytes of anonymous memory at most, of a server of ours at depth 32 and less."""

MEMORY_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """One server's run of one row in one round.

    Attributes:
        fio: what the client says.
        cpu_us: the server's, a request.
        switches: of its threads, a request.
        anonymous: the most of its anonymous memory that was seen, bytes.
    """

    fio: FioResult
    cpu_us: float
    switches: float
    anonymous: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours to the best peer, of each round that both have."""

    rounds: list[float]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        text = f"{self.median:.2f}x"
        if len(self.rounds) > 1:
            text += f" ({min(self.rounds):.2f}-{max(self.rounds):.2f})"
        return text


def iops(turn: Turn) -> float:
    """Requests a second."""
    return turn.fio.iops


def cpu_us(turn: Turn) -> float:
    """The server's CPU time of a request."""
    return turn.cpu_us


@dataclass
class Results:
    """Everything measured.

    Attributes:
        rows: what was to be measured.
        ours: the names of the servers that are judged.
        turns: by row name, server name and round.
        problems: what could not be measured, though it should have been.
        left_out: servers that cannot be measured here, and why.
    """

    rows: list[Row]
    ours: list[str]
    turns: dict[str, dict[str, dict[int, Turn]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, row: Row, server: str, round_: int, turn: Turn) -> None:
        """Note a turn."""
        self.turns.setdefault(row.name, {}).setdefault(server, {})[round_] = turn

    def servers(self, row: Row) -> list[str]:
        """Those with a result, in the order of their first turn."""
        return list(self.turns.get(row.name, {}))

    def median(self, row: Row, server: str, value: Callable[[Turn], float]) -> float:
        """Of the rounds."""
        return statistics.median(value(turn) for turn in self.turns[row.name][server].values())

    def wall(self, row: Row, server: str) -> Ratio | None:
        """Requests a second beside the best peer's: more than 1 is better."""
        return self._ratio(row, server, iops, max)

    def cpu(self, row: Row, server: str) -> Ratio | None:
        """CPU time of a request beside the best peer's: less than 1 is better."""
        return self._ratio(row, server, cpu_us, min)

    def misses(self, row: Row, server: str) -> list[str]:
        """The targets of a row that are missed, in words."""
        found = []
        wall, cpu = self.wall(row, server), self.cpu(row, server)
        if wall is not None and wall.median < WALL_TARGET:
            found.append(f"speed {wall}, target >= {WALL_TARGET:.1f}x")
        if cpu is not None and row.cpu_target is not None and cpu.median > row.cpu_target:
            found.append(f"CPU {cpu}, target <= {row.cpu_target:.1f}x")
        return found

    def anonymous(self, server: str, depth: int | None = None) -> int:
        """The most anonymous memory over the rows of at most a depth (None: of all), or 0."""
        return max(
            (
                turn.anonymous
                for row in self.rows
                if depth is None or row.depth * row.connections <= depth
                for turn in self.turns.get(row.name, {}).get(server, {}).values()
            ),
            default=0,
        )

    def wall_median(self, server: str) -> float | None:
        """Over the rows; None where nothing was compared."""
        ratios = [self.wall(row, server) for row in self.rows]
        found = [ratio.median for ratio in ratios if ratio is not None]
        return statistics.median(found) if found else None

    def seen(self) -> list[str]:
        """The servers with any result, in the order of their first turn."""
        return list(dict.fromkeys(name for by in self.turns.values() for name in by))

    def below(self) -> list[str]:
        """What misses its target, a line each."""
        lines = []
        for row in self.rows:
            for server in self.servers(row):
                lines += [f"{row.name}, {server}: {miss}" for miss in self.misses(row, server)]
        for server in self.ours:
            middle = self.wall_median(server)
            if middle is not None and middle < WALL_MEDIAN_TARGET:
                aim = f"target >= {WALL_MEDIAN_TARGET:.1f}x"
                lines.append(f"all rows, {server}: speed {middle:.2f}x in the median, {aim}")
            if (most := self.anonymous(server, MEMORY_DEPTH)) > MEMORY_TARGET:
                lines.append(
                    f"{server}: {most / 2**20:.0f} MiB of anonymous memory at depth "
                    f"{MEMORY_DEPTH}, target <= {MEMORY_TARGET >> 20} MiB"
                )
        return lines

    def as_json(self) -> list[dict[str, object]]:
        """Every single figure."""
        return [self._row_json(row) for row in self.rows]

    def _ratio(
        self,
        row: Row,
        server: str,
        value: Callable[[Turn], float],
        best: Callable[[list[float]], float],
    ) -> Ratio | None:
        if server not in self.ours:
            return None
        by_server = self.turns.get(row.name, {})
        rounds = []
        for round_, turn in sorted(by_server.get(server, {}).items()):
            peers = [
                value(theirs[round_])
                for name, theirs in by_server.items()
                if name not in self.ours and round_ in theirs
            ]
            if peers and best(peers) > 0:
                rounds.append(value(turn) / best(peers))
        return Ratio(rounds) if rounds else None

    def _row_json(self, row: Row) -> dict[str, object]:
        servers: dict[str, object] = {}
        for name in self.servers(row):
            entry: dict[str, object] = {
                "rounds": [
                    {"round": round_, **asdict(turn.fio)}
                    | {
                        "cpu_us": turn.cpu_us,
                        "switches": turn.switches,
                        "anonymous": turn.anonymous,
                    }
                    for round_, turn in sorted(self.turns[row.name][name].items())
                ],
                "iops": self.median(row, name, iops),
                "mb_s": self.median(row, name, lambda turn: turn.fio.mb_s),
                "latency_us": self.median(row, name, lambda turn: turn.fio.latency_us),
                "cpu_us": self.median(row, name, cpu_us),
            }
            if name in self.ours:
                for key, ratio in (("wall", self.wall(row, name)), ("cpu", self.cpu(row, name))):
                    entry[f"{key}_ratio"] = ratio.rounds if ratio else None
                entry["misses"] = self.misses(row, name)
            servers[name] = entry
        return {"row": row.name, "cpu_target": row.cpu_target, "servers": servers}
