"""docs/write-a-driver.md does what it says: its package is installed for real, and used."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import types
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from builtwheels import build, made_once, run
from docpages import DOCS, blocks
from peers import peer
from tapcore import clusters

EXAMPLES = sorted(path.name for path in (DOCS / "examples").iterdir() if path.is_dir())
TAPDISK = Path(sys.executable).parent / "tapdisk"


@attrs.frozen
class Installed:
    """A folder with the examples, installed as users install them, and nothing else."""

    target: Path

    def run(
        self, *words: str | Path, cwd: Path, status: int = 0
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(self.target)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, f"{words}\n{done.stdout}{done.stderr}"
        return done

    def tapdisk(self, command: str, cwd: Path) -> str:
        return self.run(TAPDISK, *shlex.split(command), cwd=cwd).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    target = made_once(tmp_path_factory, "examples", _install)
    return Installed(target)


def _install(site: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        sources, wheels = Path(work) / "sources", Path(work) / "wheels"
        shutil.copytree(DOCS / "examples", sources)  # a build leaves files beside its sources
        wheels.mkdir()
        build(wheels, (sources / name for name in EXAMPLES))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run(*pip, "--no-index", "--no-deps", "--target", site, *wheels.iterdir(), cwd=site)


def block(role: str, name: str) -> str:
    """A marked block of the page."""
    (text,) = [
        each.text for each in blocks("write-a-driver.md") if (each.role, each.name) == (role, name)
    ]
    return text


def test_formats_lists_it(installed: Installed, tmp_path: Path) -> None:
    rows = json.loads(installed.tapdisk("formats --json", tmp_path))
    (row,) = [row for row in rows if row["handle"] == "chunk"]
    assert row["error"] is None
    assert row["distribution"] == "tap-chunk"
    shown = block("output", "formats").split()
    printed = installed.tapdisk("formats", tmp_path).splitlines()
    assert shown in [line.split() for line in printed]


def test_the_commands_of_the_page(installed: Installed, tmp_path: Path) -> None:
    for command in block("run", "chunk").splitlines():
        installed.tapdisk(command.removeprefix("tapdisk "), tmp_path)
    assert (tmp_path / "copy.raw").stat().st_size == 1 << 30
    info = json.loads(installed.tapdisk("info --json child.chunk", tmp_path))
    assert (info["handle"], info["parent"]) == ("chunk", str(tmp_path / "disk.chunk"))


def test_what_the_doctor_says(installed: Installed, tmp_path: Path) -> None:
    assert block("output", "doctor") in installed.tapdisk("plugins doctor", tmp_path)


def test_a_package_to_begin_with(installed: Installed, tmp_path: Path) -> None:
    for command in block("run", "new").splitlines():
        installed.tapdisk(command.removeprefix("tapdisk "), tmp_path)
    assert (tmp_path / "tap-foo" / "tap_foo" / "driver.py").exists()


def test_all_python_on_the_page_is_run() -> None:
    """What is no file of an example has a test of its own, below."""
    text = (DOCS / "write-a-driver.md").read_text()
    marked = [each for each in blocks("write-a-driver.md") if each.language == "python"]
    assert text.count("\n```python\n") == len(marked)
    others = {(each.role, each.name) for each in marked if each.role != "file"}
    assert others == {("body", "td_queue_read"), ("part", "map"), ("part", "throw_away")}


def test_the_driver_that_is_thrown_away(tmp_path: Path) -> None:
    """The lines of the page, where the driver's own folder is."""
    shutil.copytree(DOCS / "examples" / "tap-chunk" / "tap_chunk", tmp_path / "tap_chunk")
    (tmp_path / "test_found.py").write_text(block("part", "throw_away"))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_found.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_read_that_is_answered_later(tmp_path: Path) -> None:
    """The lines of the page as the hook of a driver: in the page cache, and not there."""
    hook = textwrap.indent(block("body", "td_queue_read"), "    ")
    source = (
        "import tapcore\nfrom tapcore import answer_over, hookimpl\n"
        "from tapcore.rawfile import td_close\n"
        "disk_info = tapcore.DiskInfo(handle='later', name='later', api=1)\n\n"
        "@hookimpl\ndef td_open(dd, name, flags):\n"
        "    file = dd.private = tapcore.open_image_file(name, flags, dd.options)\n"
        "    dd.size, dd.io_fd[0] = file.sectors, file.io_fd\n\n"
        "@hookimpl\ndef td_submit(dd):\n    dd.private.submit()\n    return 0\n\n"
        "@hookimpl\ndef td_do_callbacks(dd):\n    return dd.private.reap()\n\n"
        "@hookimpl\ndef td_queue_read(dd, sector, nb_sectors, buf, cb, id, prv):\n"
        f"    file, offset = dd.private, sector * 512\n{hook}"
    )
    driver = types.ModuleType("later")
    exec(source, driver.__dict__)
    registry = tapcore.Registry(discover=False)
    assert not registry.register(driver).error
    content = os.urandom(3 << 20)
    (tmp_path / "disk").write_bytes(content)
    for cold in (False, True):
        if cold:
            with open(tmp_path / "disk", "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with tapcore.open(f"later:{tmp_path / 'disk'}", registry=registry, readonly=True) as disk:
            assert disk.read() == content


def test_the_outline_of_a_map(tmp_path: Path) -> None:
    """The page leaves the header and four methods out: they are those of the example."""
    found: dict[str, Any] = {"hookimpl": tapcore.hookimpl, "sectors": 8, "cluster_size": 4096}
    exec(block("part", "map"), found)
    left_out = dict.fromkeys(("allocate", "link", "picture"), hole)
    image = type("Whole", (found["Image"],), {"run": hole, **left_out})
    found["Image"] = image
    (tmp_path / "disk").write_bytes(bytes(4096))
    driver = types.ModuleType("outline")
    driver.__dict__.update(found, disk_info=tapcore.DiskInfo(handle="part", name="part", api=1))
    driver.__dict__["td_open"].__globals__["Image"] = image
    registry = tapcore.Registry(discover=False)
    assert not registry.register(driver).error
    with tapcore.open(f"part:{tmp_path / 'disk'}", registry=registry, readonly=True) as disk:
        assert disk.read() == bytes(4096)


def hole(_: object, sector: int, stop: int) -> clusters.Run:
    """All of it."""
    return clusters.Run(clusters.HOLE, sector, stop - sector)


@pytest.mark.parametrize("handle", ["chunks", "chunk", "chunkio"])
def test_served_and_converted(installed: Installed, tmp_path: Path, handle: str) -> None:
    """Written by qemu-io over NBD into a child; its parent, and a copy of it, are looked at."""
    qemu_io = peer("qemu-io")
    installed.tapdisk(f"create {handle}:base 10M", tmp_path)
    serve_and_do(installed, tmp_path, qemu_io, f"{handle}:base", "write -P 1 0 3M")
    installed.tapdisk(f"create {handle}:child -b {handle}:base", tmp_path)
    writes = ("write -P 2 1000 100", "write -z 1M 1M", "write -P 3 9M 1M", "flush")
    reads = ("read -P 1 0 1000", "read -P 2 1000 100", "read -P 1 1100 900k", "read -P 0 1M 1M")
    more = ("read -P 1 2M 1M", "read -P 0 3M 6M", "read -P 3 9M 1M")
    serve_and_do(installed, tmp_path, qemu_io, f"{handle}:child", *writes, *reads, *more)
    installed.tapdisk(f"convert {handle}:child aio:copy.raw", tmp_path)
    installed.tapdisk(f"convert aio:copy.raw {handle}:again", tmp_path)
    installed.tapdisk(f"compare {handle}:child {handle}:again", tmp_path)
    copy = (tmp_path / "copy.raw").read_bytes()
    assert copy[:1000] + copy[1000:1100] == b"\1" * 1000 + b"\2" * 100
    assert copy[1 << 20 : 2 << 20] == bytes(1 << 20)
    assert copy[9 << 20 :] == b"\3" * (1 << 20)
    installed.run(TAPDISK, "compare", f"{handle}:child", f"{handle}:base", cwd=tmp_path, status=1)


def serve_and_do(
    installed: Installed, folder: Path, qemu_io: str, image: str, *commands: str
) -> None:
    arguments = [word for command in commands for word in ("-c", command)]
    env = {**os.environ, "PYTHONPATH": str(installed.target)}
    with subprocess.Popen(
        [TAPDISK, "serve", image, "--socket", folder / "s"],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            uri = server.stdout.readline().strip()
            done = subprocess.run(
                [qemu_io, "-f", "raw", *arguments, uri], capture_output=True, text=True, timeout=60
            )
        finally:
            server.terminate()
            assert server.wait(30) == 0
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search("failed|error", said, re.IGNORECASE), said


def test_their_own_tests_pass(installed: Installed, tmp_path: Path) -> None:
    """Which are the kit, with all its checks."""
    for example in EXAMPLES:
        shutil.copytree(DOCS / "examples" / example / "tests", tmp_path, dirs_exist_ok=True)
    done = installed.run(sys.executable, "-m", "pytest", "-q", *tmp_path.iterdir(), cwd=tmp_path)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 50 * len(EXAMPLES)


def test_a_damaged_image_is_one_line(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "bad.chunk").write_bytes(b"TAPCHUNK" + b"\xff" * 100)
    done = installed.run(TAPDISK, "info", "bad.chunk", cwd=tmp_path, status=1)
    said = "is not a chunk image, or its header is damaged"
    assert done.stderr == f"tapdisk: bad.chunk: {said}\n"
