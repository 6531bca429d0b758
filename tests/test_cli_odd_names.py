"""Names that are not UTF-8, or too long: in each command, in what it says, in JSON."""

import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapcore import create_image
from tapcore.cli.main import main
from tapcore.cli.output import json_text
from tapcore.errors import printable

ODD = os.fsdecode(b"caf\xe9\xff")
SHOWN = "caf\\xe9\\xff"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tapdisk(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., str]:
    def run(*arguments: str, status: int = 0) -> str:
        found = main(arguments)
        out, err = capfdbinary.readouterr()
        assert found == status, err
        if status:
            assert err.count(b"\n") == 1, err
        else:
            assert err == b""
        return (err if status else out).decode()  # it is UTF-8

    return run


def image(handle: str, what: str = "") -> str:
    suffix = "img" if handle == "aio" else handle
    return f"{handle}:{ODD}{what}.{suffix}"


FORMATS = ["aio", "qcow", "qcow2", "vmdk"]


@pytest.mark.parametrize("handle", FORMATS)
def test_every_command_takes_them(handle: str, tapdisk: Callable[..., str]) -> None:
    name = image(handle)
    assert tapdisk("create", name, "1M").startswith(f"created {SHOWN}")
    assert SHOWN in tapdisk("info", name)
    assert SHOWN in tapdisk("inspect", name)
    tapdisk("map", name)
    if handle not in ("aio", "qcow"):  # which have nothing to check
        tapdisk("check", name)
    assert tapdisk("convert", "-q", name, image("qcow2", "copy")) == ""
    assert "identical" in tapdisk("compare", name, image("qcow2", "copy"))
    tapdisk("resize", name, "2M")
    tapdisk("measure", name, "-O", "qcow2")
    said = tapdisk("info", f"{ODD}/x", status=1)
    assert said == f"tapdisk: {SHOWN}/x: No such file or directory\n"


@pytest.mark.parametrize("handle", ["qcow", "qcow2", "vmdk"])
def test_a_parent_of_such_a_name_is_recorded_as_it_is(
    handle: str, tapdisk: Callable[..., str], here: Path
) -> None:
    base, child = image(handle), image(handle, "child")
    tapdisk("create", base, "1M")
    tapdisk("create", child, "-b", base)
    content = Path(child.partition(":")[2]).read_bytes()
    assert b"caf\xe9\xff" in content
    facts = json.loads(tapdisk("info", "--json", child))
    assert bytes.fromhex(facts["parent_bytes"]) == os.fsencode(here / base.partition(":")[2])
    assert facts["parent"].endswith(f"{SHOWN}/{SHOWN}.{handle}")
    assert facts["image"] == f"{SHOWN}child.{handle}"
    [_, below] = json.loads(tapdisk("info", "--json", "--chain", child))
    assert "parent_bytes" not in below
    if handle == "qcow2":
        said = subprocess.run(
            ["qemu-img", "check", child.partition(":")[2]], capture_output=True, check=False
        )
        assert said.returncode == 0, said
        tapdisk("rebase", "-q", child, "-b", "")
        tapdisk("rebase", "-q", child, "-b", base)
        tapdisk("commit", "-q", child)


def test_a_data_file_of_such_a_name(tapdisk: Callable[..., str]) -> None:
    tapdisk("create", "-q", "a.qcow2", "1M", "-o", f"data_file={ODD}")
    assert Path(ODD).exists()
    facts = json.loads(tapdisk("info", "--json", "a.qcow2"))
    assert facts["format"]["data_file"].endswith(SHOWN)
    assert bytes.fromhex(facts["format"]["data_file_bytes"]).endswith(b"caf\xe9\xff")
    found = json.loads(tapdisk("inspect", "--json", "a.qcow2", "--parents", "."))
    assert bytes.fromhex(found["references"][0]["name_bytes"]).endswith(b"caf\xe9\xff")
    os.unlink(ODD)
    said = tapdisk("map", "a.qcow2", status=1)
    assert f"'{SHOWN}' does not exist" in said


def test_json_is_valid_and_tells_names_apart() -> None:
    found: dict[str, Any] = json.loads(
        json_text({"a": "x\udcff", "b": "x\\xff", "c": ["u", "\udc80"], "d": [{"e": "\udcfe"}]})
    )
    assert found == {
        "a": "x\\xff",
        "a_bytes": "78ff",
        "b": "x\\xff",
        "c": ["u", "\\x80"],
        "c_bytes": [None, "80"],
        "d": [{"e": "\\xfe", "e_bytes": "fe"}],
    }
    assert json.loads(json_text({"n": "\ud800"})) == {"n": "\\ud800"}  # no name of a file


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\udcff", "\\xff"),
        ("\x1b\n", "\\x1b\\x0a"),
        ("\x85", "\\u0085"),
        ("\u200e", "\\u200e"),
        ("\U000e0001", "\\U000e0001"),
        ("né", "né"),
    ],
)
def test_what_cannot_be_printed_is_shown_as_what_it_is(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_lacks_a_character_shows_which(
    encoding: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("img", "qcow2", "vmdk"):
        name = f"Łódź-{ODD}.{suffix}"
        create_image(here / name, 1 << 20)
        for command in (["info"], ["inspect"], ["map"], ["map", "--picture"], ["info", "--json"]):
            output = io.BytesIO()
            monkeypatch.setattr("sys.stdout", io.TextIOWrapper(output, encoding=encoding))
            assert main([*command, name]) == 0
            if command[0] != "map":
                assert b"\\u0141" in output.getvalue()


# ---- too long --------------------------------------------------------------------------------


@pytest.mark.parametrize(("handle", "limit"), [("qcow", 1023), ("qcow2", 1023)])
def test_a_parents_name_that_the_format_cannot_hold_is_refused(
    handle: str, limit: int, tapdisk: Callable[..., str]
) -> None:
    base, child = f"{handle}:b.{handle}", f"{handle}:c.{handle}"
    tapdisk("create", base, "1M")
    longest = "./" * 500 + "/" * (limit - 1000 - len(f"b.{handle}")) + f"b.{handle}"
    assert len(longest) == limit
    tapdisk("create", child, "-b", f"{handle}:{longest}")
    tapdisk("map", child)
    os.unlink(child.partition(":")[2])
    for name in (f"/{longest}".replace("/./", ".//", 1), "./" * 1900 + f"b.{handle}"):
        said = tapdisk("create", child, "-b", f"{handle}:{name}", status=1)
        assert "long" in said or f"may have {limit} bytes at most" in said
        assert not os.path.exists(child.partition(":")[2])


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 2500 + "a.qcow2", "x" * 5000 + ".qcow2"])
@pytest.mark.parametrize(
    "command",
    [["info"], ["create"], ["check"], ["convert", "a.img"], ["compare", "a.img"], ["map"]],
)
def test_a_name_longer_than_a_path_can_be_is_refused_in_one_line(
    name: str, command: list[str], tapdisk: Callable[..., str]
) -> None:
    Path("a.img").write_bytes(bytes(1 << 20))
    more = ["1M"] if command[0] == "create" else []
    if not name.endswith(".qcow2"):
        name = f"qcow2:{name}"
    said = tapdisk(*command, name, *more, status=2 if command[0] == "compare" else 1)
    assert said.endswith(": File name too long\n")
    assert len(said) < 2100
