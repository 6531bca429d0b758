"""Sizes on a command line, and options that take one. Commands without any do not load this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    IntParam = click.ParamType[int]
    StrParam = click.ParamType[str]
else:  # before click 8.5 the class takes no argument
    IntParam = StrParam = click.ParamType


class Size(IntParam):
    """A size in bytes, `4096` or `64K` or `1.5G`.

    Args:
        whole_sectors: round up to a multiple of 512.
    """

    name = "size"

    def __init__(self, *, whole_sectors: bool = False) -> None:
        self._whole_sectors = whole_sectors

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        from tapcore.errors import UsageError
        from tapcore.sizes import disk_size, parse_size

        if isinstance(value, int):
            return value
        try:
            return disk_size(value) if self._whole_sectors else parse_size(value)
        except UsageError as exc:
            raise _not_a_size(exc.message, param, ctx) from None


class SizeChange(StrParam):
    """`SIZE`, `+N` or `-N`; stays text, since what it means depends on the disk."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, checked."""
        from tapcore.errors import UsageError
        from tapcore.sizes import parse_size

        text = str(value)
        try:
            parse_size(text[1:] if text[:1] in ("+", "-") else text)
        except UsageError as exc:
            raise _not_a_size(exc.message, param, ctx) from None
        return text


def _not_a_size(
    message: str, param: click.Parameter | None, ctx: click.Context | None
) -> click.UsageError:
    option = f"{param.opts[0]}: " if isinstance(param, click.Option) else ""
    return click.UsageError(f"{option}{message}", ctx)


metadata_cache_option = click.option(
    "--metadata-cache",
    type=Size(),
    metavar="SIZE",
    help="Memory for the tables of each image.  [default: the format's own]",
)
