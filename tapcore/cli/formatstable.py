"""The drivers that are installed, for a person: the table of `tapdisk formats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tapcore.cli.output import begun_list, print_line, print_table, terminal_columns
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.registry import default_registry
from tapcore.tools.formats import list_formats

if TYPE_CHECKING:
    from tapcore.interface.filters.parameters import FilterInfo

TABLE_COLUMNS: Final = 100
"""A terminal with fewer has no room for the table."""


def print_formats() -> None:
    """Every driver, and every filter by name."""
    _print_drivers(list_formats())
    if found := default_registry().filter_releases():
        rows = [(name, " ".join(release) or "-") for name, release in found.items()]
        print_table(("FILTER", "PACKAGE"), rows)


def _print_drivers(found: list[DiskInfo]) -> None:
    columns = terminal_columns()
    if not found:
        print_line("no driver is installed: pip install tap-aio, or another tap-* package")
    elif columns is not None and columns < TABLE_COLUMNS:
        _print_in_two_lines(found, columns)
    else:
        print_table(("HANDLE", "NAME", "PACKAGE", "CAN"), [_row(info) for info in found])


def _print_in_two_lines(found: list[DiskInfo], columns: int) -> None:
    """For a terminal that has no room for the table; `formats HANDLE` tells the rest."""
    indent = max(len(info.handle) for info in found) + 2
    for info in found:
        handle, name, package, can = _row(info)
        print_line(f"{handle:{indent}}{name}  {package}")
        words = can if info.error else begun_list(info.capabilities, columns - indent - 1)
        print_line(f"{'':{indent}}{words}")
    print_line()


def _row(info: DiskInfo) -> tuple[str, str, str, str]:
    package = package_of(info)
    if info.error:
        return info.handle, "(cannot be used)", package, f"error: {info.error}"
    return info.handle, info.name, package, ", ".join(info.capabilities)


def package_of(info: DiskInfo | FilterInfo) -> str:
    """The package it is from, with its version."""
    return f"{info.distribution} {info.version}".strip() or "-"
