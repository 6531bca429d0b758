"""Code on the pages of docs/: a comment before a block says what it is.

`<!-- file: PATH -->`: the content of a file, beside the page. `python tests/docpages.py` fills
these in anew. `<!-- test: NAME -->` and `<!-- run: NAME -->`: run by tests/test_docs.py.
"""

import re
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^<!-- (?P<role>\w+): (?P<name>\S+) -->\n```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


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

    return _BLOCK.sub(fill, (DOCS / page).read_text())


if __name__ == "__main__":
    for path in DOCS.glob("*.md"):
        path.write_text(filled(path.name))
