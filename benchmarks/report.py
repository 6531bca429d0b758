"""The tables: with rich where it is installed, in plain text otherwise."""

from __future__ import annotations

from results import MEMORY_DEPTH, Results, cpu_us, iops
from startup import Start
from workloads import Row

_WIDTH = 180  # wider than any table here: a wrapped line is better than a cut figure


class Table:
    """Sections of rows: text first, then figures. A cell that starts with BELOW stands out."""

    def __init__(self, title: str, columns: list[str]) -> None:
        self.title = title
        self.columns = columns
        self.sections: list[list[list[str]]] = []

    def show(self) -> None:
        try:
            self._show_rich()
        except ImportError:
            self._show_plain()

    def _show_rich(self) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
        for section in self.sections:
            for cells in section:
                styled = [
                    Text(cell, style="bold red" if cell.startswith("BELOW") else "")
                    for cell in cells
                ]
                table.add_row(*styled)
            table.add_section()
        Console(width=_WIDTH, highlight=False).print(table)

    def _show_plain(self) -> None:
        rows = [self.columns, *(cells for section in self.sections for cells in section)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]

        def line(cells: list[str]) -> str:
            padded = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join(padded).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        print(f"\n{self.title}\n{line(self.columns)}")
        for section in self.sections:
            print(rule)
            for cells in section:
                print(line(cells))


def show_rows(results: Results) -> None:
    """A section for each row, with a line for each of its servers."""
    table = Table(
        "NBD: medians of the rounds; ratios are to the best peer of the same round (min-max)",
        ["row, server", *_FIGURES, "speed, ratio", "CPU, ratio", ""],
    )
    for row in results.rows:
        if section := _row_section(results, row):
            table.sections.append([[row.name, *[""] * (len(table.columns) - 1)], *section])
    if table.sections:
        table.show()


_FIGURES = ("speed", "CPU us/req", "switches/req", "anonymous", "fio CPU")


def figures(results: Results, row: Row, server: str) -> list[str]:
    """What was measured of a server in a row, as `_FIGURES` are named."""
    if row.in_bytes:
        speed = f"{results.median(row, server, lambda turn: turn.fio.mb_s):,.0f} MB/s"
    else:
        speed = f"{results.median(row, server, iops):,.0f} IOPS"
    return [
        speed,
        f"{results.median(row, server, cpu_us):,.1f}",
        f"{results.median(row, server, lambda turn: turn.switches):.2f}",
        _mib(results.median(row, server, lambda turn: turn.anonymous)),
        f"{results.median(row, server, lambda turn: turn.fio.client_cpu):.0f}%",
    ]


def _row_section(results: Results, row: Row) -> list[list[str]]:
    section = []
    for server in results.servers(row):
        wall, cpu = results.wall(row, server), results.cpu(row, server)
        mark = ""
        if wall is not None:
            mark = "BELOW" if results.misses(row, server) else "ok"
        ratios = [str(ratio or "") for ratio in (wall, cpu)]
        section.append([f"  {server}", *figures(results, row, server), *ratios, mark])
    return section


def show_memory(results: Results) -> None:
    """The most anonymous memory of each server."""
    table = Table("Anonymous memory", ["server", f"depth up to {MEMORY_DEPTH}", "all rows"])
    section = [
        [server, _mib(results.anonymous(server, MEMORY_DEPTH)), _mib(results.anonymous(server))]
        for server in results.seen()
    ]
    if section:
        table.sections.append(section)
        table.show()


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB" if size else "-"


def show_startup(starts: list[Start]) -> None:
    """What the command line takes."""
    table = Table("Start-up", ["command", "median", "over Python", "target", ""])
    table.sections.append(
        [
            [
                start.command,
                f"{start.median_ms:.0f} ms",
                "" if start.target_ms is None else f"{start.over_python_ms:+.0f} ms",
                "" if start.target_ms is None else f"+{start.target_ms:.0f} ms",
                "" if start.target_ms is None else "ok" if start.ok else "BELOW",
            ]
            for start in starts
        ]
    )
    table.show()
