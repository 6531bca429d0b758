"""`tapdisk help`."""

from __future__ import annotations

import click

from tapcore.cli.options import tap_command


@tap_command("help")
@click.argument("name", metavar="[COMMAND]", default="")
@click.pass_context
def command(ctx: click.Context, name: str) -> None:
    """Show the help of tapdisk, or of one of its commands."""
    program = ctx.find_root()
    if not name:
        click.echo(program.get_help())
        return
    group = program.command
    assert isinstance(group, click.Group)
    called, found, _ = group.resolve_command(program, [name])
    assert found is not None
    with click.Context(found, program, called, **found.context_settings) as context:
        click.echo(found.get_help(context))
