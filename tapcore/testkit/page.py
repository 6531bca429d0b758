"""The page of the checks, docs/test-kit.md, made from the checks themselves.

python -m tapcore.testkit.page > docs/test-kit.md
"""

from __future__ import annotations

import re
import sys
from typing import Final

from tapcore.testkit.contract import DriverContract
from tapcore.testkit.needs import needs_of

_HEAD: Final = """\
# What the test kit checks

Each check is for the drivers that have all of what stands in the last column: a capability as
`tapdisk formats` lists it, a hook, or

| word | the driver, or its test class |
| --- | --- |
| file | images are host files |
| lasting | content outlives closing (`volatile` is not set) |
| format | not every file is an image (`any_file` is not set) |
| recognised | the format is found without its handle |
| qemu | `qemu_format` is set: `qemu-img` has the format |
| noticing | `notices_changed_parents` is set |

The page is made from the checks (`python -m tapcore.testkit.page`); how to run them says
[write-a-driver.md](write-a-driver.md#test-it).
"""


def render() -> str:
    """The page's text."""
    return "\n".join([_HEAD, *map(_section, DriverContract.__bases__)])


def _section(group: type) -> str:
    title = re.sub(r"(?<!^)([A-Z])", lambda match: " " + match[1].lower(), group.__name__)
    rows = [_row(name, check) for name, check in vars(group).items() if name.startswith("test_")]
    head = ["| check | what it wants | for drivers with |", "| --- | --- | --- |"]
    return "\n".join([f"## {title}", "", _text(group), "", *head, *rows, ""])


def _row(name: str, check: object) -> str:
    words = ", ".join(sorted(needs_of(check))) or "-"
    return f"| {name.removeprefix('test_')} | {_text(check)} | {words} |"


def _text(described: object) -> str:
    """The first paragraph of a docstring, in one line."""
    paragraph = (described.__doc__ or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


if __name__ == "__main__":
    sys.stdout.write(render())
