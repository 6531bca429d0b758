"""Hooks that all drivers of raw files share: the public name, for ever, of `formats.rawfile`."""

from tapcore.formats.rawfile import (
    CREATE_OPTIONS,
    td_close,
    td_create,
    td_extents,
    td_info,
    td_inspect,
    td_measure,
    td_places,
    td_resize,
    td_stream,
)

__all__ = [
    "CREATE_OPTIONS",
    "td_close",
    "td_create",
    "td_extents",
    "td_info",
    "td_inspect",
    "td_measure",
    "td_places",
    "td_resize",
    "td_stream",
]
