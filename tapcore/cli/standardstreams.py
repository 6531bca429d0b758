"""The three standard streams: there from the start, and named where one fails."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, Final

_STREAMS: Final = (
    ("stdin", "r", os.O_WRONLY),
    ("stdout", "w", os.O_RDONLY),
    ("stderr", "w", os.O_RDONLY),
)


def open_standard_streams() -> None:
    """Where one was closed, an image would get its number, and what is printed would go there.

    What takes its number can be used in the wrong direction only: what was to come from there, or
    to go there, is an error, be it an image or text. An error that nobody can be told of is none.
    """
    for name, mode, wrong in _STREAMS:
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, wrong)  # takes the lowest free number: that stream's own
            how = "backslashreplace" if name == "stderr" else "surrogateescape"
            stream = open(fd, mode, encoding="utf-8", errors=how, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


@contextlib.contextmanager
def named_output() -> Iterator[None]:
    """While this is active, an error of printing says that it is one: no image is full.

    A character that the stream's encoding does not have is shown as what it is, `\\xe9`, as on
    standard error: a name in an image is no error.
    """
    before = sys.stdout
    if isinstance(before, io.TextIOWrapper) and before.encoding.lower() not in ("utf-8", "utf8"):
        before.reconfigure(errors="backslashreplace")
    output: Any = _Output(before)
    sys.stdout = output
    try:
        yield
        output.flush()  # here a full disk or a closed pipe can still be reported
    finally:
        sys.stdout = before


class _Output:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _saying_whose():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with _saying_whose():
            self._stream.flush()


@contextlib.contextmanager
def _saying_whose() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # nobody reads any more, which is no news
        raise
    except OSError as exc:
        from tapcore.errors import IOFailedError, describe

        raise IOFailedError(f"standard output: {describe(exc)}", errno=exc.errno) from exc
