"""Which requests a filter is about: `op=read+write`."""

from __future__ import annotations

from typing import Annotated, Final

from tapcore import TextForm

ALL: Final = ("read", "write", "flush", "discard", "zero", "compressed")


def read_operations(text: str) -> frozenset[str]:
    """Names with `+` between them."""
    names = frozenset(text.split("+"))
    if not names <= set(ALL):
        raise ValueError(f"'{text}' is not made of {', '.join(ALL)} with + between them")
    return names


Operations = Annotated[frozenset[str], TextForm("read+write+...", read_operations)]
