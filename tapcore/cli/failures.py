"""Every error as one line on standard error and an exit status; tracebacks only with `--debug`."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from tapcore.cli.later import when_loaded

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable
    from typing import TypeGuard

    import click

_MAX_LINE = 3000
_REMEMBERED = 1000
"""Lines of the log."""
_TRACEBACKS = "tapcore.tracebacks"
"""As `interface.distrust` has it, which need not be imported for that."""
_IN_USE = ("tapcore.engine", "tapcore.nbd")
"""Who logs while clients read and write."""


class Session:
    """What one run of the command line keeps.

    Attributes:
        debug: show tracebacks.
        as_json: errors are to be printed as JSON too, on standard output.
        error_status: exit status of an error; `compare` uses 1 for its answer.
    """

    __slots__ = ("as_json", "debug", "error_status")

    def __init__(self) -> None:
        self.as_json = False
        self.debug = False
        self.error_status = 1


class Stopped(KeyboardInterrupt):
    """A signal asked for an end.

    Args:
        signum: its number; the exit status is 128 more.
        finished: what was to be done is done all the same.
    """

    def __init__(self, signum: int, *, finished: bool = False) -> None:
        super().__init__(signum)
        self.signum = signum
        self.finished = finished


def report(exc: BaseException, session: Session) -> int:
    """Tell a person what went wrong.

    Args:
        exc: what was raised.
        session: of this run.

    Returns:
        The exit status.
    """
    if isinstance(exc, KeyboardInterrupt):
        import signal

        exc = exc if isinstance(exc, Stopped) else Stopped(signal.SIGINT)
        name = signal.Signals(exc.signum).name
        print_error(f"stopped by {name}" + (", with the work done" if exc.finished else ""))
        return 128 + exc.signum
    if isinstance(exc, BrokenPipeError):
        _forget_output()
        return session.error_status
    if _is_usage_error(exc):
        return _wrong_command_line(exc)
    if session.debug:
        print_traceback(exc)
    print_error(one_line(exc))
    if session.as_json:
        _print_json(exc, session.error_status)
    return session.error_status


def _print_json(exc: BaseException, status: int) -> None:
    """The error for a program that reads standard output: `docs/json.md` has the fields."""
    from tapcore.cli.output import print_json
    from tapcore.errors import TapError

    image = exc.image if isinstance(exc, TapError) else getattr(exc, "filename", None)
    found = {
        "error": one_line(exc),
        "image": image or None,
        "errno": getattr(exc, "errno", None),
        "exit_status": status,
    }
    with contextlib.suppress(OSError):
        print_json(found)
        sys.stdout.flush()


def one_line(exc: BaseException) -> str:
    """What went wrong, for a person."""
    from tapcore.errors import LostContentError, TapError, describe

    if isinstance(exc, LostContentError):
        return f"{exc} (convert --salvage copies what is left)"
    if isinstance(exc, TapError):
        return str(exc)
    if _is_clicks(exc):
        return exc.format_message()
    if isinstance(exc, OSError) and exc.errno is not None:
        return f"{exc.filename}: {describe(exc)}" if exc.filename is not None else describe(exc)
    if isinstance(exc, MemoryError):
        return "out of memory"
    return f"unexpected error: {describe(exc)} (--debug shows where)"


def _is_clicks(exc: BaseException) -> TypeGuard[click.ClickException]:
    """Whether it is of click, which need not have been imported."""
    parser = sys.modules.get("click")
    return parser is not None and isinstance(exc, parser.ClickException)


def _is_usage_error(exc: BaseException) -> TypeGuard[click.UsageError]:
    parser = sys.modules.get("click")
    return parser is not None and isinstance(exc, parser.UsageError)


def _wrong_command_line(exc: click.UsageError) -> int:
    """click's own text on one line; the help that click gives instead of a command stays whole."""
    import click

    message = exc.format_message()
    if isinstance(exc, click.MissingParameter):  # which lists choices one below the other
        message = " ".join(message.split())
    if "\n" in message.strip():
        click.echo(message, err=True)
        return exc.exit_code
    where = exc.ctx.command_path if exc.ctx is not None else "tapdisk"
    command = where.partition(" ")[2]
    place = f"{command}: " if command else ""
    message = message.rstrip(".")
    print_error(f"{place}{message} (see '{where} --help')")
    return exc.exit_code


def print_traceback(exc: BaseException) -> None:
    """Where it was raised, and where each that it stands for; also those that are hidden."""
    import traceback

    seen: set[int] = set()
    each: BaseException | None = exc
    while each is not None and id(each) not in seen:  # it may be its own cause
        seen.add(id(each))
        each.__suppress_context__ = each.__cause__ is not None
        each = each.__cause__ or each.__context__
    traceback.print_exception(exc)


def print_error(text: str) -> None:
    """`tapdisk: text` on standard error; nothing where that is closed."""
    from tapcore.errors import printable, shortened

    line = printable(shortened(text, _MAX_LINE), _MAX_LINE)
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()
    with contextlib.suppress(OSError):
        print(f"tapdisk: {line}", file=sys.stderr, flush=True)


def _forget_output() -> None:
    """Nobody reads standard output: the interpreter must not try once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def set_up_logging(level: str, session: Session) -> None:
    """Log to standard error in the same form as errors.

    Args:
        level: "debug", "info", "warning" or "error".
        session: whose `debug` shows tracebacks in the log too.
    """
    import logging

    end_logging()
    root = logging.getLogger()
    handler = logging.StreamHandler()
    handler.of_tapdisk = True  # type: ignore[attr-defined]
    timed = level in ("debug", "info")
    handler.setFormatter(_one_line_formatter(session, timed=timed))
    handler.addFilter(_once())
    root.addHandler(handler)
    root.setLevel(level.upper())
    if session.debug:
        logging.getLogger(_TRACEBACKS).setLevel(logging.DEBUG)


def set_up_logging_later(level: str, session: Session) -> None:
    """As `set_up_logging`, when somebody has something to tell: to load `logging` takes 3 ms."""
    import logging  # noqa: F401 -- perhaps put off

    when_loaded("logging", lambda: set_up_logging(level, session))


def end_logging() -> None:
    """Nothing is logged to a run's standard error after its end, when that may be closed."""
    logging = sys.modules.get("logging")
    root = None if logging is None else vars(logging).get("root")
    if logging is None or root is None:  # never used
        return
    for old in root.handlers[:]:
        if getattr(old, "of_tapdisk", False):
            root.removeHandler(old)
            old.close()
            logging.getLogger(_TRACEBACKS).setLevel(logging.NOTSET)  # of `--debug`


def _once() -> Callable[[logging.LogRecord], bool]:
    """A filter that lets each line about a file pass once, whatever names of it are used.

    A command opens the same image several times, and each time the same is found. What happens
    while disks are in use is told each time.
    """
    seen: set[tuple[str, ...]] = set()

    def is_new(record: logging.LogRecord) -> bool:
        if record.name.startswith(_IN_USE) or not isinstance(record.args, tuple):
            return True
        first, *rest = (str(each) for each in record.args or ("",))
        with contextlib.suppress(OSError, ValueError):  # it need not be a file's name
            first = os.path.realpath(first)
        told = (str(record.msg), first, *rest)
        if told in seen:
            return False
        if len(seen) < _REMEMBERED:
            seen.add(told)
        return True

    return is_new


def _one_line_formatter(session: Session, *, timed: bool) -> logging.Formatter:
    """Lines as those of errors; `timed`: what happens while clients read and write has its time."""
    import logging

    from tapcore.errors import describe, printable, shortened

    class OneLine(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if session.debug:
                return f"tapdisk: {super().format(record)}"
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text = f"{text}: {describe(record.exc_info[1])}"
            when = ""
            if timed and record.name.startswith(_IN_USE):
                when = f"{self.formatTime(record, '%H:%M:%S')}.{int(record.msecs):03} "
            return f"tapdisk: {when}{printable(shortened(text, _MAX_LINE), _MAX_LINE)}"

    return OneLine()
