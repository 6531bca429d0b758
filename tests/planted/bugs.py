"""The list of bugs, as `bugs.txt` has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

LIST = Path(__file__).with_name("bugs.txt")


@attrs.frozen
class Bug:
    """One bug.

    Attributes:
        kind: what it is about.
        base: the driver, of `subjects.BASES`.
        by: a check that finds it, without "test_": the quick form runs that one alone.
        what: in words; unique.
        old: the part of the driver's source, which is there once.
        new: what stands there instead.
    """

    kind: str
    base: str
    by: str
    what: str
    old: str
    new: str


def _parsed(text: str) -> Iterator[Bug]:
    for part in text.split("\n== ")[1:]:
        head, *lines = part.split("\n")
        kind, base, by, what = (word.strip() for word in head.split(" / ", 3))
        old, new = ("\n".join(line[1:] for line in lines if line.startswith(mark)) for mark in "-+")
        yield Bug(kind, base, by, what, old, new)


BUGS = list(_parsed(LIST.read_text()))
