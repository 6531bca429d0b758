"""`tapdisk formats`."""

from __future__ import annotations

import click

from tapcore.cli.options import json_option, tap_command
from tapcore.cli.output import print_json, print_line, print_table
from tapcore.interface.filters.parameters import FilterInfo
from tapcore.interface.models import DiskInfo
from tapcore.tools.formats import filter_as_dict, format_as_dict, list_filters, list_formats


@tap_command("formats")
@click.option(
    "--filters",
    is_flag=True,
    help="List the filters instead, with what each can be told.",
)
@json_option
def command(filters: bool, as_json: bool) -> None:
    """List the drivers that are installed, and what each can do; and the filters.

    A driver is a package of its own (tap-aio, tap-ram ...), found once it is installed. One that
    fails to load is listed with its error; the others still work.
    """
    if as_json:
        print_json(
            [filter_as_dict(info) for info in list_filters()]
            if filters
            else [format_as_dict(info) for info in list_formats()]
        )
        return
    if filters:
        _print_filters(list_filters())
        return
    _print_formats(list_formats())
    if found := list_filters(load=False):
        print_table(("FILTER", "PACKAGE"), [(info.name, _package(info)) for info in found])


def _print_formats(found: list[DiskInfo]) -> None:
    if found:
        print_table(("HANDLE", "NAME", "PACKAGE", "CAN"), [_row(info) for info in found])
    else:
        print_line("no driver is installed: pip install tap-aio, or another tap-* package")


def _row(info: DiskInfo) -> tuple[str, str, str, str]:
    package = _package(info)
    if info.error:
        return info.handle, "(failed to load)", package, f"error: {info.error}"
    return info.handle, info.name, package, ", ".join(info.capabilities)


def _print_filters(found: list[FilterInfo]) -> None:
    if found:
        header = ("FILTER", "DOES", "PACKAGE", "TAKES")
        print_table(header, [_filter_row(info) for info in found])
    else:
        print_line("no filter is installed: pip install tap-filters")


def _package(info: DiskInfo | FilterInfo) -> str:
    return f"{info.distribution} {info.version}".strip() or "-"


def _filter_row(info: FilterInfo) -> tuple[str, str, str, str]:
    package = _package(info)
    if info.error:
        return info.name, "(cannot be used)", package, f"error: {info.error}"
    return info.name, info.title, package, ", ".join(map(str, info.parameters)) or "-"
