"""A row of the table: how a format shows itself, what it is called, and what to do with a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tapcore.formats.foreign.sample import Sample


class Signature(NamedTuple):
    """One format.

    Attributes:
        code: a word for programs; never changes.
        name: with its article, after "is".
        magics: any of these bytes, each at its offset: from the start, or (negative) from the end.
        also: what must hold besides.
        image: of a disk, so that a driver for it could be; no archive or the like.
        remedy: what to do, for people.
        handle: of the driver that reads it; "" where there is none that is known of.
        suffixes: of files of this format and of no other; in small letters.
        plain_names: what files with such a suffix are called that hold a plain disk.
        names_file: whether such a file names another one, which other programs would open.
        unpacked_by: handle of the driver that reads a raw disk in such a file; "" where none does.
        raw: is a raw disk all the same, and it is enough to say so.
    """

    code: str
    name: str
    magics: tuple[tuple[int, bytes], ...]
    also: Callable[[Sample], bool] | None = None
    image: bool = True
    remedy: str = ""
    handle: str = ""
    suffixes: tuple[str, ...] = ()
    plain_names: str = ""
    names_file: Callable[[Sample], bool] | None = None
    unpacked_by: str = ""
    raw: bool = False

    @property
    def distribution(self) -> str:
        """What to install for its driver; "" where there is none that is known of."""
        return f"tap-{self.handle}" if self.handle else ""

    @property
    def advice(self) -> str:
        """What is, and what to do: in a sentence for people."""
        if self.handle:
            return f"{self.name}: pip install {self.distribution}"
        parts = [self.name + ("; no driver for it is installed" if self.image else ""), self.remedy]
        return ": ".join(filter(None, parts))

    def matches(self, sample: Sample) -> bool:
        """Whether a file is of this format."""
        for offset, magic in self.magics:
            if sample.has(offset, magic):
                return self.also is None or self.also(sample)
        return False


def at_start(*magics: bytes) -> tuple[tuple[int, bytes], ...]:
    """Magics with which a file begins."""
    return tuple((0, magic) for magic in magics)
