"""The commands in this process: what they print, and the status that they end with."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tapcore
from peers import peer
from tapcore.cli.group import COMMANDS, tapdisk
from tapcore.cli.main import main

MIB = 1 << 20

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command; returns its status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """1 MiB, of which 8 KiB in the middle are data."""
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(MIB)
        file.seek(512 << 10)
        file.write(b"x" * 8192)
    return path


# ---- the group -------------------------------------------------------------------------------


def test_version(call: Call) -> None:
    for option in ("--version", "-V"):
        assert call(option) == (0, f"tapdisk {tapcore.__version__}\n", "")


def test_help_lists_every_command(call: Call) -> None:
    status, out, err = call("--help")
    assert (status, err) == (0, "")
    width = max(map(len, COMMANDS))
    for name, text in COMMANDS.items():
        assert f"  {name:{width}}  {text}\n" in out


OPEN_NO_IMAGE = (
    *("formats", "plugins", "new-plugin", "completion", "help", "man"),
    *("daemon", "detach", "list", "stats", "dump-ring", "pause", "resume-io", "snapshot-live"),
    *("commit-live", "swap", "resize-live", "reload", "log-level"),
)
"""What speaks to the daemon changes disks that were attached with their policy."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_common_options(call: Call, name: str) -> None:
    for option in ("--help", "-h"):
        status, out, _ = call(name, option)
        assert status == 0
        assert f"tapdisk {name} [OPTIONS]" in out
        assert "--log-level" in out
        assert "--debug" in out
        if name not in OPEN_NO_IMAGE:
            assert "--parents DIR|any|none" in out
    command = tapdisk.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.short_help == COMMANDS[name]  # the table's, which needs no import


def test_without_a_command_the_help_is_the_error(call: Call) -> None:
    status, out, err = call()
    assert (status, out) == (2, "")
    assert "Commands:" in err


# ---- formats ---------------------------------------------------------------------------------


def test_formats(call: Call) -> None:
    status, out, err = call("formats")
    assert (status, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["HANDLE", "NAME", "PACKAGE", "CAN"]
    assert [row.split()[0] for row in rows if row.split()[0] in ("aio", "ram", "sync")] == [
        "aio",
        "ram",
        "sync",
    ]
    status, out, err = call("formats", "--json")
    found = {row["handle"]: row for row in json.loads(out)}
    assert found["aio"]["distribution"] == "tap-aio"
    assert found["aio"]["error"] is None
    assert set(found["sync"]) == {
        "handle",
        "name",
        "distribution",
        "version",
        "capabilities",
        "error",
    }
    assert {"read", "write", "create"} <= set(found["sync"]["capabilities"])
    assert "create" not in found["ram"]["capabilities"]


def test_formats_without_drivers(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapcore.interface.registry._default", tapcore.Registry(discover=False))
    assert call("formats", "--json") == (0, "[]\n", "")
    status, out, _ = call("formats")
    assert status == 0
    assert "no driver" in out
    assert "pip install" in out
    status, _, err = call("info", "x.img")
    assert status == 1
    assert "pip install tap-aio" in err or "No such file" in err


# ---- info, map, inspect ----------------------------------------------------------------------


def test_info(call: Call, image: Path) -> None:
    status, out, err = call("info", image)
    assert (status, err) == (0, "")
    assert out.splitlines()[:4] == [
        f"image:        {image}",
        "format:       raw (aio)",
        "virtual size: 1 MiB (1048576 bytes)",
        "disk size:    8 KiB",
    ]
    one = json.loads(call("info", "--json", image)[1])
    assert list(one) == [
        "image",
        "handle",
        "virtual_size",
        "sector_size",
        "disk_size",
        "read_only",
        "parent",
        "parent_handle",
        "format",
    ]
    assert json.loads(call("info", "--json", "--chain", image)[1]) == [one]


def test_info_of_an_image_in_use(call: Call, image: Path) -> None:
    with tapcore.open(f"aio:{image}", readonly=False):
        status, out, err = call("info", image)
        assert (status, err) == (0, "")
        assert "has it open for writing" in out.splitlines()[-1]
        assert json.loads(call("info", "--json", image)[1])["handle"] == "aio"
        status, _, err = call("map", image)
        assert status == 1
        assert err.startswith(f"tapdisk: {image}: is in use")


def test_map(call: Call, image: Path) -> None:
    status, out, _ = call("map", image)
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["START", "LENGTH", "DEPTH", "CONTENT", "WHERE"],
        ["0x0", "0x80000", "0", "zero"],
        ["0x80000", "0x2000", "0", "data", "0x80000", "in", str(image)],
        ["0x82000", "0x7e000", "0", "zero"],
    ]
    items = json.loads(call("map", "--json", image)[1])
    assert [item["start"] for item in items] == [0, 0x80000, 0x82000]
    (image.parent / "empty").touch()
    assert call("map", "--json", f"aio:{image.parent}/empty") == (0, "[]\n", "")


def test_inspect(call: Call, image: Path) -> None:
    status, out, _ = call("inspect", image)
    assert status == 0
    assert out.splitlines()[-1] == "harmless"
    assert json.loads(call("inspect", "--json", image)[1])["findings"] == []


# ---- create, convert, compare, resize --------------------------------------------------------


def test_create(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    assert call("create", path, "1.5M") == (0, f"created {path}: raw (aio), 1.5 MiB\n", "")
    assert path.stat().st_size == 3 << 19
    assert call("create", path, "1M")[0] == 1
    assert call("create", "-q", "--force", path, "1M", "-o", "preallocation=full") == (0, "", "")
    assert path.stat().st_blocks * 512 >= MIB


def test_options_of_a_format(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    status, out, _ = call("create", path, "-o", "help")
    assert status == 0
    assert out == "preallocation: how space is reserved: off, falloc, full (default: off)\n"
    assert call("convert", "ram:1M", path, "-o", "help")[1] == out
    assert not path.exists()
    status, _, err = call("create", path, "1M", "-o", "preallocation")
    assert (status, "'preallocation' is not KEY=VALUE" in err) == (2, True)
    status, _, err = call("create", path, "1M", "-o", "preallocation=off,b=c,,d")
    assert (status, "no option 'b'" in err) == (1, True)


def test_convert_and_compare(call: Call, image: Path) -> None:
    copy = image.parent / "copy.raw"
    assert call("convert", image, copy) == (0, f"created {copy}: raw (aio), 8 KiB of data\n", "")
    assert call("compare", image, copy) == (0, "Images are identical.\n", "")
    assert call("compare", "--strict", image, f"sync:{copy}") == (0, "Images are identical.\n", "")
    with tapcore.open(f"aio:{copy}", readonly=False) as disk:
        disk.pwrite(1000, b"y")
    text = "Content mismatch at offset 512! (first byte: 1000)\n"
    assert call("compare", image, copy) == (1, text, "")
    assert call("compare", "-q", image, copy) == (1, "", "")
    assert call("convert", "-q", "--force", "ram:2M", copy) == (0, "", "")
    text = "Warning: Image size mismatch!\nImages are identical.\n"
    assert call("compare", "ram:1M", copy) == (0, text, "")
    assert call("compare", "-s", "ram:1M", copy)[:2] == (1, "Strict mode: Image size mismatch!\n")


def test_an_error_of_compare_is_not_an_answer(call: Call, image: Path) -> None:
    assert call("compare", image, "nothing") == (
        2,
        "",
        "tapdisk: nothing: No such file or directory\n",
    )
    assert call("compare", image)[0] == 2


def test_resize(call: Call, image: Path) -> None:
    text = "resized from 1 MiB (1048576 bytes) to 1.5 MiB (1572864 bytes)\n"
    assert call("resize", image, "+512K") == (0, text, "")
    status, _, err = call("resize", image, "-1M")
    assert status == 1
    assert err.endswith("this would cut 1 MiB off its end; --shrink allows it\n")
    assert call("resize", "-q", image, "-1M", "--shrink") == (0, "", "")
    assert image.stat().st_size == 512 << 10
    assert call("resize", "-q", image, "3M") == (0, "", "")
    assert image.stat().st_size == 3 * MIB


def test_resize_as_qemu_img_does(call: Call, image: Path) -> None:
    theirs = image.parent / "theirs.img"
    theirs.write_bytes(image.read_bytes())
    for size in ("+1M", "-1000K", "5M", "+77K"):
        command = [peer("qemu-img"), "resize", "-q", "--shrink", "-f", "raw", str(theirs), size]
        subprocess.run(command, check=True)
        assert call("resize", "-q", "--shrink", image, size) == (0, "", "")
        assert image.read_bytes() == theirs.read_bytes()


def test_check_of_a_format_without_one(call: Call, image: Path) -> None:
    error = f"tapdisk: {image}: the format 'aio' has no metadata to check\n"
    assert call("check", image) == (1, "", error)


# ---- bench -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("rw", ["read", "write", "randread", "randwrite"])
def test_bench(call: Call, image: Path, rw: str, cache: str) -> None:
    status, out, err = call(
        "bench", image, "--rw", rw, "--bs", "8K", "--depth", 8, "--size", "2M",
        "--cache", cache, "--force", "--json",
    )  # fmt: skip
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["rw"], found["bs"], found["depth"]) == (rw, 8192, 8)
    assert (found["requests"], found["bytes"]) == (256, 2 * MIB)
    assert found["iops"] == pytest.approx(256 / found["seconds"])
    assert found["bytes_per_second"] == pytest.approx(2 * MIB / found["seconds"])
    latency = found["latency_us"]
    assert list(latency) == ["mean", "p50", "p90", "p99", "p99.9", "max"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    changed = image.read_bytes()[:4096] != bytes(4096)
    if rw in ("read", "randread"):
        assert not changed
    elif rw == "write":
        assert changed


def test_bench_for_a_time_and_for_people(call: Call) -> None:
    status, out, err = call("bench", "ram:1M", "--rw", "randwrite", "--seconds", "0.1")
    assert (status, err) == (0, "")
    assert "randwrite, 4 KiB a request, depth 32" in out
    assert "\nIOPS:" in out
    assert "MB/s\n" in out
    assert "99.9%" in out


def test_bench_does_not_destroy_by_accident(call: Call, image: Path) -> None:
    before = image.read_bytes()
    error = f"tapdisk: {image}: writing destroys what the image holds; --force allows it\n"
    assert call("bench", image, "--rw", "write") == (1, "", error)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bs", "2M"], "the disk (1048576 bytes) is smaller than a block"),
        (["--bs", "0"], "must be at least 1"),
        (["--bs", "512", "--size", "100"], "smaller than a block"),
    ],
)
def test_bench_refuses(call: Call, image: Path, arguments: list[str], message: str) -> None:
    status, _, err = call("bench", image, *arguments)
    assert status == 1
    assert message in err


# ---- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_a_copy_cleanly(
    call: Call,
    tmp_path: Path,
    rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
    status: int,
) -> None:
    real = os.preadv
    sent: list[bool] = []

    def read(*arguments: Any) -> int:
        if not sent:  # threads read too, and a second signal ends the process at once
            sent.append(True)
            os.kill(os.getpid(), signum)
        return real(*arguments)

    before = signal.getsignal(signum)
    (tmp_path / "a").write_bytes(rng.randbytes(3 * MIB))
    monkeypatch.setattr(os, "preadv", read)
    assert call("convert", f"aio:{tmp_path}/a", f"aio:{tmp_path}/b") == (
        status,
        "",
        f"tapdisk: stopped by {signum.name}\n",
    )
    assert os.listdir(tmp_path) == ["a"]
    assert signal.getsignal(signum) == before


# ---- click's own way to run it ---------------------------------------------------------------


def test_a_program_may_run_the_group_itself(image: Path) -> None:
    done = CliRunner().invoke(tapdisk, ["info", "--json", str(image)])
    assert done.exit_code == 0
    assert json.loads(done.output)["virtual_size"] == MIB


# ---- narrow terminals --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_formats_has_two_lines_for_each_on_a_narrow_terminal(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapcore.cli import formatstable

    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(formatstable, "terminal_columns", lambda: 60)
    assert main(["formats"]) == 0
    output.flush()
    lines = output.buffer.getvalue().decode(encoding).splitlines()
    drivers = lines[: lines.index("")]
    assert all(len(line) <= 60 for line in drivers)
    heads, abilities = drivers[::2], drivers[1::2]
    assert not [line for line in heads if line.startswith(" ")]
    assert all(line.startswith("       read") for line in abilities)
    dots = "..." if encoding == "ascii" else "\N{HORIZONTAL ELLIPSIS}"
    (qcow2,) = (can for head, can in zip(heads, abilities, strict=True) if "tap-qcow2 " in head)
    assert qcow2.endswith(f", {dots}")
