"""`tapdisk new-plugin`."""

from __future__ import annotations

import click

from tapcore.cli.options import quiet_option, tap_command
from tapcore.cli.output import print_line
from tapcore.tools.newplugin import Door, new_plugin


@tap_command("new-plugin")
@click.argument("name")
@click.option("--simple", is_flag=True, help="A class with methods that may block (the default).")
@click.option("--map", "map_", is_flag=True, help="For a format with tables that is to be quick.")
@click.option("--hooks", is_flag=True, help="Every hook as a function of its own.")
@click.option("--read-only", is_flag=True, help="It reads images, and makes or changes none.")
@quiet_option
@click.pass_context
def command(
    ctx: click.Context,
    name: str,
    simple: bool,
    map_: bool,
    hooks: bool,
    read_only: bool,
    quiet: bool,
) -> None:
    """Write a package tap-NAME with a driver that works, for you to change.

    It installs, passes the test kit and a strict type checker, and serves; it has a README, a
    licence and a workflow for CI. NAME is the handle that users will type: at most 9 letters and
    digits. Nothing is fetched from the network.
    """
    given: dict[Door, bool] = {"simple": simple, "map": map_, "hooks": hooks}
    chosen = [door for door, taken in given.items() if taken]
    if len(chosen) > 1:
        raise click.UsageError(f"--{chosen[0]} and --{chosen[1]} do not go together", ctx)
    made = new_plugin(name, chosen[0] if chosen else "simple", read_only=read_only)
    if quiet:
        return
    for file in made.files:
        print_line(f"wrote {made.folder}/{file}")
    print_line("next:")
    for line in made.next_commands:
        print_line(f"    {line}")
