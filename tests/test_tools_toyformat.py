"""The tools with a format that raw drivers do not have: parents, options, checks, dangers."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from drivers.toy import BLOCK, CLUSTER, HEAD, content, fill, head_of

import tapcore
from tapcore.cli.main import main
from tapcore.interface.policy import ReferencePolicy
from tapcore.tools.check import check_image
from tapcore.tools.compare import compare_disks
from tapcore.tools.convert import convert_image
from tapcore.tools.create import create_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image
from tapcore.tools.map import map_disk
from tapcore.tools.openimage import open_image

MIB = 1 << 20


# ---- parents ---------------------------------------------------------------------------------


def test_create_a_child(toys: Path) -> None:
    create_image("base.toy", MIB)
    fill("toy:base.toy", (8192, b"base"))
    create_image("child.toy", None, parent="toy:base.toy", options={"colour": "blue"})
    assert content("toy:child.toy") == content("toy:base.toy")
    [info] = image_info("child.toy")
    assert info.virtual_size == MIB
    assert (info.parent, info.parent_handle) == (str(toys / "base.toy"), "toy")
    assert info.format["colour"] == "blue"


def test_a_parent_counts_from_the_childs_directory_and_is_probed(toys: Path) -> None:
    (toys / "sub").mkdir()
    create_image("sub/base.toy", MIB)
    create_image("sub/child.toy", 2 * MIB, parent="base.toy")
    [child, base] = image_info("sub/child.toy", chain=True)
    assert (child.virtual_size, child.parent_handle) == (2 * MIB, "toy")
    assert (base.image, base.parent) == (str(toys / "sub/base.toy"), None)


def test_a_parent_must_be_an_image(toys: Path) -> None:
    with pytest.raises(tapcore.ImageOpenError, match=r"base\.toy: No such file"):
        create_image("child.toy", None, parent="base.toy")
    (toys / "base.toy").write_bytes(b"rubbish")
    with pytest.raises(tapcore.ImageFormatError, match=r"base\.toy: is not a toy"):
        create_image("child.toy", None, parent="toy:base.toy")
    with pytest.raises(tapcore.UsageError, match="its own parent"):
        create_image("base.toy", None, parent="base.toy", force=True)
    assert os.listdir() == ["base.toy"]


def test_info_of_a_child_without_its_parent(toys: Path) -> None:
    create_image("base.toy", MIB)
    create_image("child.toy", None, parent="base.toy")
    os.unlink("base.toy")
    [info] = image_info("child.toy")
    assert info.parent == str(toys / "base.toy")
    assert info.notes == ("its parent does not exist",)
    with pytest.raises(tapcore.ImageOpenError, match=r"'base\.toy' does not exist"):
        image_info("child.toy", chain=True)


def test_the_policy_reaches_every_command(
    toys: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    create_image(f"{elsewhere}/base.toy", MIB)
    create_image("child.toy", None, parent=f"{elsewhere}/base.toy")
    for command in (
        ["info", "--chain", "child.toy"],
        ["map", "child.toy"],
        ["compare", "child.toy", "child.toy"],
        ["convert", "child.toy", "aio:copy"],
        ["bench", "child.toy", "--seconds", "0.1"],
        ["serve", "--read-only", "child.toy", "--port", "0"],
    ):
        failed = 2 if command[0] == "compare" else 1
        assert main(command) == failed
        error = capsys.readouterr().err
        assert error.startswith("tapdisk: child.toy: names the file")
        assert error.endswith(f"--parents {elsewhere} would allow it\n")
        if command[0] != "serve":
            assert main([*command, "--parents", str(elsewhere)]) == 0
            assert main([*command, "--parents", "none", "--parents", str(elsewhere)]) == failed
            if os.path.exists("copy"):
                os.unlink("copy")
            assert main([*command, "--parents", "any"]) == 0
    note = image_info("child.toy")[0].notes[0]
    assert note.startswith("its parent would not be opened: names the file")


def test_map_of_a_chain(toys: Path) -> None:
    create_image("base.toy", MIB)
    fill("toy:base.toy", (0, b"x" * 8192))
    create_image("child.toy", 2 * MIB, parent="base.toy")
    fill("toy:child.toy", (4096, b"y" * 4096))
    with open_image("child.toy") as disk:
        items = [item.as_dict("child.toy") for item in map_disk(disk)]
    assert items == [
        {
            "start": 0,
            "length": 4096,
            "depth": 1,
            "present": True,
            "zero": False,
            "data": True,
            "offset": HEAD,
            "filename": str(toys / "base.toy"),
        },
        {
            "start": 4096,
            "length": 4096,
            "depth": 0,
            "present": True,
            "zero": False,
            "data": True,
            "offset": HEAD + 4096,
        },
        *(
            {**hole, "zero": True, "data": False}
            for hole in (
                {"start": 8192, "length": MIB - 8192, "depth": 1, "present": False},
                {"start": MIB, "length": MIB, "depth": 0, "present": False},
            )
        ),
    ]


# ---- convert ---------------------------------------------------------------------------------


def test_convert_between_formats(toys: Path) -> None:
    Path("a.img").write_bytes(bytes(MIB) + b"x" * 5000 + bytes(MIB - 5000 + 512))
    convert_image("a.img", "b.toy", options={"colour": "blue"})
    assert len(head_of("b.toy")["blocks"]) == CLUSTER // BLOCK  # whole clusters are stored
    convert_image("b.toy", "c.raw")
    assert Path("c.raw").read_bytes() == Path("a.img").read_bytes()


def test_convert_flattens_a_chain(toys: Path) -> None:
    create_image("base.toy", MIB)
    fill("toy:base.toy", (0, b"base" * 1024), (8192, b"more"))
    create_image("child.toy", 2 * MIB, parent="base.toy")
    fill("toy:child.toy", (0, b"child"), (MIB + 4096, b"beyond"))
    convert_image("child.toy", "flat.img")
    assert Path("flat.img").read_bytes() == content("toy:child.toy")
    with open_image("child.toy") as one, open_image("flat.img") as other:
        assert compare_disks(one, other).identical


def test_convert_onto_a_parent_stores_the_differences(toys: Path) -> None:
    create_image("base.toy", 4 * MIB)
    fill("toy:base.toy", (0, b"same" * 1024), (MIB, b"old" * 4000), (2 * MIB, b"gone" * 4000))
    Path("new.img").write_bytes(content("toy:base.toy"))
    fill("aio:new.img", (MIB, b"new"), (2 * MIB, bytes(16000)), (3 * MIB, b"more"))
    with tapcore.open("aio:new.img", readonly=False) as disk:
        disk.discard(2 * MIB, length=MIB)
    convert_image("new.img", "child.toy", parent="base.toy")
    assert content("toy:child.toy") == Path("new.img").read_bytes()
    assert 0 not in head_of("child.toy")["blocks"]


def test_convert_onto_one_of_its_parents_is_refused(toys: Path) -> None:
    create_image("base.toy", MIB)
    create_image("child.toy", MIB, parent="base.toy")
    with pytest.raises(tapcore.UsageError, match="is the source, or one of its parents"):
        convert_image("child.toy", "base.toy", force=True)


# ---- inspect ---------------------------------------------------------------------------------


def stranger(**facts: object) -> None:
    head = {"magic": "TOY", "size": MIB, "blocks": [], "options": {}, **facts}
    Path("stranger.toy").write_bytes(json.dumps(head).encode().ljust(HEAD))


@pytest.mark.parametrize(
    ("parent", "danger"),
    [
        ("sub/base.toy", ""),
        ("sub/../sub/base.toy", ""),
        ("base.toy", "lies outside"),
        ("/etc/passwd", "lies outside"),
        ("../x", "lies outside"),
        ("sub/../../x", "lies outside"),
        ("nbd://host/x", "not a plain file name"),
        ("json:{}", "not a plain file name"),
        ("nbd+unix:///x?socket=y", "not a plain file name"),
        ("fd:3", "not a plain file name"),
        ("host_device:/dev/sda", "not a plain file name"),
        ("host_cdrom:/dev/sr0", "not a plain file name"),
        ("10:00.img", "not a plain file name"),
        (" a b:c", "not a plain file name"),
        (":x", "not a plain file name"),
        ("", "impossible"),
        ("a\0b", "impossible"),
    ],
)
def test_inspect_judges_names_without_looking_for_the_files(
    toys: Path, parent: str, danger: str
) -> None:
    stranger(parent=parent, parent_handle="toy")
    found = inspect_image("stranger.toy", parents=ReferencePolicy.from_words(("sub",)))
    assert found.handle == "toy"
    assert found.references == (("parent", parent),)
    assert found.dangerous == bool(danger)
    assert danger in "".join(finding.message for finding in found.findings)


def test_inspect_and_the_policy(toys: Path) -> None:
    for parent, words, dangerous in (
        ("/etc/passwd", (), True),
        ("/etc/passwd", ("/etc",), False),
        ("/etc/passwd", ("any",), False),
        ("/etc/passwd", ("none",), True),
        ("sibling.toy", (), True),
        ("sibling.toy", (".",), False),
        ("sibling.toy", ("/etc",), True),
    ):
        stranger(parent=parent, parent_handle="")
        policy = ReferencePolicy.from_words(words)
        assert inspect_image("stranger.toy", parents=policy).dangerous == dangerous
    assert inspect_image("stranger.toy").dangerous
    assert main(["inspect", "stranger.toy"]) == 2
    assert main(["inspect", "--parents", ".", "stranger.toy"]) == 0


def test_what_a_name_is_judged_by_holds_through_links_to_the_image(toys: Path) -> None:
    """Some programs go by the link, others by what it leads to."""
    stranger(parent="sibling.toy", parent_handle="")
    Path("elsewhere").mkdir()
    Path("elsewhere/link.toy").symlink_to("../stranger.toy")
    for words, dangerous in (((".",), False), (("elsewhere",), True)):
        policy = ReferencePolicy.from_words(words)
        assert inspect_image("elsewhere/link.toy", parents=policy).dangerous == dangerous


def test_inspect_of_a_disguise(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stranger(bites=True)
    assert main(["inspect", "stranger.toy"]) == 2
    assert "DANGER: it bites\n" in capsys.readouterr().out
    stranger()
    assert main(["inspect", "stranger.toy"]) == 0
    assert main(["inspect", "aio:stranger.toy"]) == 2
    assert "its content looks like toy" in capsys.readouterr().out
    Path("rubbish").write_bytes(b"rubbish")
    assert main(["inspect", "toy:rubbish"]) == 1
    assert capsys.readouterr().err == "tapdisk: rubbish: is not a toy image\n"


def test_control_characters_never_reach_the_terminal(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger(parent="\x1b[2Jevil\nNAME", parent_handle="")
    assert main(["inspect", "stranger.toy"]) == 2
    assert main(["info", "stranger.toy"]) == 0
    assert main(["map", "stranger.toy"]) == 1
    text = "".join(capsys.readouterr())
    assert "\x1b" not in text
    assert "\nNAME" not in text
    assert "\\x1b[2Jevil\\x0aNAME" in text


# ---- check -----------------------------------------------------------------------------------


def test_check(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_image("a.toy", MIB)
    fill("toy:a.toy", (0, b"x"))
    assert main(["check", "a.toy"]) == 0
    assert "No errors were found." in capsys.readouterr().out
    os.truncate("a.toy", HEAD + 3 * BLOCK)
    assert main(["check", "a.toy", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["leaks"], found["leaks_fixed"], found["total_clusters"]) == (2, 0, 256)
    assert set(found) == {
        "leaks",
        "leaks_fixed",
        "corruptions",
        "corruptions_fixed",
        "check_errors",
        "total_clusters",
        "allocated_clusters",
        "compressed_clusters",
        "image_end_offset",
    }
    assert check_image("a.toy", repair="leaks").leaks_fixed == 2
    assert main(["check", "a.toy", "--repair", "all"]) == 0
    stranger(blocks=[1000])
    assert main(["check", "stranger.toy"]) == 2
    assert "a block lies past the end" in capsys.readouterr().out


def test_a_driver_that_breaks_is_one_line(
    toys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise ZeroDivisionError("oops\nand more")

    create_image("a.toy", MIB)
    monkeypatch.setattr("drivers.toy.read_head", broken)
    assert main(["map", "toy:a.toy"]) == 1
    assert capsys.readouterr().err == "tapdisk: a.toy: ZeroDivisionError: oops\n"


# ---- a driver that could not be loaded --------------------------------------------------------


def test_a_raw_guess_is_told_when_a_driver_could_not_be_asked(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = tapcore.interface.registry.default_registry()
    registry.register(SimpleNamespace(), handle="broken")
    Path("a").write_bytes(bytes(512))
    assert main(["map", "a"]) == 0
    wanted = "a: taken as raw, but the driver 'broken' could not be asked: has no disk_info"
    assert capsys.readouterr().err.startswith(f"tapdisk: {wanted}")
    assert main(["map", "aio:a"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["map", "broken:a"]) == 1
    assert "the driver 'broken' cannot be used: has no disk_info" in capsys.readouterr().err
    assert main(["formats"]) == 0
    assert "error: has no disk_info" in capsys.readouterr().out
