"""Pictures on the terminal and into files."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence

from tapcore.errors import UsageError, printable
from tapcore.interface.identity import same_file

Line = list[tuple[str, str]]
"""Pieces of text, each with a style of rich's."""

_BESIDE = 12  # lines of the terminal for the prompt, the title and the legend
_LEAST, _MOST = 8, 32
_ELSEWHERE = 24


def drawing_area() -> tuple[int, int]:
    """Columns of the output, and the lines that a picture may have on it."""
    columns, lines = shutil.get_terminal_size()
    if not sys.stdout.isatty():
        return columns, _ELSEWHERE
    return columns, min(max(lines - _BESIDE, _LEAST), _MOST)


def print_styled(lines: Sequence[Line]) -> None:
    """Print, in colour on a terminal that has it; text from images is made safe."""
    safe = [[(printable(text, len(text)), style) for text, style in line] for line in lines]
    if not sys.stdout.isatty():
        for line in safe:
            print("".join(text for text, _ in line).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in safe:
        console.print(Text.assemble(*line), no_wrap=True, overflow="crop")


@contextlib.contextmanager
def claim_file(
    path: str, *, force: bool, never: Sequence[str]
) -> Iterator[Callable[[str], object]]:
    """A file to be written at the end of some work; that it may be is told before.

    Args:
        path: of the file.
        force: replace one that exists.
        never: files that are not replaced all the same.

    Yields:
        What writes its content. A file that could not be written whole is removed.

    Raises:
        UsageError: it exists.
        OSError: it cannot be written.
    """
    if os.path.lexists(path):
        if not force:
            raise UsageError("exists already; --force replaces it", image=path, errno=errno.EEXIST)
        if any(same_file(path, name) for name in never):
            raise UsageError("is the image, or one of its parents", image=path)

    def write(text: str) -> None:
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except BaseException:
                os.unlink(path)
                raise

    yield write
