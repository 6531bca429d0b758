"""`snapshot`, `amend` and `measure`, as functions and as commands."""

import json
from pathlib import Path

import pytest
from drivers.toy import BLOCK, HEAD, content, fill, head_of

import tapcore
from tapcore import Measurement, create_image
from tapcore.cli.main import main
from tapcore.tools.amend import amend_image
from tapcore.tools.measure import measure_image, measure_size
from tapcore.tools.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)

MIB = 1 << 20


# ---- snapshot --------------------------------------------------------------------------------


def test_a_snapshots_life(toys: Path) -> None:
    create_image("a.toy", MIB)
    fill("toy:a.toy", (0, b"one"))
    made = create_snapshot("a.toy", "first")
    assert (made.id, made.name) == ("1", "first")
    fill("toy:a.toy", (0, b"two"))
    create_snapshot("a.toy", "second")
    fill("toy:a.toy", (0, b"now"))
    assert [found.name for found in list_snapshots("a.toy")] == ["first", "second"]
    assert apply_snapshot("a.toy", "first").id == "1"
    assert content("toy:a.toy")[:3] == b"one"
    assert apply_snapshot("a.toy", "2").name == "second"
    assert content("toy:a.toy")[:3] == b"two"
    delete_snapshot("a.toy", "1")
    delete_snapshot("a.toy", "second")
    assert list_snapshots("a.toy") == []


def test_an_id_comes_before_a_name(toys: Path) -> None:
    create_image("a.toy", MIB)
    for name in ("2", "x"):
        fill("toy:a.toy", (0, name.encode()))
        create_snapshot("a.toy", name)
    assert delete_snapshot("a.toy", "2").name == "x"


@pytest.mark.parametrize(
    ("action", "name", "message"),
    [
        ("create", "first", "has a snapshot 'first' already"),
        ("create", "1", "has a snapshot '1' already"),
        ("create", "", "'' cannot be a snapshot's name"),
        ("apply", "none", "has no snapshot 'none'"),
        ("delete", "none", "has no snapshot 'none'"),
    ],
)
def test_what_is_refused(
    toys: Path, capsys: pytest.CaptureFixture[str], action: str, name: str, message: str
) -> None:
    create_image("a.toy", MIB)
    create_snapshot("a.toy", "first")
    assert main(["snapshot", action, "a.toy", name]) == 1
    assert capsys.readouterr().err == f"tapdisk: a.toy: {message}\n"


def test_a_format_without_snapshots(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.img").write_bytes(bytes(512))
    for arguments in (["list", "a.img"], ["create", "a.img", "x"]):
        assert main(["snapshot", *arguments]) == 1
        said = "tapdisk: a.img: the format 'aio' has no internal snapshots\n"
        assert capsys.readouterr().err == said


def test_the_snapshot_command(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_image("a.toy", MIB)

    def run(*arguments: str) -> str:
        assert main(["snapshot", *arguments]) == 0
        return capsys.readouterr().out

    assert run("list", "a.toy") == "no snapshots\n"
    assert run("list", "a.toy", "--json") == "[]\n"
    assert run("create", "a.toy", "one") == "created the snapshot one (id 1)\n"
    assert run("create", "-q", "a.toy", "two") == ""
    head, *rows = run("list", "a.toy").splitlines()
    assert head.split() == ["ID", "NAME", "VM", "STATE", "DATE", "VM", "CLOCK"]
    assert [row.split()[:3] for row in rows] == [["1", "one", "-"], ["2", "two", "-"]]
    assert rows[0].endswith("00:00:00.000")
    assert json.loads(run("list", "a.toy", "--json"))[1] == {
        "id": "2",
        "name": "two",
        "date_sec": 1700000000,
        "date_nsec": 0,
        "vm_state_size": 0,
        "vm_clock_nsec": 0,
        "disk_size": MIB,
        "icount": None,
    }
    assert run("apply", "a.toy", "one") == "applied the snapshot one (id 1)\n"
    assert run("delete", "a.toy", "one") == "deleted the snapshot one (id 1)\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "a.toy", "x"], "'list' takes no NAME"),
        (["create", "a.toy"], "'create' needs a NAME"),
        (["make", "a.toy"], "'make' is not one of 'list', 'create', 'apply', 'delete'"),
        ([], "Missing argument"),
    ],
)
def test_a_wrong_command_line(
    toys: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["snapshot", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_image_in_use_is_listed_and_not_changed(toys: Path) -> None:
    create_image("a.toy", MIB)
    create_snapshot("a.toy", "first")
    with tapcore.open("toy:a.toy", readonly=False):
        assert len(list_snapshots("a.toy")) == 1


# ---- amend -----------------------------------------------------------------------------------


def test_amend(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_image("a.toy", MIB)
    amend_image("a.toy", {"colour": "blue"})
    assert head_of("a.toy")["options"]["colour"] == "blue"
    assert main(["amend", "a.toy", "-o", "colour=red"]) == 0
    assert capsys.readouterr().out == "changed colour to red\n"
    assert main(["amend", "a.toy", "-o", "help"]) == 0
    assert capsys.readouterr().out == "colour: of the toy: red, blue\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.toy"], "a.toy: nothing is to be changed: give -o KEY=VALUE"),
        (["a.toy", "-o", "size=1"], "a.toy: the format 'toy' has no option 'size' (known: colour)"),
        (["a.toy", "-o", "colour=x"], "a.toy: 'x' is not a value of the option 'colour'"),
        (["a.img", "-o", "x=y"], "a.img: the format 'aio' has nothing that can be changed"),
    ],
)
def test_amend_refuses(
    toys: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    create_image("a.toy", MIB)
    Path("a.img").write_bytes(bytes(512))
    assert main(["amend", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"tapdisk: {message}")


# ---- measure ---------------------------------------------------------------------------------


def test_measure(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_image("a.toy", MIB)
    fill("toy:a.toy", (0, b"x"), (100 * BLOCK, bytes(3 * BLOCK)))
    wanted = Measurement(HEAD + 4 * BLOCK, HEAD + MIB)
    assert measure_image("a.toy", "toy") == wanted
    assert measure_size(MIB - 1, "toy") == Measurement(HEAD, HEAD + MIB)
    assert main(["measure", "a.toy", "-O", "toy", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out == {"required": wanted.required, "fully-allocated": wanted.fully_allocated}
    assert main(["measure", "--size", "1M", "-O", "aio"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "required:        1 MiB (1048576 bytes)",
        "fully allocated: 1 MiB (1048576 bytes)",
    ]


def test_measure_of_a_snapshot(toys: Path) -> None:
    create_image("a.toy", MIB)
    create_snapshot("a.toy", "empty")
    fill("toy:a.toy", (0, b"x"))
    assert measure_image("a.toy", "toy", snapshot="empty").required == HEAD


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-O", "toy"], 2, "give either SOURCE or --size"),
        (["a.toy", "--size", "1M", "-O", "toy"], 2, "give either SOURCE or --size"),
        (["a.toy"], 2, "Missing option '-O'"),
        (["a.toy", "-O", "nope"], 1, "no driver has the handle 'nope'"),
        (["a.toy", "-O", "ram"], 1, "the size of images of the format 'ram' cannot be told"),
        (["a.toy", "-O", "toy", "-o", "x=y"], 1, "the format 'toy' has no option 'x'"),
        (["b.toy", "-O", "toy"], 1, "b.toy: No such file or directory"),
    ],
)
def test_measure_refuses(
    toys: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    create_image("a.toy", MIB)
    assert main(["measure", *arguments]) == status
    assert message in capsys.readouterr().err
