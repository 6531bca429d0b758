"""What the test kit has besides checks: a sheet, and drivers that are installed for one test."""

import json
import sys
from pathlib import Path

import pytest

from docpages import DOCS
from tapcore.testkit import DriverContract, Subject, ThrowAway, page
from tapcore.testkit.running import checks_of
from tapcore.testkit.sheet import all_checks, in_words

EXAMPLE = DOCS / "examples/tap-chunk/tap_chunk"


@pytest.fixture
def chunk(tmp_path: Path) -> ThrowAway:
    """The guide's driver by another name, installed without pip."""
    installed = ThrowAway(tmp_path)
    source = (EXAMPLE / "driver.py").read_text()
    source = source.replace('handle="chunk"', 'handle="thrown"').replace('".chunk"', '".thrown"')
    files = {"tap_thrown/__init__.py": "", "tap_thrown/driver.py": source}
    installed.install("thrown", "tap_thrown.driver", files, version="1.2")
    return installed


def test_a_throw_away_driver_is_found_by_tapdisk(chunk: ThrowAway) -> None:
    rows = json.loads(chunk.tapdisk("formats", "--json").stdout)
    (row,) = [row for row in rows if row["handle"] == "thrown"]
    assert (row["error"], row["distribution"], row["version"]) == (None, "tap-thrown", "1.2")
    assert chunk.tapdisk("create", "thrown:disk", "1M").returncode == 0
    info = chunk.tapdisk("info", "thrown:disk", "--json")
    assert json.loads(info.stdout)["virtual_size"] == 1 << 20
    assert chunk.tapdisk("info", "thrown:missing").returncode != 0


def test_the_sheet_says_what_was_found_and_formats_shows_it(chunk: ThrowAway) -> None:
    (chunk.site / "test_thrown.py").write_text(
        "from tapcore.testkit import DriverContract\n\n\n"
        "class TestThrown(DriverContract):\n"
        '    handle = "thrown"\n'
        "    sizes = (512,)\n\n"
        "    def test_extents_are_true(self):\n"
        "        assert False\n"
    )
    sheet = chunk.site / "tap_thrown/tapcore-conformance.json"
    words = (
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "fresh or extents or opens_and",
        "test_thrown.py",
    )
    done = chunk.run(sys.executable, "-m", "tapcore.testkit", "--sheet", sheet, *words)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(sheet.read_text())
    assert found["driver"] == "thrown"
    assert found["a fresh image reads as expected"] == "passed"
    assert found["extents are true"] == "failed"
    assert found["resizing keeps the content"] == "not for it"
    assert set(all_checks()) < set(found)
    shown = chunk.tapdisk("formats", "--long", "thrown").stdout
    assert "conformance:" in shown
    assert "opens and closes without a trace" in shown
    done = chunk.run(sys.executable, "-m", "tapcore.testkit", "--sheet", sheet, "-k", "absent")
    assert done.returncode != 0
    assert "no sheet: no check of the kit ran" in done.stderr


def test_no_check_takes_the_place_of_another() -> None:
    """The checks are mixed into one class: each helper's name is there once."""
    homes: dict[str, list[str]] = {}
    for cls in DriverContract.__mro__:
        if cls not in (object, Subject):
            for name in vars(cls):
                if not name.startswith("__"):
                    homes.setdefault(name, []).append(cls.__name__)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_every_check_has_a_time_limit_and_says_what_it_is() -> None:
    for name in checks_of(DriverContract):
        check = getattr(DriverContract, f"test_{name}")
        assert hasattr(check, "_tapcore_needs"), name
        assert (check.__doc__ or "").strip(), name
    assert in_words("test_what_was_flushed_is_safe") == "what was flushed is safe"


def test_the_page_of_checks_is_what_the_checks_say() -> None:
    """Else: python -m tapcore.testkit.page > docs/test-kit.md"""
    assert (DOCS / "test-kit.md").read_text() == page.render()
