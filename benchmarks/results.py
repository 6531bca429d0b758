"""Turns into medians and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from workloads import LATENCY_TARGET, THROUGHPUT_TARGET, FioResult, Row

RSS_TARGET = 80 << 20  # of a server of ours, at depth 32
RSS_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """One server's run of one row in one round."""

    fio: FioResult
    cpu_us: float  # the server's, a request
    peak_rss: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours to the best peer, of each round that both have."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        text = f"{self.median:.2f}x"
        if len(self.rounds) > 1:
            text += f" ({min(self.rounds):.2f}-{max(self.rounds):.2f})"
        return text


@dataclass
class Results:
    """Everything measured. `turns` is by row name, server name and round."""

    rows: list[Row]
    ours: list[str]
    turns: dict[str, dict[str, dict[int, Turn]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, row: Row, server: str, round_: int, turn: Turn) -> None:
        self.turns.setdefault(row.name, {}).setdefault(server, {})[round_] = turn

    def servers(self, row: Row) -> list[str]:
        return list(self.turns.get(row.name, {}))

    def median(self, row: Row, server: str, value: Callable[[Turn], float]) -> float:
        return statistics.median(value(turn) for turn in self.turns[row.name][server].values())

    def throughput(self, row: Row, server: str) -> Ratio | None:
        """More than 1 is better."""
        return self._ratio(row, server, lambda turn: turn.fio.iops, max)

    def latency(self, row: Row, server: str) -> Ratio | None:
        """Less than 1 is better."""
        return self._ratio(row, server, lambda turn: turn.fio.latency_us, min)

    def cpu(self, row: Row, server: str) -> Ratio | None:
        """Less than 1 is better."""
        return self._ratio(row, server, lambda turn: turn.cpu_us, min)

    def judged(self, row: Row, server: str) -> Ratio | None:
        """The ratio that the row's target is about."""
        return self.latency(row, server) if row.judges_latency else self.throughput(row, server)

    def holds(self, row: Row, server: str) -> bool | None:
        """Does the server reach the row's target? None where nothing can be said."""
        ratio = self.judged(row, server)
        if ratio is None:
            return None
        if row.judges_latency:
            return ratio.median <= LATENCY_TARGET
        return ratio.median >= THROUGHPUT_TARGET

    def peak_rss(self, server: str, depth: int | None = None) -> int:
        """The peak over the rows (of one depth); 0 where there were none."""
        return max(
            (
                turn.peak_rss
                for row in self.rows
                if depth is None or row.depth == depth
                for turn in self.turns.get(row.name, {}).get(server, {}).values()
            ),
            default=0,
        )

    def seen(self) -> list[str]:
        """The servers with any result, in the order of their first turn."""
        return list(dict.fromkeys(name for by in self.turns.values() for name in by))

    def below(self) -> list[str]:
        """What misses its target, a line each."""
        lines = []
        for row in self.rows:
            for server in self.servers(row):
                if self.holds(row, server) is False:
                    what, aim = (
                        ("latency", f"<= {LATENCY_TARGET:.1f}x")
                        if row.judges_latency
                        else ("throughput", f">= {THROUGHPUT_TARGET:.1f}x")
                    )
                    ratio = self.judged(row, server)
                    lines.append(f"{row.name}, {server}: {what} {ratio}, target {aim}")
        for server in self.ours:
            if (rss := self.peak_rss(server, RSS_DEPTH)) > RSS_TARGET:
                lines.append(
                    f"{server}: {rss / 2**20:.0f} MiB at depth {RSS_DEPTH}, "
                    f"target <= {RSS_TARGET >> 20} MiB"
                )
        return lines

    def as_json(self) -> list[dict[str, object]]:
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
                    | {"cpu_us": turn.cpu_us, "peak_rss": turn.peak_rss}
                    for round_, turn in sorted(self.turns[row.name][name].items())
                ],
                "iops": self.median(row, name, lambda turn: turn.fio.iops),
                "mb_s": self.median(row, name, lambda turn: turn.fio.mb_s),
                "latency_us": self.median(row, name, lambda turn: turn.fio.latency_us),
                "cpu_us": self.median(row, name, lambda turn: turn.cpu_us),
            }
            if name in self.ours:
                for key, ratio in (
                    ("throughput_ratio", self.throughput(row, name)),
                    ("latency_ratio", self.latency(row, name)),
                    ("cpu_ratio", self.cpu(row, name)),
                ):
                    entry[key] = ratio.median if ratio else None
                entry["holds"] = self.holds(row, name)
            servers[name] = entry
        return {"row": row.name, "group": row.group, "servers": servers}
