"""Drivers that were written, and built, against an older tapcore: they load, and do all they did.

The wheels in `wheels/` are never built anew. Each is installed into a folder of its own, as pip
does it, and the test kit of today runs on it.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FORMATS = sorted((Path(__file__).parent / "wheels" / "formats").glob("*.whl"))
"""The drivers of this repository, as they were when the map and the small door were new."""
WHEELS = sorted((Path(__file__).parent / "wheels").glob("*.whl"))
TAPDISK = Path(sys.executable).parent / "tapdisk"


def handle_of(wheel: Path) -> str:
    return wheel.name.split("-")[0].removeprefix("tap_")


@pytest.fixture(scope="module", params=WHEELS, ids=handle_of)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with one old driver in it, named like its handle."""
    wheel: Path = request.param
    site = tmp_path_factory.mktemp("site") / handle_of(wheel)
    with zipfile.ZipFile(wheel) as archive:  # for a wheel of Python alone this is what pip does
        archive.extractall(site)
    return site


def run(old: Path, *words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(old)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_there_are_drivers_of_each_kind() -> None:
    """One that blocks, one that queues its work with the hooks' own arguments, a simple one."""
    assert {"chunk", "chunkio", "chunks"} <= {handle_of(wheel) for wheel in WHEELS}


def test_it_is_listed_without_an_error(old: Path, tmp_path: Path) -> None:
    rows = json.loads(run(old, TAPDISK, "formats", "--json", cwd=tmp_path))
    (row,) = [row for row in rows if row["handle"] == old.name]
    assert row["error"] is None
    assert {"read", "write", "create", "parents", "extents"} <= set(row["capabilities"])


def test_the_kit_finds_nothing(old: Path, tmp_path: Path) -> None:
    handle = old.name
    (tmp_path / "test_old.py").write_text(
        "from tapcore.testkit import DriverContract\n\n\n"
        f"class TestOld(DriverContract):\n    handle = {handle!r}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_old.py"]
    if handle == "chunkio":  # it loses a read whose table comes late: a check that is younger tells
        command += ["-k", "not a_host_that_is_late"]
    printed = run(old, *command, cwd=tmp_path)
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None
    assert int(passed[1]) >= 30, printed


def test_its_images_are_made_and_copied(old: Path, tmp_path: Path) -> None:
    handle = old.name
    (tmp_path / "in.img").write_bytes(os.urandom(3 << 20))
    commands = (
        ["convert", "aio:in.img", f"{handle}:image"],
        ["convert", f"{handle}:image", "aio:out.img"],
        ["compare", "aio:in.img", f"{handle}:image"],
    )
    for words in commands:
        run(old, TAPDISK, *words, cwd=tmp_path)
    assert (tmp_path / "out.img").read_bytes() == (tmp_path / "in.img").read_bytes()


# ---- the formats -------------------------------------------------------------------------------

COPIES = """
import sys
from tapcore import convert_image, open
from tapcore.interface.registry import default_registry
handle, site = sys.argv[1:]
registry = default_registry()
drv = registry.operations(handle)
assert {row.info.handle: row for row in registry.rows()}[handle].plugin.__file__.startswith(site)
content = memoryview(b"in.img" * 500_000)[: 2 << 20]
with __builtins__.open("in.img", "wb") as file:
    file.write(content)
if "td_create" in drv.implemented:
    convert_image("in.img", f"{handle}:image")
name = f"{handle}:image" if "td_create" in drv.implemented else f"{handle}:in.img"
with open(name) as disk:
    assert disk.read() == content
with open(name, readonly=False) as disk:
    disk.pwrite(1000, b"new")
    disk.seek(998)
    assert disk.read(7) == bytes(content[998:1000]) + b"new" + bytes(content[1003:1005])
"""


@pytest.mark.parametrize("wheel", FORMATS, ids=handle_of)
def test_an_older_release_of_a_format_still_works(wheel: Path, tmp_path: Path) -> None:
    """Beside the core of today: without a word but warnings for its author."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    run(site, sys.executable, "-c", COPIES, handle_of(wheel), site, cwd=tmp_path)
    rows = json.loads(run(site, TAPDISK, "formats", "--json", cwd=tmp_path))
    (row,) = [row for row in rows if row["handle"] == handle_of(wheel)]
    assert row["error"] is None


def test_every_format_of_that_time_is_kept() -> None:
    kept = {handle_of(wheel) for wheel in FORMATS}
    assert kept >= {"aio", "qcow", "qcow2", "ram", "sync", "vdi", "vhd", "vmdk"}
