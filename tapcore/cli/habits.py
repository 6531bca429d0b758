"""What people type out of habit from qemu-img and qemu-nbd.

What can mean only one thing here is taken so; for the rest one line says the way. None of it is
shown in a command's help: there is one documented spelling for each thing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import click

from tapcore.cli.otherway import INSTEAD

Means = Callable[[click.Context, Any], None]

QEMU_NAMES: Final = {"vpc": "vhd", "file": "raw", "host_device": "raw"}
"""What QEMU calls formats that have another handle here."""

FORMAT_GIVEN: Final = "tapcore.format_given"
"""In a context's `meta`: the format that was named without an image."""


class Habit(NamedTuple):
    """An option of another program.

    Attributes:
        spellings: all of them mean the same.
        means: changes the values that the command gets.
        takes: a value follows it.
        refused: it means nothing here, whatever else is given, or missing.
    """

    spellings: tuple[str, ...]
    means: Means
    takes: bool = False
    refused: bool = False


class HabitOption(click.Option):
    """A hidden option; its value never reaches the command itself.

    Args:
        habit: what it stands for.
        number: makes its name another than those of the command's other ones.
    """

    def __init__(self, habit: Habit, number: int) -> None:
        self.means = habit.means
        super().__init__(
            [*habit.spellings, f"habit_{number}"],
            is_flag=not habit.takes,
            hidden=True,
            help="As in qemu-img.",
            is_eager=habit.refused,
            callback=_refuse if habit.refused else None,
        )


def _refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Before anybody misses an argument, which `qemu-nbd -d DEVICE` has none of."""
    if value and not ctx.resilient_parsing:
        assert isinstance(param, HabitOption)
        param.means(ctx, value)


def habit_options(command: click.Command) -> list[click.Parameter]:
    """The hidden options of a command: without what it has itself."""
    own = {opt for param in command.params for opt in param.opts}
    found: list[click.Parameter] = []
    for habit in (*HABITS.get(command.name or "", ()), *_instead_of(command.name or "")):
        left = tuple(spelling for spelling in habit.spellings if spelling not in own)
        if left:
            found.append(HabitOption(habit._replace(spellings=left), len(found)))
            own.update(left)
    return found


def apply_habits(ctx: click.Context) -> None:
    """Let what was given mean what it means; called when a command line has been parsed."""
    for param in ctx.command.params:
        if not isinstance(param, HabitOption):
            continue
        assert param.name is not None
        value = ctx.params.pop(param.name)
        if value is not None and value is not False:
            param.means(ctx, value)
    if (after := AFTER.get(ctx.command.name or "")) is not None:
        after(ctx)


def reordered(command: str, words: list[str]) -> list[str]:
    """A command's words where another program has its action in an option."""
    actions = _ACTIONS.get(command, {})
    at = next((at for at, word in enumerate(words) if word in actions), None)
    if at is None or not {"--", *actions.values()}.isdisjoint(words[:at]):
        return words
    action, others = actions[words[at]], [*words[:at], *words[at + 1 :]]
    if action in _NAMED and len(words) > at + 1:
        name = others.pop(at)  # it follows the option there, and the image here
        return [action, *others, name]
    return [action, *others]


_ACTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "bitmap": {
        f"--{action}": action for action in ("add", "remove", "clear", "enable", "disable", "merge")
    },
    "snapshot": {"-l": "list", "-c": "create", "-a": "apply", "-d": "delete"},
}
_NAMED: Final = ("create", "apply", "delete", "merge")
"""Actions of which the option takes a name."""


# ---- what they mean --------------------------------------------------------------------------


def _same_as(name: str) -> Means:
    """Another spelling of the command's own option of that name."""

    def means(ctx: click.Context, value: Any) -> None:
        param = next(param for param in ctx.command.params if param.name == name)
        if param.multiple:
            value = (value,)
        ctx.params[name] = param.process_value(ctx, value)

    return means


def _nothing(ctx: click.Context, value: Any) -> None:
    """What is so in any case."""


def _format_of(name: str, option: str) -> Means:
    """The format of the image, or images, in that argument."""

    def means(ctx: click.Context, handle: str) -> None:
        given = ctx.params[name]
        if not given:
            ctx.meta[FORMAT_GIVEN] = _known(ctx, option, handle)
            if name == "parent":
                raise click.UsageError(f"{option} is the format of a parent: it needs -b", ctx)
            return
        named = [given] if isinstance(given, str) else given
        found = tuple(_with_handle(ctx, option, handle, each) for each in named)
        ctx.params[name] = found[0] if isinstance(given, str) else found

    return means


def _known(ctx: click.Context, option: str, handle: str) -> str:
    from tapcore.errors import UnknownHandleError
    from tapcore.interface.registry import default_registry
    from tapcore.opening.names import RAW_FORMAT

    handle = QEMU_NAMES.get(handle, handle)
    if handle != RAW_FORMAT:
        try:
            default_registry().get(handle)
        except UnknownHandleError as exc:
            raise click.UsageError(f"{option}: {exc.message}", ctx) from None
    return handle


def _with_handle(ctx: click.Context, option: str, handle: str, image: str) -> str:
    from tapcore.interface.registry import default_registry
    from tapcore.opening.names import RAW_FORMAT

    handle = _known(ctx, option, handle)
    said, colon, _ = image.partition(":")
    if colon and (said == RAW_FORMAT or default_registry().knows(said)):
        if said != handle:
            raise click.UsageError(f"'{image}' says {said}, and {option} {handle}", ctx)
        return image
    return f"{handle}:{image}"


def _output(ctx: click.Context, value: str) -> None:
    if value not in ("json", "human"):
        raise click.UsageError(f"--output is json or human, not '{value}'", ctx)
    if value == "json":
        _same_as("as_json")(ctx, True)


def _measured_output(ctx: click.Context, value: str) -> None:
    """`measure --output` was the format here, and is what to print in qemu-img."""
    if value in ("json", "human"):
        return _output(ctx, value)
    ctx.params["handle"] = value
    return None


def _progress(ctx: click.Context, value: bool) -> None:
    """A bar is drawn on a terminal in any case; elsewhere they want to see something too."""
    if ctx.params["progress_style"] == "auto" and not sys.stderr.isatty():
        ctx.params["progress_style"] = "plain"


def _snapshot_named(ctx: click.Context, value: str) -> None:
    """`NAME`, `snapshot.name=NAME` or `snapshot.id=ID`."""
    for prefix in ("snapshot.name=", "snapshot.id="):
        value = value.removeprefix(prefix)
    ctx.params["snapshot"] = value


def _sparse_size(ctx: click.Context, value: str) -> None:
    """How long a run of zeroes has to be, to be left out: here the format's unit is."""
    from tapcore.errors import UsageError
    from tapcore.sizes import parse_size

    try:
        size = parse_size(value)
    except UsageError as exc:
        raise click.UsageError(f"-S: {exc.message}", ctx) from None
    if not size:
        raise click.UsageError("-S 0 is '-o preallocation=full' here", ctx)


def _coroutines(ctx: click.Context, value: str) -> None:
    if not value.isdecimal() or not 1 <= int(value[:4]) <= 16:
        raise click.UsageError(f"-m is a number from 1 to 16, not '{value}'", ctx)


def _safe_cache(ctx: click.Context, value: str) -> None:
    """The cache of one side of a copy: what is written is the same in every mode."""
    if value not in ("writeback", "unsafe"):
        raise click.UsageError(
            f"a cache mode '{value}' is not for this command: it goes through the page cache "
            "(--sync ends when the copy is on disk)",
            ctx,
        )


def _backing_options(ctx: click.Context) -> None:
    """`-o backing_file=PARENT,backing_fmt=FORMAT,size=SIZE` of `qemu-img create`."""
    options: dict[str, str] = ctx.params["options"]
    parent, handle = options.pop("backing_file", ""), options.pop("backing_fmt", "")
    if parent:
        if ctx.params["parent"]:
            raise click.UsageError("-b and -o backing_file both name a parent", ctx)
        ctx.params["parent"] = parent
    if handle:
        _format_of("parent", "backing_fmt")(ctx, handle)
    if "size" in options and ctx.params.get("size") is None and "size" in ctx.params:
        _same_as("size")(ctx, options.pop("size"))


def _other_way(option: str, text: str) -> Means:
    def means(ctx: click.Context, value: Any) -> None:
        raise click.UsageError(f"{option} is not an option here: {text}", ctx)

    return means


def _instead_of(command: str) -> list[Habit]:
    """The options for which a line says the way."""
    return [
        Habit(way.spellings, _other_way(way.spellings[-1], way.text), way.takes, refused=True)
        for way in INSTEAD.get(command, ())
    ]


_IMAGE = Habit(("-f", "--format"), _format_of("image", "-f"), takes=True)
_IMAGES = Habit(("-f", "--format"), _format_of("images", "-f"), takes=True)
_SOURCE = Habit(("-f", "--format"), _format_of("source", "-f"), takes=True)
_PARENT = Habit(("-F", "--backing-format"), _format_of("parent", "-F"), takes=True)
_JSON = Habit(("--output",), _output, takes=True)
_PROGRESS = Habit(("-p", "--progress-bar"), _progress)
_CACHE = Habit(("-t", "-T"), _safe_cache, takes=True)

HABITS: Final[Mapping[str, tuple[Habit, ...]]] = {
    "create": (_IMAGE, _PARENT, Habit(("--backing",), _same_as("parent"), takes=True)),
    "convert": (
        _SOURCE,
        Habit(("-O", "--target-format"), _format_of("target", "-O"), takes=True),
        Habit(("-B", "--backing"), _same_as("parent"), takes=True),
        _PARENT,
        _PROGRESS,
        Habit(("-l", "-s", "--snapshot-param"), _snapshot_named, takes=True),
        Habit(("-m", "--parallel"), _coroutines, takes=True),
        Habit(("-W", "--oob"), _nothing),
        Habit(("-C", "--copy-range"), _nothing),
        Habit(("-S", "--sparse-size"), _sparse_size, takes=True),
        _CACHE,
    ),
    "info": (
        _IMAGES,
        _JSON,
        Habit(("--backing-chain",), _same_as("chain")),
        Habit(("-U", "--force-share"), _nothing),
    ),
    "inspect": (_IMAGES, _JSON),
    "check": (
        _IMAGES,
        _JSON,
        Habit(("-r",), _same_as("repair"), takes=True),
        Habit(("-T",), _safe_cache, takes=True),
    ),
    "map": (_IMAGES, _JSON),
    "measure": (
        _SOURCE,
        Habit(("--output",), _measured_output, takes=True),
        Habit(("-l",), _snapshot_named, takes=True),
    ),
    "compare": (
        Habit(("-f",), _format_of("a", "-f"), takes=True),
        Habit(("-F",), _format_of("b", "-F"), takes=True),
        _PROGRESS,
        Habit(("-T",), _safe_cache, takes=True),
    ),
    "commit": (_IMAGE, _PROGRESS, Habit(("-t",), _safe_cache, takes=True)),
    "rebase": (
        _IMAGE,
        _PARENT,
        _PROGRESS,
        _CACHE,
        Habit(("--backing",), _same_as("parent"), takes=True),
    ),
    "resize": (_IMAGE,),
    "amend": (_IMAGE, Habit(("-p",), _nothing), Habit(("-t",), _safe_cache, takes=True)),
    "snapshot": (_IMAGE,),
    "bitmap": (
        _IMAGE,
        Habit(("-b", "--source-file"), _same_as("source_image"), takes=True),
    ),
    "bench": (_IMAGE, Habit(("-d",), _same_as("depth"), takes=True)),
    "serve": (
        _IMAGES,
        Habit(("-k",), _same_as("socket"), takes=True),
        Habit(("-p",), _same_as("port"), takes=True),
        Habit(("-b",), _same_as("bind"), takes=True),
        Habit(("-x", "--export-name"), _same_as("names"), takes=True),
        Habit(("-e", "--shared"), _same_as("max_connections"), takes=True),
        Habit(("-t", "--persistent"), _nothing),
        Habit(("-A", "--allocation-depth"), _nothing),
    ),
    "attach": (
        _IMAGE,
        _JSON,
        Habit(("-k", "--socket"), _same_as("nbd"), takes=True),
        Habit(("-p", "--port"), _same_as("nbd"), takes=True),
        Habit(("-x", "--export-name"), _same_as("name"), takes=True),
    ),
    "list": (_JSON,),
    "stats": (_JSON,),
}
"""By command. Its own options come first: what it has itself is no habit."""

AFTER: Final[Mapping[str, Callable[[click.Context], None]]] = {
    "create": _backing_options,
    "convert": _backing_options,
}
"""What is looked at when all the options of a command have been taken."""
