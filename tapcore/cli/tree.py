"""A chain of images as a tree of plain text, child on top."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple


class Branches(NamedTuple):
    """What a tree is drawn with; all have the same length.

    Attributes:
        beside: in front of the lines of a node that has one below.
        below: in front of that one.
        blank: in front of the lines of a node that has none.
    """

    beside: str
    below: str
    blank: str


UNICODE: Final = Branches("│  ", "└─ ", "   ")
ASCII: Final = Branches("|  ", "`- ", "   ")


def branches_for(encoding: str | None) -> Branches:
    """The nicest ones that an output can show; an unknown encoding is taken for ASCII."""
    try:
        "".join(UNICODE).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def tree_lines(
    nodes: Sequence[tuple[str, Sequence[str]]], branches: Branches | None = None
) -> Iterator[str]:
    """Nodes that each have one child, the first on top.

    Args:
        nodes: of each the line that names it, and more lines.
        branches: None: what standard output can show.
    """
    branches = branches or branches_for(sys.stdout.encoding)
    indent = ""
    for number, (name, lines) in enumerate(nodes):
        if number:
            yield f"{indent}{branches.below}{name}"
            indent += branches.blank
        else:
            yield name
        last = number == len(nodes) - 1
        for line in lines:
            yield f"{indent}{branches.blank if last else branches.beside}{line}".rstrip()
