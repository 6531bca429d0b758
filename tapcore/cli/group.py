"""The group of all commands: a command's module is imported when it is used, not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from tapcore import __version__
from tapcore.cli.options import HELP_SETTINGS, common_options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS: Final[Mapping[str, str]] = {
    "formats": "the drivers that are installed, and what each can do",
    "info": "what an image is",
    "inspect": "look at an image from a stranger, opening nothing else",
    "create": "make a new image",
    "convert": "copy an image's content to a new image of any format",
    "measure": "how large a new image would be",
    "map": "which ranges hold data, read as zeroes, or come from a parent",
    "check": "check the consistency of an image's metadata",
    "compare": "do two images have the same content?",
    "resize": "grow or shrink an image",
    "snapshot": "list, create, apply or delete internal snapshots",
    "bitmap": "list, add, clear, merge or remove persistent bitmaps",
    "commit": "fold an image's own data into its parent",
    "rebase": "give an image another parent",
    "amend": "change options of an image in place",
    "ls": "list the files inside an image",
    "cat": "print files that lie inside an image",
    "extract": "copy files and folders out of an image",
    "tree": "show the files inside an image as a tree",
    "serve": "serve images over NBD",
    "daemon": "serve many images, each in a process of its own",
    "attach": "let the daemon serve an image",
    "detach": "flush and close an image that the daemon serves",
    "list": "the images that the daemon serves",
    "stats": "what the images that the daemon serves have done",
    "dump-ring": "the state of the shared rings of an attached image",
    "pause": "let the clients of an attached image wait, and close it",
    "resume-io": "open a paused image again, and go on",
    "snapshot-live": "make a new child under an attached image",
    "commit-live": "fold an attached image into its parent",
    "swap": "another image in the place of an attached one",
    "resize-live": "grow or shrink an attached image",
    "reload": "let the daemon look for new drivers",
    "log-level": "what the daemon, or one disk's process, tells in its log",
    "bench": "drive an image in-process: IOPS, MB/s, latency",
    "plugins": "drivers and filters: what is installed, what is wrong with it",
    "new-plugin": "write a package with a driver, to begin with",
    "completion": "print the completion script of a shell",
    "help": "show the help of a command",
    "man": "show the man page of a command",
}
"""The module of that name in `tapcore.cli.commands` has the `command`; help needs no import."""


_ELSEWHERE: Final = {
    "dd": ": tapdisk convert copies a whole disk",
    "mount": ": tapdisk extract copies files out; nbdfuse or nbd-client mount what serve offers",
    "backup": ": tapdisk convert copies a disk, with -b only what differs from a parent",
}
"""What people type that is no command here, and what is instead."""


def _module_of(command: str) -> str:
    return command.replace("-", "")


class LazyGroup(click.Group):
    """A group that knows its commands by name, and loads the one that is asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without any argument the help is the error, in every version of click."""
        if not args and not ctx.resilient_parsing:
            raise click.UsageError(ctx.get_help())
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; its one line is the table's."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tapcore.cli.commands.{_module_of(cmd_name)}")
        command: click.Command = module.command
        command.short_help = COMMANDS[cmd_name]
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Commands from the table, without importing any; and options."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text)
            for name, text in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a typing error."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f", did you mean '{near[0]}'?" if near else _ELSEWHERE.get(args[0], "")
            ctx.fail(f"no such command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table above."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The epilog, and examples."""
        from tapcore.cli.examples import write_examples

        super().format_epilog(ctx, formatter)
        write_examples("", formatter)


@click.group(
    cls=LazyGroup,
    context_settings=HELP_SETTINGS,
    params=common_options(),
    epilog="An image is named [HANDLE:]PATH (aio:disk.img, ram:64M); without HANDLE the format is "
    "recognised. Sizes: bytes, or K M G T P. 'tapdisk COMMAND --help' tells more.",
)
@click.version_option(__version__, "--version", "-V", message="tapdisk %(version)s")
def tapdisk(**_: Any) -> None:
    """Read, write, convert and serve virtual disk images."""
