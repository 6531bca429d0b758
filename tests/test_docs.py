"""What the pages of docs/ and the README say is true: code runs, links lead somewhere."""

import builtins
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docpages import DOCS, ROOT, blocks, filled, peers_of, run, shape, steps
from peers import peer
from tapcore import TapError
from tapcore.nbd import (
    connection,
    constants,
    listening,
    outstanding,
    server,
    writes,
)
from tapcore.process import workers

PAGES = sorted(page.name for page in DOCS.glob("*.md"))
READMES = [*DOCS.rglob("*.md"), ROOT / "README.md", *ROOT.glob("plugins/*/README.md")]
TAPDISK = Path(sys.executable).parent / "tapdisk"


@pytest.mark.parametrize("page", PAGES)
def test_files_on_a_page_are_those_of_the_repository(page: str) -> None:
    assert filled(page) == (DOCS / page).read_text(), "run: python tests/docpages.py"


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def anchors_of(path: Path) -> set[str]:
    """What a link may say behind a `#`: as GitHub and the site make it of a heading."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_into_a_page_find_their_heading(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for page, anchor in re.findall(r"\]\((?!https:)([^)#]*)#([^)]+)\)", text):
        assert anchor in anchors_of(path.parent / page if page else path), f"{page}#{anchor}"


def test_every_page_is_in_a_table_of_the_index_once() -> None:
    """Of which the site makes its navigation."""
    index = (DOCS / "README.md").read_text()
    rows = re.findall(r"^\| \[([\w.-]+)\]\(\1\) \|", index, re.MULTILINE)
    assert sorted(rows) == [page for page in PAGES if page != "README.md"]
    told = re.findall(r"^## (.+)$", index, re.MULTILINE)
    assert [told.index(first) for first in ("With the command line", "From Python")] == [0, 2]
    assert told[-1] == "How it is built"


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)])
def test_the_sessions_of_a_page_are_what_happens(page: str, tmp_path: Path) -> None:
    """But for numbers, which differ between machines."""
    for name in peers_of(page):
        peer(name)
    found = steps(page)
    for step, printed in zip(found, run(found, tmp_path), strict=True):
        if step.printed is not None:
            again = f"{step.command}\nrun: python tests/docpages.py {page}"
            assert shape(printed) == shape(step.printed), again


@pytest.mark.parametrize("page", ["python.md", "filters.md"])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    """All blocks as one program; a print with a comment behind it prints what that says."""
    code = "".join(block.text for block in blocks(page) if block.role == "test")
    (tmp_path / "page.py").write_text(code)
    if page != "python.md":  # which makes its disk itself
        (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    printed = []
    with subprocess.Popen(
        [sys.executable, "page.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            printed.append(line.strip())
            if "nbd+unix:" in line:  # the server, at the end of a page
                running.terminate()
        assert running.wait(30) == 0, printed
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert promised
    assert [line for line in promised if line not in printed] == []


def test_the_limits_on_the_page_are_those_of_the_server() -> None:
    text = (DOCS / "serve.md").read_text()
    mib = 1 << 20
    rows = (
        f"| one read or write | {constants.DEFAULT_BLOCK_MAX // mib} MiB; a longer one is refused "
        f"with EINVAL, a write of more than {writes.MAX_SKIPPED // mib} MiB ends the",
        f"| requests under way | {outstanding.MAX_IN_FLIGHT} for each connection |",
        f"| memory | {outstanding.MAX_HELD // mib} MiB of buffers and waiting replies for each",
        f"| connections | {server.MAX_CONNECTIONS} |",
        f"| threads | {workers.DISK_THREADS} for each disk at most,",
        f"no export after {connection.HANDSHAKE_SECONDS:g} s is dropped |",
        f"the default is 127.0.0.1 and {listening.DEFAULT_PORT}.",
    )
    assert [row for row in rows if row not in text] == []


def test_the_python_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open("disk.img", "wb") as disk:
        disk.truncate(4 << 20)
    code, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    assert "b'hello'" in out.getvalue()


def test_documented_errors_exist() -> None:
    import tapcore

    text = (DOCS / "python.md").read_text()
    for name in re.findall(r"`(\w+Error)`", text):
        if hasattr(builtins, name):  # Python's own
            continue
        assert issubclass(getattr(tapcore, name), TapError)
