"""manpages.py DIRECTORY: write the man pages of tapdisk and of each of its commands there.

They are made from the command line's own description: what `--help` shows is what they say.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from tapcore import __version__
from tapcore.cli.examples import EXAMPLES
from tapcore.cli.group import COMMANDS, tapdisk

EXIT_STATUS = (
    ("0", "Done."),
    ("1", "It could not be done; one line on standard error says why."),
    ("2", "The command line is wrong. (inspect, check and compare have more to tell: see there.)"),
    ("128 + N", "Ended by signal N."),
)

SIGNS = re.compile(r"^(-.*?)(?: ([^-].*))?$")


def pages() -> Iterator[tuple[str, str]]:
    """Names of files, and what they hold."""
    top = click.Context(tapdisk, info_name="tapdisk", **tapdisk.context_settings)
    yield "tapdisk.1", "\n".join(page_of_program(top))
    for name, what in COMMANDS.items():
        command = tapdisk.get_command(top, name)
        assert command is not None
        context = click.Context(command, top, name, **command.context_settings)
        yield f"tapdisk-{name}.1", "\n".join(page_of_command(context, name, what))


def page_of_program(ctx: click.Context) -> Iterator[str]:
    yield from head("tapdisk", str(ctx.command.help))
    yield from (".SH SYNOPSIS", r"\fBtapdisk\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...")
    yield ".SH DESCRIPTION"
    yield from paragraphs(f"{ctx.command.help}\n\n{ctx.command.epilog}")
    yield ".SH COMMANDS"
    for name, what in COMMANDS.items():
        yield from (".TP", rf"\fBtapdisk\-{text(name)}\fR(1)", text(what))
    yield from options(ctx)
    yield ".SH EXIT STATUS"
    for status, what in EXIT_STATUS:
        yield from (".TP", status, text(what))
    yield from examples("")
    yield from (".SH SEE ALSO", ".BR qemu-img (1),", ".BR nbdkit (1),", ".BR nbdfuse (1)", "")


def page_of_command(ctx: click.Context, name: str, what: str) -> Iterator[str]:
    yield from head(f"tapdisk-{name}", what)
    arguments = " ".join(ctx.command.collect_usage_pieces(ctx))
    synopsis = re.sub(r"[A-Za-z]+", lambda word: rf"\fI{word[0]}\fR", literal(arguments))
    yield from (".SH SYNOPSIS", rf"\fBtapdisk {name}\fR {synopsis}")
    yield ".SH DESCRIPTION"
    yield from paragraphs(str(ctx.command.help))
    yield from options(ctx)
    yield from examples(name)
    yield from (".SH SEE ALSO", ".BR tapdisk (1)", "")


def head(name: str, what: str) -> Iterator[str]:
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))  # reproducible builds set it
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    yield f'.TH {name.upper()} 1 {date} "tapcore {__version__}" "tapcore"'
    yield from (".ad l", ".nh")  # the lines are too short to be spread out
    yield from (".SH NAME", rf"{literal(name)} \- {text(what.rstrip('.'))}")


def paragraphs(source: str) -> Iterator[str]:
    for number, paragraph in enumerate(source.strip().split("\n\n")):
        if number:
            yield ".PP"
        yield text(" ".join(paragraph.split()))


def options(ctx: click.Context) -> Iterator[str]:
    yield ".SH OPTIONS"
    for param in ctx.command.get_params(ctx):
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None:
            yield from (".TP", ", ".join(map(option, record[0].split(", "))), text(record[1]))


def option(name: str) -> str:
    """`--parent PARENT`, the name in bold."""
    match = SIGNS.match(name)
    assert match is not None, name
    value = rf" \fI{literal(match[2])}\fR" if match[2] else ""
    return rf"\fB{literal(match[1])}\fR{value}"


def examples(name: str) -> Iterator[str]:
    yield ".SH EXAMPLES"
    for number, example in enumerate(EXAMPLES[name]):
        if number:
            yield ".PP"
        if example.text:
            yield text(f"{example.text}:")
        yield from (".RS 4", ".EX", literal(example.line), ".EE", ".RE")


def text(source: str) -> str:
    """Words, on one line that begins with no request."""
    escaped = " ".join(source.split()).replace("\\", r"\e")
    return rf"\&{escaped}" if escaped[:1] in (".", "'") else escaped


def literal(source: str) -> str:
    """What is typed as it stands: signs that roff would make nicer stay as they are."""
    return text(source).replace("-", r"\-").replace("'", r"\(aq").replace("~", r"\(ti")


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in pages():
        (directory / name).write_text(content)


if __name__ == "__main__":
    main()
