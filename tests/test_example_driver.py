"""docs/write-a-driver.md does what it says: its package is installed for real, and used."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from docpages import DOCS, blocks
from peers import peer

EXAMPLES = sorted(path.name for path in (DOCS / "examples").iterdir())
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
            timeout=100,
        )
        assert done.returncode == status, f"{words}\n{done.stdout}{done.stderr}"
        return done

    def tapdisk(self, command: str, cwd: Path) -> str:
        return self.run(TAPDISK, *shlex.split(command), cwd=cwd).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    target = tmp_path_factory.mktemp("site")
    sources = tmp_path_factory.mktemp("sources") / "examples"
    shutil.copytree(DOCS / "examples", sources)  # a build leaves files beside its sources
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    where = ["--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run(
        [*pip, *where, *(str(sources / name) for name in EXAMPLES)], check=True, timeout=100
    )
    return Installed(target)


def test_formats_lists_it(installed: Installed, tmp_path: Path) -> None:
    rows = json.loads(installed.tapdisk("formats --json", tmp_path))
    (row,) = [row for row in rows if row["handle"] == "chunk"]
    assert row["error"] is None
    assert row["distribution"] == "tap-chunk"
    (shown,) = [b.text.split() for b in blocks("write-a-driver.md") if b.role == "output"]
    printed = installed.tapdisk("formats", tmp_path).splitlines()
    assert shown in [line.split() for line in printed]


def test_the_commands_of_the_page(installed: Installed, tmp_path: Path) -> None:
    (commands,) = [b.text for b in blocks("write-a-driver.md") if b.role == "run"]
    for command in commands.splitlines():
        installed.tapdisk(command.removeprefix("tapdisk "), tmp_path)
    assert (tmp_path / "copy.raw").stat().st_size == 1 << 30
    info = json.loads(installed.tapdisk("info --json child.chunk", tmp_path))
    assert (info["handle"], info["parent"]) == ("chunk", str(tmp_path / "disk.chunk"))


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


@pytest.mark.parametrize("example", EXAMPLES)
def test_its_own_tests_pass(installed: Installed, tmp_path: Path, example: str) -> None:
    shutil.copytree(DOCS / "examples" / example / "tests", tmp_path / "tests")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = installed.run(*command, cwd=tmp_path)
    assert re.search(r"\d\d passed", done.stdout)


def test_a_damaged_image_is_one_line(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "bad.chunk").write_bytes(b"TAPCHUNK" + b"\xff" * 100)
    done = installed.run(TAPDISK, "info", "bad.chunk", cwd=tmp_path, status=1)
    said = "is not a chunk image, or its header is damaged"
    assert done.stderr == f"tapdisk: bad.chunk: {said}\n"
