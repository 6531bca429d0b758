"""The drivers that are installed, for a person: the table of `tapdisk formats`."""

from __future__ import annotations

from tapcore.cli.output import print_line, print_table
from tapcore.interface.filters.parameters import FilterInfo
from tapcore.interface.models import DiskInfo
from tapcore.tools.formats import list_filters, list_formats


def print_formats() -> None:
    """Every driver, and every filter by name."""
    _print_drivers(list_formats())
    if found := list_filters(load=False):
        print_table(("FILTER", "PACKAGE"), [(info.name, package_of(info)) for info in found])


def _print_drivers(found: list[DiskInfo]) -> None:
    if found:
        print_table(("HANDLE", "NAME", "PACKAGE", "CAN"), [_row(info) for info in found])
    else:
        print_line("no driver is installed: pip install tap-aio, or another tap-* package")


def _row(info: DiskInfo) -> tuple[str, str, str, str]:
    package = package_of(info)
    if info.error:
        return info.handle, "(cannot be used)", package, f"error: {info.error}"
    return info.handle, info.name, package, ", ".join(info.capabilities)


def package_of(info: DiskInfo | FilterInfo) -> str:
    """The package it is from, with its version."""
    return f"{info.distribution} {info.version}".strip() or "-"
