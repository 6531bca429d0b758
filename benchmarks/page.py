"""The figures as a part of a Markdown page, and a picture of the ratios beside it."""

from __future__ import annotations

import time
from pathlib import Path

import chart
from report import figures
from results import Results

BEGIN, END = "<!-- figures: `make bench` writes them -->\n", "<!-- end of the figures -->\n"
PICTURE = Path("pictures") / "benchmarks.svg"
"""Beside the page."""


def check(path: Path) -> None:
    """Raise ValueError where a page has no place for the figures, before they are measured."""
    _parts(path.read_text())


def renew(path: Path, results: Results, host: dict[str, object], how: str) -> None:
    """Put the figures into a page, in place of older ones.

    Args:
        path: of the page.
        results: of a run.
        host: what it ran on.
        how: it was measured.
    """
    head, tail = _parts(path.read_text())
    picture = path.parent / PICTURE
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(chart.svg(results))
    path.write_text("".join([head, BEGIN, *_figures(results, host, how), END, tail]))


def _parts(text: str) -> tuple[str, str]:
    head, begun, rest = text.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page has no line {BEGIN.strip()}, or no {END.strip()}")
    return head, tail


def _figures(results: Results, host: dict[str, object], how: str) -> list[str]:
    versions = host["versions"]
    assert isinstance(versions, dict)
    said = "; ".join(f"{name}: {_plain(version)}" for name, version in versions.items())
    lines = [
        "",
        f"{time.strftime('%Y-%m-%d')}, {host['cpus']} processors, Linux {host['kernel']}, {how}; "
        f"{host['load']:.1f} processes wanted a processor when it began.",
        f"{said}.",
        "",
        f"![CPU time and speed beside the best peer]({PICTURE})",
        "",
        "| row | server | speed | CPU us/request | switches/request | anonymous memory "
        "| speed to best peer | CPU to best peer |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results.rows:
        name = f"`{row.name}`"
        for server in results.servers(row):
            ours = server in results.ours
            ratios = [results.wall(row, server), results.cpu(row, server)]
            bold = "**" if ours else ""
            cells = [name, f"{bold}{server}{bold}", *figures(results, row, server)[:-1]]
            cells += [str(ratio or "") for ratio in ratios]
            lines.append(f"| {' | '.join(cells)} |")
            name = ""
    if below := results.below():
        lines += ["", "Short of a target in this run:", "", *(f"- {line}" for line in below)]
    return [f"{line}\n" for line in [*lines, ""]]


def _plain(version: object) -> str:
    """Without what would be markup, and without the folders of a program."""
    text = str(version).replace("|", "").replace("<", "").replace(">", "").split(" (")[0]
    return " ".join(word.rpartition("/")[2] for word in text.split())
