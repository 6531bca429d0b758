"""Code on the pages of docs/: a comment before a block says what it is.

`<!-- file: PATH -->`: the content of a file, beside the page. `<!-- test: NAME -->` and
`<!-- run: NAME -->`: run by tests/test_docs.py.

`<!-- session: PEERS -->`: commands behind `$`, and what they print. All sessions of a page are one,
in a folder of its own; PEERS are the programs that it needs besides tapdisk ("none" for none).
`<!-- setup ... -->` has commands that are not shown, run at that place.

`<!-- hooks -->`: before the table of hooks, which follows from the core's; `<!-- names -->`: before
all public names; `<!-- hook reference -->` to `<!-- end -->`: each hook with its contract;
`<!-- verbs: daemon -->` and `<!-- verbs: disk -->`: the tables of what can be asked for.

`python tests/docpages.py [PAGE]...` fills all of that in anew.
"""

import inspect
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import attrs

import tapcore
from tapcore.interface.hooks import HOOKS, ChangeHooks, ImageHooks, RequestHooks

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = "../README.md"
SHOWN_FOLDER = "/vm"
"""What the sessions' folder is called on a page."""

_BLOCK = re.compile(
    r"^<!-- (?P<role>\w+): (?P<name>\S+) -->\n```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_STEP = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|^<!-- session: (?P<peers>\S+) -->\n```console\n(?P<session>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_HOOKS = re.compile(r"^<!-- hooks -->\n(?:\|.*\n)*", re.MULTILINE)
_REFERENCE = re.compile(r"^<!-- hook reference -->\n.*?^<!-- end -->\n", re.MULTILINE | re.DOTALL)
_VERBS = re.compile(r"^<!-- verbs: (\w+) -->\n(?:\|.*\n)*", re.MULTILINE)
_NAMES = re.compile(r"^<!-- names -->\n(?:`.*\n|\n(?=`))*", re.MULTILINE)
_MARK = "\x1e"


@attrs.frozen
class Block:
    role: str
    name: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The marked blocks of a page, in order."""
    return [Block(**match.groupdict()) for match in _BLOCK.finditer((DOCS / page).read_text())]


def filled(page: str) -> str:
    """The page, with the files' content as it is now."""

    def fill(match: re.Match[str]) -> str:
        if match["role"] != "file":
            return match[0]
        head = f"<!-- file: {match['name']} -->\n```{match['language']}\n"
        return f"{head}{(DOCS / match['name']).read_text()}```"

    text = _BLOCK.sub(fill, (DOCS / page).read_text())
    text = _NAMES.sub(lambda _: name_list(), text)
    text = _VERBS.sub(lambda match: verb_table(match[1]), text)
    text = _REFERENCE.sub(lambda _: hook_reference(), text)
    return _HOOKS.sub(lambda _: hook_table(), text)


def verb_table(of: str) -> str:
    """What the daemon, or a disk's process, can be asked for."""
    from tapcore.daemon.daemonverbs import DAEMON_VERBS
    from tapcore.daemon.diskverbs import DISK_VERBS

    rows = [f"<!-- verbs: {of} -->", "| method | parameters | does |", "| --- | --- | --- |"]
    for verb in DAEMON_VERBS if of == "daemon" else DISK_VERBS:
        takes = ", ".join(map(str, verb.takes)) or "none"
        does = verb.does[0].lower() + verb.does[1:].rstrip(".")
        rows.append(f"| `{verb.name}` | {takes} | {does} |")
    return "\n".join(rows) + "\n"


def name_list() -> str:
    """The public names, wrapped; what is a class or constant, and what is a function, apart."""
    large = [name for name in sorted(tapcore.__all__) if not name[0].islower()]
    small = [name for name in sorted(tapcore.__all__) if name[0].islower()]
    paragraphs = (", ".join(f"`{name}`" for name in names) + "." for names in (large, small))
    return "<!-- names -->\n" + "\n\n".join(textwrap.fill(text, 100) for text in paragraphs) + "\n"


def hook_table() -> str:
    """The hooks that a driver may leave out, from the core's own table."""
    rows = [HOOKS[name] for name in sorted(HOOKS) if HOOKS[name].default]
    lines = [f"| `{row.name}` | {row.capability or ''} | {row.default} |" for row in rows]
    head = ["<!-- hooks -->", "| hook | capability | without it |", "| --- | --- | --- |"]
    return "\n".join((*head, *lines, ""))


def hook_reference() -> str:
    """Each hook with its signature, its contract and what happens without it, from the table."""
    parts = ["<!-- hook reference -->"]
    for title, group in HOOK_GROUPS.items():
        own = [name for name in HOOKS if name in vars(group)]
        parts += [f"## {title}", *(f"{_hook_entry(name)}\n" for name in own)]
    return "\n\n".join(parts).rstrip() + "\n\n<!-- end -->\n"


HOOK_GROUPS = {
    "Requests": RequestHooks,
    "Images": ImageHooks,
    "Changes": ChangeHooks,
}


def _hook_entry(name: str) -> str:
    row = HOOKS[name]
    function = getattr(tapcore.Hooks, name)
    signature = f"{name}({', '.join(inspect.signature(function).parameters)})"
    contract = inspect.cleandoc(function.__doc__ or "").replace("`", "")
    said = textwrap.indent(contract, "    ")
    without = f"Without it: {row.default}." if row.default else "Every driver has it."
    gives = f" What `tapdisk formats` lists with it: {row.capability}." if row.capability else ""
    return f"### `{signature}`\n\n{said}\n\n{textwrap.fill(without + gives, 100)}"


# ---- sessions --------------------------------------------------------------------------------


@attrs.frozen
class Step:
    """A command of a page, and what the page says that it prints; None: it is not shown."""

    command: str
    printed: str | None


def peers_of(page: str) -> set[str]:
    """The programs that a page's sessions need."""
    found = {match["peers"] for match in _STEP.finditer((DOCS / page).read_text())}
    return {name for names in found - {None, "none"} for name in names.split(",")}


def steps(page: str) -> list[Step]:
    """All commands of a page, in order."""
    found: list[Step] = []
    for match in _STEP.finditer((DOCS / page).read_text()):
        if match["setup"] is not None:
            found.append(Step(match["setup"], None))
            continue
        for command, printed in _split(match["session"]):
            found.append(Step(command, printed))
    return found


def _split(session: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\$ (.*)\n", session, flags=re.MULTILINE)
    assert not parts[0], f"a session begins with a command: {parts[0]!r}"
    return [*zip(parts[1::2], parts[2::2], strict=True)]


def run(found: list[Step], folder: Path, binaries: Path | None = None) -> list[str]:
    """Run the commands in one shell; what each printed, on both outputs.

    Args:
        found: the commands.
        folder: in which they are run.
        binaries: where `tapdisk` is; None: where this Python is.
    """
    script = "".join(map(_as_shell, range(len(found)), [step.command for step in found]))
    binaries = binaries or Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", f"trap 'kill $(jobs -p) 2>/dev/null' EXIT\n{script}"],
        cwd=folder,
        env={
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HOME": str(folder),
            "COLUMNS": "80",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    text = done.stdout.decode().replace(str(folder), SHOWN_FOLDER)
    assert done.returncode == 0, text
    printed = [part + "\n" * (part[-1:] not in ("", "\n")) for part in text.split(_MARK)[1:]]
    assert len(printed) == len(found), text
    return printed


def _as_shell(number: int, command: str) -> str:
    """A failure ends it all; of what goes on in the background the first output is awaited."""
    mark = f"printf '{_MARK}'\n"
    if not command.endswith(" &"):
        return f'{mark}{{ {command}\n}} || {{ echo "exit status $?"; exit 1; }}\n'
    said = f".said{number}"
    start = f"( exec {command.removesuffix(' &')} ) >{said} 2>&1 &\n"
    return f"{mark}{start}until [ -s {said} ]; do sleep 0.02; done; cat {said}\n"


def shape(printed: str) -> str:
    """What a command prints, without what differs from machine to machine: numbers and gaps."""
    text = re.sub(r"\b[0-9a-f]{8}\b", "#", printed)
    unit = r" ?(?:[KMGTPE]i?B(?:/s)?|B|bytes|µs|ms|s|%)\b"
    text = re.sub(rf"\d[\d.,:-]*(?:{unit}|%)?", "#", text)
    return re.sub(r"[ \t]+", " ", text)


def refilled(page: str, printed: list[str]) -> str:
    """The page, with what its commands printed."""
    rest = iter(printed)

    def fill(match: re.Match[str]) -> str:
        if match["setup"] is not None:
            next(rest)
            return match[0]
        lines = [f"$ {command}\n{next(rest)}" for command, _ in _split(match["session"])]
        return f"<!-- session: {match['peers']} -->\n```console\n{''.join(lines)}```"

    return _STEP.sub(fill, (DOCS / page).read_text())


def main() -> None:
    names = sys.argv[1:] or [*sorted(path.name for path in DOCS.glob("*.md")), README]
    for name in names:
        (DOCS / name).write_text(filled(name))
        if found := steps(name):
            with tempfile.TemporaryDirectory() as folder:
                (DOCS / name).write_text(refilled(name, run(found, Path(folder))))


if __name__ == "__main__":
    main()
