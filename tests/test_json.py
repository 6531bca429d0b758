"""docs/json.md names every field, and every exit status, that programs rely on."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from commandline import tapdisk

from docpages import DOCS

PAGE = (DOCS / "json.md").read_text()
TABLES = dict(re.findall(r"<!-- fields: (\w+) -->\n((?:\|.*\n)+)", PAGE))


def fields(table: str) -> set[str]:
    """What the first column of a table on the page has."""
    return set(re.findall(r"^\| `([\w-]+)` \|", TABLES[table], re.MULTILINE))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.raw").write_bytes(b"x" * 4096 + bytes(1 << 20))
    tapdisk("convert", "-q", "d.raw", "d.qcow2", status=0)
    tapdisk("snapshot", "-q", "create", "d.qcow2", "one", status=0)
    tapdisk("bitmap", "-q", "add", "d.qcow2", "one", status=0)
    return tmp_path


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("info", "info --json d.qcow2"),
        ("info", "info --json --chain d.qcow2"),
        ("map", "map --json ram:1M"),
        ("check", "check --json d.qcow2"),
        ("compare", "compare --json d.qcow2 d.qcow2"),
        ("inspect", "inspect --json d.qcow2"),
        ("convert", "convert --json d.qcow2 new.raw"),
        ("measure", "measure --json -O qcow2 d.raw"),
        ("snapshot", "snapshot --json list d.qcow2"),
        ("snapshot", "snapshot --json create d.qcow2 two"),
        ("bitmap", "bitmap --json list d.qcow2"),
        ("bitmap", "bitmap --json add d.qcow2 two"),
        ("bench", "bench --json -q --seconds 0.01 ram:1M"),
        ("formats", "formats --json"),
    ],
)
def test_the_page_has_the_fields_that_are_printed(table: str, line: str, folder: Path) -> None:
    found = json.loads(tapdisk(*line.split(), status=0)[0])
    objects: list[dict[str, Any]] = found if isinstance(found, list) else [found]
    assert objects
    for item in objects:
        assert {*item} == fields(table)


def test_every_table_of_the_page_is_held_by_a_test() -> None:
    held = {"info", "map", "check", "compare", "inspect", "convert", "measure", "snapshot", "bench"}
    assert {*TABLES} == held | {"bitmap", "formats", "error", "progress"}


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("info --json gone.qcow2", 1),
        ("check --json gone.qcow2", 1),
        ("map --json gone.qcow2", 1),
        ("compare --json gone.qcow2 d.qcow2", 2),
        ("compare --json --all gone.qcow2 d.qcow2", 2),
        ("inspect --json gone.qcow2", 1),
        ("convert --json gone.qcow2 new.raw", 1),
        ("convert --json d.qcow2 d.raw", 1),
        ("measure --json -O qcow2 gone.qcow2", 1),
        ("snapshot --json list gone.qcow2", 1),
        ("bench --json gone.qcow2", 1),
        ("info --output=json gone.qcow2", 1),
    ],
)
def test_an_error_is_an_object_too(line: str, status: int, folder: Path) -> None:
    out, err = tapdisk(*line.split(), status=status)
    found = json.loads(out)
    assert {*found} == fields("error")
    assert err == f"tapdisk: {found['error']}\n"
    assert found["exit_status"] == status
    assert found["image"] in ("gone.qcow2", "d.raw")


def test_a_wrong_command_line_prints_nothing_on_standard_output(folder: Path) -> None:
    assert tapdisk("info", "--json", "--nonsense", "d.qcow2", status=2)[0] == ""


def test_progress_as_json(folder: Path) -> None:
    _, err = tapdisk("convert", "--progress", "json", "d.qcow2", "new.raw", status=0)
    last = json.loads(err.splitlines()[-1])
    assert {*last} == fields("progress")
    assert last["phase"] == "converting"
    assert last["bytes"] == last["total"] == 4096 + (1 << 20)
    assert last["seconds_left"] == 0


# ---- what is set once ------------------------------------------------------------------------


@pytest.fixture
def pool(folder: Path) -> Path:
    """A directory beside, with the parent of here/child.qcow2."""
    (folder / "pool").mkdir()
    (folder / "here").mkdir()
    tapdisk("convert", "-q", "d.raw", "pool/t.qcow2", status=0)
    _, err = tapdisk("create", "-q", "here/c.qcow2", "-b", "../pool/t.qcow2", status=0)
    assert "--parents" in err  # what opening it will need
    return folder / "pool"


def test_the_environment_says_once_where_parents_may_lie(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapdisk("map", "here/c.qcow2", status=1)
    monkeypatch.setenv("TAPCORE_PARENTS", f"/nowhere:{pool}")
    tapdisk("map", "here/c.qcow2", status=0)
    tapdisk("map", "--parents", "none", "here/c.qcow2", status=1)  # the command says otherwise
    tapdisk("inspect", "here/c.qcow2", status=2)  # a stranger's is judged by itself
    monkeypatch.setenv("TAPCORE_PARENTS", "")
    tapdisk("map", "here/c.qcow2", status=1)


def test_a_configuration_file_says_it_too(
    pool: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.delenv("TAPCORE_PARENTS", raising=False)
    file = folder / "config" / "tapcore" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'parents = ["{pool}"]\n')
    tapdisk("map", "here/c.qcow2", status=0)
    monkeypatch.setenv("TAPCORE_PARENTS", "none")  # comes before the file
    tapdisk("map", "here/c.qcow2", status=1)


@pytest.mark.parametrize(
    "text", ["parents = 3\n", 'parent = ["/x"]\n', 'parents = ["x"]\n', "parents = [\n", "\0"]
)
def test_a_wrong_configuration_is_one_line(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.delenv("TAPCORE_PARENTS", raising=False)
    (folder / "tapcore").mkdir()
    (folder / "tapcore" / "config.toml").write_text(text)
    _, err = tapdisk("map", "d.qcow2", status=1)
    assert "config.toml" in err
    assert err.count("\n") == 1


def test_a_relative_directory_in_the_environment_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPCORE_PARENTS", "pool")
    _, err = tapdisk("map", "d.qcow2", status=1)
    assert "TAPCORE_PARENTS" in err
