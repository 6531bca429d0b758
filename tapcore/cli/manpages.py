"""The man pages of tapdisk and of each of its commands.

They are made from the command line's own description: what `--help` shows is what they say.
"""

from __future__ import annotations

import os
import re
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

OWN_STATUS = {
    "check": (
        ("0", "Clean."),
        ("1", "It could not be checked."),
        ("2", "Corrupt; or the command line is wrong."),
        ("3", "Only space that nothing refers to."),
    ),
    "compare": (
        ("0", "The same content."),
        ("1", "Different."),
        ("2", "An error, or the command line is wrong."),
        ("3", "The same, but for content that could not be read (--salvage)."),
    ),
    "inspect": (
        ("0", "Harmless."),
        ("1", "No image, of a format without a driver, or unreadable."),
        ("2", "Something to be afraid of; or the command line is wrong."),
    ),
    "convert": (
        ("0", "All was copied."),
        ("1", "An error; nothing was made."),
        ("2", "The command line is wrong."),
        ("3", "Zeroes stand for content that could not be read (--salvage)."),
    ),
}

ENVIRONMENT = (
    ("TAPCORE_PARENTS", "What --parents would say, several with colons between."),
    ("TAPCORE_RUN_DIR", "What --run-dir of the daemon and its commands would say."),
    ("TAPCORE_PLUGINS", "The only plugins to be used, with commas between."),
    ("NO_COLOR", "No colours on a terminal."),
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
    yield from files()
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
    if name == "create":
        yield from format_options()
    yield ".SH EXIT STATUS"
    for status, meaning in OWN_STATUS.get(name, EXIT_STATUS):
        yield from (".TP", status, text(meaning))
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


def format_options() -> Iterator[str]:
    """What `-o` takes, for every format that is installed and can be made."""
    from tapcore.cli.optionshelp import described_options

    yield ".SH FORMAT OPTIONS"
    for handle, name, described in described_options():
        yield from (".SS", text(f"{handle}: {name}"))
        for option_name, what in described:
            yield from (".TP", rf"\fB{literal(option_name)}\fR", text(what))


def files() -> Iterator[str]:
    """What is read besides images."""
    yield ".SH FILES"
    path = r"\fI~/.config/tapcore/config.toml\fR, \fI/etc/xdg/tapcore/config.toml\fR"
    what = "parents, a list of directories: what --parents says where a command does not"
    yield from (".TP", path, text(what))
    yield ".SH ENVIRONMENT"
    for name, what in ENVIRONMENT:
        yield from (".TP", rf"\fB{name}\fR", text(what))


def write_pages(directory: Path) -> list[Path]:
    """Write all pages into a directory, which is made where it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in pages():
        (directory / name).write_text(content)
        written.append(directory / name)
    return written
