"""A file that says what it is, and is no disk: every command, the pipe, Python and children."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drivers.toy import ToyDriver
from foreignfiles import DISKS, FOREIGN, padded, vhd_footer

import tapcore
from tapcore.cli.main import main
from tapcore.tools.inspect import inspect_image

MIB = 1 << 20
TAPDISK = str(Path(sys.executable).parent / "tapdisk")

COMMANDS = (
    ["info", "x"],
    ["map", "x"],
    ["check", "x"],
    ["check", "--repair", "all", "x"],
    ["convert", "x", "new.img"],
    ["convert", "x", "new.toy"],
    ["convert", "x", "aio:-"],
    ["measure", "x", "-O", "aio"],
    ["compare", "x", "disk.img"],
    ["compare", "disk.img", "x"],
    ["resize", "x", "+1M"],
    ["resize", "--shrink", "x", "512"],
    ["snapshot", "list", "x"],
    ["snapshot", "create", "x", "s"],
    ["commit", "x"],
    ["rebase", "x", "-b", ""],
    ["rebase", "--unsafe", "x", "-b", ""],
    ["rebase", "child.toy", "-b", "x"],
    ["rebase", "--unsafe", "child.toy", "-b", "x"],
    ["amend", "x", "-o", "k=v"],
    ["create", "new.toy", "-b", "x"],
    ["convert", "disk.img", "new.toy", "-b", "x"],
    ["serve", "x", "--socket", "s"],
    ["serve", "x", "--read-only", "--socket", "s"],
    ["bench", "x"],
    ["bench", "--force", "x", "--rw", "randwrite"],
)


@pytest.fixture
def place(toys: Path) -> Path:
    """A folder with a disk and a child."""
    Path("disk.img").write_bytes(bytes(MIB))
    tapcore.create_image("child.toy", MIB)
    return toys


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_takes_a_foreign_image_for_a_disk(
    words: list[str], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("x").write_bytes(FOREIGN["qed"][1])
    before = digest(place)
    status = main(words)
    out, err = capfd.readouterr()
    assert status == (2 if words[0] == "compare" else 1)
    assert "is a QED image; no driver for it is installed" in err
    assert err.count("\n") == 1
    assert out == ""
    assert digest(place) == before


@pytest.mark.parametrize("name", FOREIGN)
def test_no_foreign_file_is_opened_by_python(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(FOREIGN[name][1])
    with pytest.raises(tapcore.ImageFormatError) as caught:
        tapcore.open(path, readonly=True)
    assert caught.value.message.startswith("is ")
    assert str(path) in str(caught.value)
    with tapcore.open(f"aio:{path}", readonly=True) as disk:
        assert disk.pread(0, length=path.stat().st_size) == path.read_bytes()
    with tapcore.open(f"raw:{path}", readonly=True) as disk:
        assert disk.handle == "aio"


def test_a_parent_whose_format_is_not_recorded_is_not_taken_for_a_disk(
    toys: Path, toy_driver: ToyDriver
) -> None:
    tapcore.create_image("base.toy", MIB)
    tapcore.create_image("child.toy", MIB, parent="base.toy")
    head = json.loads(Path("child.toy").read_bytes().split(b"\0")[0])
    head["parent_handle"] = ""
    Path("child.toy").write_bytes(json.dumps(head).encode().ljust(4096))
    Path("base.toy").write_bytes(FOREIGN["qed"][1])
    for readonly in (True, False):
        with pytest.raises(tapcore.TapError, match=r"its parent .*base.toy: is a QED image"):
            tapcore.open("toy:child.toy", readonly=readonly)
    before = digest(toys)
    assert main(["commit", "child.toy"]) == 1
    assert digest(toys) == before


# ---- standard input --------------------------------------------------------------------------


def from_pipe(content: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([TAPDISK, *words], input=content, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", ["qed", "vhd-fixed-of-a-disk", "gzip", "iso", "ova"])
def test_what_comes_through_a_pipe_is_no_disk_either(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = FOREIGN[name][1]
    done = from_pipe(content, "convert", "-", "new.img")
    assert done.returncode == 1
    assert done.stderr.startswith(b"tapdisk: standard input: is ")
    assert done.stderr.count(b"\n") == 1
    assert os.listdir() == []
    Path("x").write_bytes(content)
    with open("x", "rb") as file:
        again = subprocess.run(
            [TAPDISK, "convert", "-", "new.img"], stdin=file, capture_output=True, timeout=60
        )
    assert (again.returncode, again.stderr) == (1, done.stderr)
    assert os.listdir() == ["x"]
    assert from_pipe(content, "convert", "-q", "aio:-", "new.img").returncode == 0
    assert Path("new.img").read_bytes()[: len(content)] == content


def test_an_image_on_a_pipe_is_refused_as_soon_as_its_head_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end may be terabytes away."""
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(
        [TAPDISK, "convert", "-", "new.img"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        running.stdin.write(padded(b"QED\0", 128 << 10))
        running.stdin.flush()  # and it stays open
        assert running.wait(60) == 1
        assert b"standard input: is a QED image" in running.stderr.read()


def test_an_image_that_a_driver_knows_is_not_copied_from_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = from_pipe(padded(b"QFI\xfb\0\0\0\3"), "convert", "-", "new.img")
    assert done.returncode == 1
    assert b"standard input: holds a qcow2 image" in done.stderr
    assert os.listdir() == []


# ---- handles ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qed:x.qed", "pip install tap-qed"),
        ("nope:x", "pip install tap-nope"),
        ("http://host/x.img", "URLs are not followed"),
        ("nbd:unix:/s", "URLs are not followed"),
        ('json:{"a":1}', "URLs are not followed"),
        ("host_device:/dev/sda", "URLs are not followed"),
    ],
)
def test_an_unknown_handle_says_what_would_bring_it(
    name: str, text: str, toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", name]) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.qcow2", "the name of a qcow2 image, and no driver for that is installed: pip install"),
        ("x.qed", "has the name of a QED image, and no driver for that is installed"),
        ("x.gz", "cannot tell the format of a new image from its name"),
    ],
)
def test_a_new_image_of_a_format_without_a_driver_is_not_made(
    name: str, text: str, tmp_path: Path
) -> None:
    registry = tapcore.Registry(discover=False)
    with pytest.raises(tapcore.UsageError, match=text):
        tapcore.create_image(str(tmp_path / name), MIB, registry=registry)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["C:x", "snap_2024:1", "TooLongForAHandle:x", "_x:y"])
def test_what_is_no_handle_brings_no_advice_to_install(
    name: str, toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", name]) == 1
    assert "pip install" not in capsys.readouterr().err


def test_a_file_with_a_colon_in_its_name_is_a_file(toys: Path) -> None:
    for name in ("nope:x", "raw:x", "qed:y", "nbd:z", "http:q"):
        Path(name).write_bytes(bytes(512))
        assert main(["info", name]) == 0


# ---- inspect ---------------------------------------------------------------------------------

LEADS_ELSEWHERE = {"qed-child", "cow-child"}


@pytest.mark.parametrize("name", FOREIGN)
def test_inspect_calls_nothing_harmless_that_it_does_not_know(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, content = FOREIGN[name]
    path = tmp_path / "x"
    path.write_bytes(content)
    status = main(["inspect", "--json", str(path)])
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["format"] == code
    assert said["handle"] is None
    assert said["virtual_size"] is None
    codes = [finding["code"] for finding in said["findings"]]
    if name in LEADS_ELSEWHERE:
        assert (status, said["verdict"]) == (2, "danger")
        assert codes == ["names-file", "not-looked-at"]
    else:
        assert (status, said["verdict"]) == (1, "unknown")
        assert codes == ["not-looked-at"]
        assert err.startswith(f"tapdisk: {path}: is ")
        assert err.endswith("; not looked at\n")
        assert err.count("\n") == 1
    assert main(["inspect", str(path)]) == status
    assert "harmless" not in capsys.readouterr().out


@pytest.mark.parametrize("name", DISKS)
def test_inspect_of_a_raw_disk_is_harmless(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DISKS[name])
    found = inspect_image(str(tmp_path / "x"))
    assert (found.handle, found.verdict) == ("aio", "harmless")


@pytest.mark.parametrize(
    ("name", "severity"),
    [("qed", "danger"), ("qed-child", "danger"), ("gzip", "note"), ("iso", "note")],
)
def test_inspect_of_a_disguise_as_a_raw_disk(name: str, severity: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(FOREIGN[name][1])
    found = inspect_image(f"aio:{tmp_path}/x")
    assert (found.findings[0].code, found.findings[0].severity) == (
        "looks-like-another-format",
        severity,
    )


def test_an_image_that_is_two_things_at_once_is_a_danger(toys: Path) -> None:
    """The next program goes by the other: a trick that got images past the checks of others."""
    tapcore.create_image("x.toy", MIB)
    content = Path("x.toy").read_bytes().ljust(128 << 10, b"\0")
    assert inspect_image("x.toy").verdict == "harmless"
    Path("x.toy").write_bytes(content + vhd_footer(len(content)))
    found = inspect_image("x.toy")
    assert (found.verdict, [f.code for f in found.findings]) == ("danger", ["two-formats"])


def test_inspect_says_of_a_name_that_it_is_odd(toys: Path) -> None:
    tapcore.create_image("x.toy", MIB)
    os.rename("x.toy", "x.raw")
    [finding] = inspect_image("x.raw").findings
    assert (finding.severity, finding.code) == ("note", "odd-name")
    Path("x.toy").write_bytes(b"")
    with pytest.raises(tapcore.ImageFormatError, match="is empty, and so not a toy image"):
        inspect_image("x.toy")


# ---- content of a disk that looks like something else ------------------------------------------


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (FOREIGN["qed"][1], "a QED image"),
        (bytes(4096) + vhd_footer(4096), "a VHD image"),
        (FOREIGN["iso"][1], "an ISO 9660 image"),
        (DISKS["mbr"], ""),
    ],
)
def test_a_raw_copy_that_looks_like_something_else_is_said_to(
    content: bytes, seen: str, toys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a guest had written is copied as it is, but must not surprise whoever opens it next."""
    Path("x").write_bytes(content)
    assert main(["convert", "-q", "raw:x", "new.toy"]) == 0
    assert not caplog.text
    assert main(["convert", "-q", "new.toy", "back.img"]) == 0
    assert Path("back.img").read_bytes()[: len(content)] == content
    assert (f"back.img: its content looks like {seen}" in caplog.text) == bool(seen)
    assert ("aio:back.img" in caplog.text) == bool(seen)


def test_an_odd_name_of_a_parent_is_said_once(
    toys: Path, toy_driver: ToyDriver, caplog: pytest.LogCaptureFixture
) -> None:
    tapcore.create_image("toy:base.raw", MIB)
    tapcore.create_image("child.toy", MIB, parent="toy:base.raw")
    head = json.loads(Path("child.toy").read_bytes().split(b"\0")[0])
    head["parent_handle"] = ""
    Path("child.toy").write_bytes(json.dumps(head).encode().ljust(4096))
    assert main(["commit", "-q", "child.toy"]) == 0
    assert caplog.text.count("named like a raw disk") == 1
