"""`tapdisk plugins`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from tapcore.cli.options import completes, json_option, session_of, tap_command
from tapcore.cli.output import print_json, print_line, print_table
from tapcore.tools.plugins import (
    Diagnosis,
    Plugin,
    examine_plugins,
    list_plugins,
    manifest_of,
    need_of,
)


@tap_command("plugins")
@click.argument(
    "action", type=click.Choice(("list", "doctor", "manifest")), metavar="list|doctor|manifest"
)
@click.argument("names", nargs=-1, metavar="[FILE|HANDLE]...", shell_complete=completes("file"))
@json_option
@click.pass_context
def command(ctx: click.Context, action: str, names: tuple[str, ...], as_json: bool) -> int | None:
    """List what is installed of drivers and filters; find out what is wrong with it.

    'doctor' loads every one of them and tells what its user or its author has to do; with --debug
    also where an error comes from. Exit status 1: one cannot be used. 'doctor FILE...' tells which
    driver each file needs; exit status 1: one has none. 'manifest HANDLE' is for a driver's author:
    it prints the manifest of the package that brings it.
    """
    if action == "manifest":
        if len(names) != 1:
            raise click.UsageError("'manifest' needs one HANDLE", ctx)
        click.echo(manifest_of(names[0]), nl=False)
        return None
    if action == "doctor":
        if names:
            return _print_needs(names, as_json=as_json)
        return _print_diagnoses(examine_plugins(), as_json=as_json, debug=session_of(ctx).debug)
    if names:
        raise click.UsageError("'list' takes no names", ctx)
    _print_list(list_plugins(), as_json=as_json)
    return None


def _print_list(plugins: Sequence[Plugin], *, as_json: bool) -> None:
    if as_json:
        print_json([plugin.as_dict() for plugin in plugins])
        return
    if not plugins:
        print_line("nothing is installed: pip install tap-aio, or another tap-* package")
        return
    rows = [(each.kind, each.name, _release(each), each.module, _state(each)) for each in plugins]
    print_table(("KIND", "NAME", "PACKAGE", "MODULE", "STATE"), rows)


def _release(plugin: Plugin) -> str:
    return f"{plugin.distribution} {plugin.version}".strip() or "-"


def _state(plugin: Plugin) -> str:
    return f"error: {plugin.error}" if plugin.error else "ok"


def _print_diagnoses(found: Sequence[Diagnosis], *, as_json: bool, debug: bool) -> int:
    broken = [each for each in found if each.problems]
    if as_json:
        print_json([each.as_dict() for each in found])
        return bool(broken)
    for each in found:
        plugin = each.plugin
        print_line(f"{plugin.kind} {plugin.name} ({_release(plugin)}, {plugin.module})")
        for text in each.problems:
            print_line(f"    cannot be used: {text}")
        for text in each.remarks:
            print_line(f"    works, but {text}")
        if debug and each.cause is not None:
            _print_traceback(each.cause)
    text = f"{len(broken)} cannot be used" if broken else "all can be used"
    print_line(f"{len(found)} plugins, {text}")
    return bool(broken)


def _print_traceback(exc: BaseException) -> None:
    import traceback

    traceback.print_exception(exc)


def _print_needs(files: Sequence[str], *, as_json: bool) -> int:
    needs = [need_of(file) for file in files]
    if as_json:
        print_json([need.as_dict() for need in needs])
    else:
        for need in needs:
            print_line(
                f"{need.file}: {need.handle}, {need.text}"
                if need.handle
                else f"{need.file}: {need.text}"
            )
    return not all(need.handle for need in needs)
