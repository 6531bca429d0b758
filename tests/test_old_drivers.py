"""Drivers that were written, and built, against an older tapcore: they load, and do all they did.

The wheels in `wheels/` are never built anew. Each is unpacked as pip does it, all of them beside
each other, and the tools and the test kit of today use them.
"""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FORMATS = sorted((Path(__file__).parent / "wheels" / "formats").glob("*.whl"))
"""The drivers of this repository, as they were when the map and the small door were new."""
WHEELS = sorted((Path(__file__).parent / "wheels").glob("*.whl"))
"""The examples: one that blocks, one that queues its work by the hooks' own arguments, a simple
one."""
TAPDISK = Path(sys.executable).parent / "tapdisk"
MIB = 1 << 20


def handle_of(wheel: Path) -> str:
    return wheel.name.split("-")[0].removeprefix("tap_")


HANDLES = [handle_of(wheel) for wheel in (*WHEELS, *FORMATS) if handle_of(wheel) != "filters"]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them installed."""
    site = tmp_path_factory.mktemp("site")
    for wheel in (*WHEELS, *FORMATS):
        with zipfile.ZipFile(wheel) as archive:  # for a wheel of Python alone that is installing it
            archive.extractall(site)
    return site


def run(old: Path, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(old)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done


def test_all_are_kept_that_there_were() -> None:
    ours = {"aio", "crypt", "part", "qcow", "qcow2", "ram", "sync", "vdi", "vhd", "vhdx", "vmdk"}
    assert set(HANDLES) == ours | {"zraw", "chunk", "chunkio", "chunks"}


def test_they_are_listed_with_a_warning_at_most(old: Path, tmp_path: Path) -> None:
    """Loaded, too, which the doctor does: none has a problem."""
    said = run(old, TAPDISK, "plugins", "doctor", "--json", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(said.stdout) if row["kind"] == "driver"}
    assert {name: rows[name]["problems"] for name in HANDLES} == {name: [] for name in HANDLES}
    assert "error" not in said.stderr
    listed = json.loads(run(old, TAPDISK, "formats", "--json", cwd=tmp_path).stdout)
    rows = {row["handle"]: row for row in listed}
    for wheel in WHEELS:
        can = set(rows[handle_of(wheel)]["capabilities"])
        assert {"read", "write", "create", "parents", "extents"} <= can


def test_the_kit_finds_nothing(old: Path, tmp_path: Path) -> None:
    lines = ["from tapcore.testkit import DriverContract"]
    for wheel in WHEELS:
        handle = handle_of(wheel)
        lines += [f"class Test{handle.title()}(DriverContract):", f"    handle = {handle!r}"]
        lines += ["    sizes = ((200 << 10) + 512,)"]
        if handle == "chunkio":  # it loses a read whose table comes late: younger checks tell
            lines += ["    test_a_host_that_is_late = None"]
    (tmp_path / "test_old.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_old.py"]
    printed = run(old, *command, cwd=tmp_path).stdout
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None
    assert int(passed[1]) >= 40 * len(WHEELS), printed


COPIES = """
import sys
import tapcore
from tapcore import convert_image
from tapcore.interface.registry import default_registry

site, *handles = sys.argv[1:]
registry = default_registry()
content = memoryview(b"in.img" * 500_000)[: 2 << 20]
with open("in.img", "wb") as file:
    file.write(content)
for handle in handles:
    drv = registry.operations(handle)
    plugin = {row.info.handle: row for row in registry.rows()}[handle].plugin
    module = sys.modules[getattr(plugin, "__module__", plugin.__name__)]
    assert module.__file__.startswith(site), module
    name = f"{handle}:image.{handle}"
    if "td_create" in drv.implemented:
        convert_image("aio:in.img", name)
    else:
        name = f"{handle}:in.img"
    with tapcore.open(name) as disk:
        assert disk.read() == content, handle
    if "td_queue_write" not in drv.implemented:
        continue
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(1000, b"new")
        disk.seek(998)
        assert disk.read(7) == bytes(content[998:1000]) + b"new" + bytes(content[1003:1005])
"""


def test_their_images_are_made_copied_and_written(old: Path, tmp_path: Path) -> None:
    """Beside the core of today: without a word but warnings for their authors."""
    alone = [handle for handle in HANDLES if handle not in ("part", "crypt")]
    run(old, sys.executable, "-c", COPIES, old, *alone, cwd=tmp_path)


def test_a_partition_and_filters_of_that_time(old: Path, tmp_path: Path) -> None:
    table = bytearray(512)
    struct.pack_into("<B3xB3xII", table, 446, 0, 0x83, 2048, 2048)
    table[510:] = b"\x55\xaa"
    (tmp_path / "disk.img").write_bytes(table.ljust(MIB, b"\0") + b"p" * MIB)
    words = ["convert", "-q", "part:1:aio:disk.img", "aio:out.img", "--filter", "stats"]
    run(old, TAPDISK, *words, cwd=tmp_path)
    assert (tmp_path / "out.img").read_bytes() == b"p" * MIB
