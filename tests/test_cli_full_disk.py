"""No room: one line says so, and names the image; nothing new is left, and nothing old is lost."""

import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tapcore.cli.main import main

MIB = 1 << 20
Call = Callable[..., tuple[int, str, str]]
FORMATS = ["aio", "sync", "qcow", "qcow2", "vhd", "vmdk"]


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """A write past that fails, as with a full disk, but at the same place on every file system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: random.Random,
) -> Call:
    """Run a command in a folder with a disk of 4 MiB; returns its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    Path("full.raw").write_bytes(rng.randbytes(4 * MIB))

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    return run


def check_one_line(result: tuple[int, str, str], image: str) -> None:
    status, out, err = result
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith(f"tapdisk: {image}: ")
    assert err.endswith("File too large\n")


@pytest.mark.parametrize("handle", FORMATS)
@pytest.mark.parametrize("compressed", [[], ["-c"]], ids=["plain", "compressed"])
def test_a_copy(call: Call, handle: str, compressed: list[str]) -> None:
    if compressed and handle in ("aio", "sync", "vhd"):
        return
    if handle == "vmdk" and compressed:
        compressed = [*compressed, "-o", "subformat=streamOptimized"]
    Path("new").write_bytes(b"old")
    with files_no_longer_than(2 * MIB):
        result = call("convert", "--force", "aio:full.raw", f"{handle}:new", *compressed)
    check_one_line(result, "new")
    assert sorted(os.listdir()) == ["full.raw", "new"]
    assert Path("new").read_bytes() == b"old"


@pytest.mark.parametrize("handle", ["qcow", "qcow2", "vmdk"])
def test_commit_and_rebase(call: Call, handle: str) -> None:
    for command in (
        ("create", "-q", f"{handle}:parent", "4M"),
        ("convert", "-q", "aio:full.raw", f"{handle}:child", "-b", f"{handle}:parent"),
        ("convert", "-q", "aio:full.raw", f"{handle}:other"),
        ("create", "-q", f"{handle}:empty", "-b", f"{handle}:other"),
    ):
        assert call(*command) == (0, "", "")
    with files_no_longer_than(2 * MIB):
        committed = call("commit", "-q", f"{handle}:child")
        rebased = call("rebase", "-q", f"{handle}:empty", "-b", "")
    check_one_line(committed, os.path.abspath("parent"))
    check_one_line(rebased, "empty")
    assert call("compare", "aio:full.raw", f"{handle}:empty")[0] == 0


def test_resize(call: Call) -> None:
    assert call("create", "-q", "disk.qcow2", "1M", "-o", "cluster_size=512") == (0, "", "")
    with files_no_longer_than(2 * MIB):
        result = call("resize", "disk.qcow2", "100G")
    check_one_line(result, "disk.qcow2")
    assert call("check", "disk.qcow2")[0] in (0, 3)
