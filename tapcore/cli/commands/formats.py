"""`tapdisk formats`."""

from __future__ import annotations

import click

from tapcore.cli.formatstable import TABLE_COLUMNS, package_of, print_formats
from tapcore.cli.options import completes, json_option, session_of, tap_command
from tapcore.cli.output import print_json, print_line, print_table, terminal_columns
from tapcore.interface.filters.parameters import FilterInfo
from tapcore.tools.formats import filter_as_dict, format_as_dict, list_filters, list_formats


@tap_command("formats")
@click.argument("handle", required=False, shell_complete=completes("handle"))
@click.option(
    "--long",
    is_flag=True,
    help="All about one driver, its hooks too; as HANDLE alone does.",
)
@click.option(
    "--filters",
    is_flag=True,
    help="List the filters instead, with what each can be told.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context, handle: str | None, long: bool, filters: bool, as_json: bool
) -> None:
    """List the drivers that are installed, and what each can do; and the filters.

    A driver is a package of its own (tap-aio, tap-ram ...), found once it is installed. One that
    cannot be used is listed with its error; the others still work. 'tapdisk plugins doctor' loads
    every one, and tells more.
    """
    if (long and handle is None) or (handle is not None and filters):
        raise click.UsageError("--long is about one driver: it needs its HANDLE", ctx)
    if handle is not None:
        from tapcore.cli.formatdetails import print_details

        print_details(handle, as_json=as_json)
    elif as_json:
        print_json(
            [filter_as_dict(info) for info in list_filters()]
            if filters
            else [format_as_dict(info) for info in list_formats()]
        )
    elif filters:
        _print_filters(list_filters())
    else:
        print_formats()
    if session_of(ctx).debug:
        _print_tracebacks()


def _print_filters(found: list[FilterInfo]) -> None:
    columns = terminal_columns()
    if found and columns is not None and columns < TABLE_COLUMNS:
        import textwrap

        for info in found:
            name, does, package, takes = _filter_row(info)
            print_line(f"{name}: {does}  {package}")
            for line in textwrap.wrap(takes, columns - 4, break_on_hyphens=False):
                print_line(f"    {line}")
    elif found:
        header = ("FILTER", "DOES", "PACKAGE", "TAKES")
        print_table(header, [_filter_row(info) for info in found])
    else:
        print_line("no filter is installed: pip install tap-filters")


def _filter_row(info: FilterInfo) -> tuple[str, str, str, str]:
    package = package_of(info)
    if info.error:
        return info.name, "(cannot be used)", package, f"error: {info.error}"
    return info.name, info.title, package, ", ".join(map(str, info.parameters)) or "-"


def _print_tracebacks() -> None:
    """Of drivers that raised when they were loaded."""
    import traceback

    from tapcore.interface.registry import default_registry

    for row in default_registry().rows():
        if row.cause is not None:
            traceback.print_exception(row.cause)
