"""Options and arguments that commands share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from tapcore.cli.failures import Session, set_up_logging_later

if TYPE_CHECKING:
    from tapcore.interface.keys import Keys
    from tapcore.interface.policy import ReferencePolicy

F = TypeVar("F", bound=Callable[..., Any])

HELP_SETTINGS: Final[dict[str, Any]] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


# ---- what every command takes ---------------------------------------------------------------


def common_options() -> list[click.Parameter]:
    """`--log-level`, `--debug` and `--no-plugin`, before and after the command's name."""
    return [
        click.Option(
            ["--log-level"],
            type=click.Choice(LOG_LEVELS, case_sensitive=False),
            expose_value=False,
            is_eager=True,
            callback=_note_log_level,
            help="What to tell on standard error.  [default: warning]",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_note_debug,
            help="Show a traceback with an error.",
        ),
        click.Option(
            ["--no-plugin"],
            multiple=True,
            expose_value=False,
            is_eager=True,
            callback=_note_left_out,
            shell_complete=completes("handle"),
            metavar="NAME",
            help="Leave a driver out, by its handle or package. Repeatable.",
        ),
    ]


def _note_log_level(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        ctx.find_root().meta["tapcore.log_level"] = value


def _note_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        session_of(ctx).debug = True


def _note_left_out(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> None:
    ctx.find_root().meta.setdefault("tapcore.no_plugin", []).extend(names)


@contextlib.contextmanager
def _leaving_out(names: list[str]) -> Iterator[None]:
    """Whoever asks for the drivers that are installed is not told of these."""
    if not names:
        yield
        return
    from tapcore.interface.registry import Registry, set_default_registry
    from tapcore.interface.selection import Selection

    before = set_default_registry(Registry(selection=Selection.of_environment(names)))
    try:
        yield
    finally:
        set_default_registry(before)


def _note_json(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """An error is JSON as well then."""
    session_of(ctx).as_json = session_of(ctx).as_json or value
    return value


def json_has_begun() -> None:
    """From now on an error can no longer be JSON on standard output."""
    session_of(click.get_current_context()).as_json = False


def session_of(ctx: click.Context) -> Session:
    """The run's state."""
    return ctx.ensure_object(Session)


class TapCommand(click.Command):
    """A command with the common options, which sets up logging before it runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(common_options())
        from tapcore.cli.habits import habit_options  # not for --version and the like

        self.params.extend(habit_options(self))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The words of the command line; what qemu-img would understand means the same here."""
        from tapcore.cli.habits import apply_habits, reordered

        try:
            rest = super().parse_args(ctx, reordered(self.name or "", args))
        except click.NoSuchOption as exc:
            hidden = {opt for param in self.params for opt in param.opts if _is_hidden(param)}
            near = [each for each in exc.possibilities or () if each not in hidden]
            raise click.NoSuchOption(exc.option_name, possibilities=near, ctx=exc.ctx) from None
        apply_habits(ctx)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        level = ctx.find_root().meta.get("tapcore.log_level", "warning")
        set_up_logging_later(level, session_of(ctx))
        with _leaving_out(ctx.find_root().meta.get("tapcore.no_plugin", [])):
            return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, at the end of the help."""
        from tapcore.cli.examples import write_examples

        super().format_epilog(ctx, formatter)
        write_examples(self.name or "", formatter)


def _is_hidden(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and param.hidden


def tap_command(name: str, **settings: Any) -> Callable[[Callable[..., Any]], TapCommand]:
    """A decorator: the function becomes the command; an int that it returns is the exit status."""
    context = {**HELP_SETTINGS, **settings.pop("context_settings", {})}
    return click.command(name, cls=TapCommand, context_settings=context, **settings)


# ---- values ----------------------------------------------------------------------------------


def _policy(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> ReferencePolicy:
    """What the values of `--parents` mean; without any what is set once for all commands."""
    from tapcore.cli.settings import parents_set
    from tapcore.interface.policy import ReferencePolicy

    return ReferencePolicy.from_words(words or parents_set())


def _own_policy(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> ReferencePolicy:
    """What the values of `--parents` mean, and nothing else."""
    from tapcore.interface.policy import ReferencePolicy

    return ReferencePolicy.from_words(words)


def _keys(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> Keys | None:
    """The passphrases that the values of `--key-file` name; reads the files."""
    if not words or ctx.resilient_parsing:
        return None
    from tapcore.interface.keys import Keys

    return Keys.from_words(words)


# ---- completion ------------------------------------------------------------------------------

Complete = Callable[[click.Context, click.Parameter, str], list[Any]]


def completes(kind: str) -> Complete:
    """What a shell offers for a value.

    Args:
        kind: "image", "handle", "filter", "file", "directory", "key_file", "parents": of
            `tapcore.cli.candidates`.
    """

    def items(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from tapcore.cli import candidates

        found: list[Any] = getattr(candidates, f"{kind}_items")(incomplete)
        return found

    return items


def _option_items(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """The options of the format that the command line names so far."""
    from tapcore.cli.candidates import format_option_items, named_image

    image = named_image(ctx)
    amending = ctx.info_name == "amend"
    return list(format_option_items(image, incomplete, amending=amending)) if image else []


# ---- decorators ------------------------------------------------------------------------------


def image_argument(name: str = "image", **settings: Any) -> Callable[[F], F]:
    """An image's name; existence is checked by whoever opens it."""
    settings.setdefault("metavar", name.upper())
    settings.setdefault("shell_complete", completes("image"))
    return click.argument(name, **settings)


def _parents_option(policy: Callable[..., ReferencePolicy]) -> Callable[[F], F]:
    return click.option(
        "--parents",
        multiple=True,
        callback=policy,
        shell_complete=completes("parents"),
        metavar="DIR|any|none",
        help="Where a file that an image names (parent, data file, extent) may lie, besides the "
        "directory tree of the image itself; HANDLE: allows a parent that is no file. Repeatable.",
    )


parents_option = _parents_option(_policy)
strangers_parents_option = _parents_option(_own_policy)

key_file_option = click.option(
    "--key-file",
    "keys",
    multiple=True,
    callback=_keys,
    shell_complete=completes("key_file"),
    metavar="[IMAGE=]FILE",
    help="The passphrase of encrypted images, or of one IMAGE of the chain: the content of FILE "
    "without a newline at its end. Repeatable.",
)


def opening_options(function: F) -> F:
    """What every command takes that opens an image; the function gets it as `access`."""

    @functools.wraps(function)
    def with_access(*args: Any, parents: Any, keys: Any, **others: Any) -> Any:
        from tapcore.interface.access import Access

        return function(*args, access=Access(parents, keys), **others)

    return cast("F", parents_option(key_file_option(with_access)))


ring_option = click.option(
    "--ring",
    metavar="SOCKET",
    default="",
    shell_complete=completes("file"),
    help="Serve one image through Xen's ring of shared memory as well, to front ends that come to "
    "this Unix socket (mode 0600).",
)

cache_option = click.option(
    "--cache",
    type=click.Choice(("writeback", "none")),
    default="writeback",
    show_default=True,
    help="Through the page cache, or past it with O_DIRECT and Linux AIO.",
)

filter_option = click.option(
    "--filter",
    "filters",
    multiple=True,
    shell_complete=completes("filter"),
    metavar="NAME[:KEY=VALUE,...]",
    help="A filter around the image's driver; `tapdisk formats --filters` lists them. Repeatable: "
    "the first is the outermost.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json, help="Print JSON."
)

progress_option = click.option(
    "--progress",
    "progress_style",
    type=click.Choice(("auto", "plain", "json", "none")),
    default="auto",
    help="A bar on a terminal and nothing elsewhere, a line a second, the same as JSON, or "
    "nothing.  [default: auto]",
)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")

salvage_option = click.option(
    "--salvage",
    is_flag=True,
    help="Go on where an image is damaged: what cannot be read is taken as zeroes, and listed.",
)

force_option = click.option("--force", is_flag=True, help="Replace an image that exists.")

parent_option = click.option(
    "-b",
    "--parent",
    shell_complete=completes("image"),
    metavar="PARENT",
    default="",
    help="Make a copy-on-write child of this image; a relative path counts from the new image's "
    "directory.",
)


def format_options(function: F) -> F:
    """`-o KEY=VALUE`, as a dict."""
    return click.option(
        "-o",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_key_values,
        shell_complete=_option_items,
        help="An option of the format; '-o help' lists them. Several: repeat it, or separate them "
        "by commas (',,' is a comma in a value).",
    )(function)


def _key_values(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        for item in value.replace(",,", "\0").split(","):
            key, equals, text = item.replace("\0", ",").partition("=")
            if key in ("help", "?") and not equals:
                found["help"] = ""
                continue
            if not key or not equals:
                raise click.BadParameter(f"'{item}' is not KEY=VALUE", ctx, param)
            found[key] = text
    return found
