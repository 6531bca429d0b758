"""Names of parents and data files as they are recorded: QEMU opens what tapdisk wrote."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import tapcore
from tapcore.opening.names import plain_name
from tapcore.tools.rebase import rebase_image

MIB = 1 << 20
ODD = ["b-10:00.qcow2", "nbd:b.qcow2", "json:{}.qcow2", "a:b:c.qcow2", "sub:x/b.qcow2", "http:b"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def qemu_map(image: str) -> list[dict[str, object]]:
    command = ["qemu-img", "map", "--output=json", image]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def base_with_content(name: str, handle: str = "qcow2") -> None:
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    tapcore.create_image(f"{handle}:./{name}", MIB)
    with tapcore.open(f"{handle}:./{name}", readonly=False) as disk:
        disk.pwrite(0, b"below")


def assert_both_read(child: str) -> None:
    with tapcore.open(f"qcow2:{child}", readonly=True) as disk:
        assert disk.pread(0, length=5) == b"below"
    assert {item["depth"] for item in qemu_map(child) if item["data"]} == {1}


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("a:b", "./a:b"),
        ("a:b/c", "./a:b/c"),
        ("a/b:c", "a/b:c"),
        ("./a:b", "./a:b"),
        ("/a:b", "/a:b"),
        ("a", "a"),
        (":", "./:"),
        ("", ""),
    ],
)
def test_only_a_colon_before_the_first_slash_is_hidden(name: str, recorded: str) -> None:
    assert plain_name(name) == recorded


@pytest.mark.parametrize("name", ODD)
def test_qemu_opens_a_child_of_a_parent_with_a_colon(name: str) -> None:
    base_with_content(name)
    tapcore.create_image("child.qcow2", None, parent=f"qcow2:{name}")
    assert_both_read("child.qcow2")


def test_where_the_format_is_found_too() -> None:
    base_with_content("b-10:00.qcow2")
    tapcore.create_image("child.qcow2", None, parent="b-10:00.qcow2")
    assert_both_read("child.qcow2")


@pytest.mark.parametrize("unsafe", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_qemu_opens_it_after_a_rebase(name: str, unsafe: bool) -> None:
    base_with_content(name)
    base_with_content("old.qcow2")
    tapcore.create_image("child.qcow2", None, parent="qcow2:old.qcow2")
    rebase_image("child.qcow2", f"qcow2:{name}", unsafe=unsafe)
    assert_both_read("child.qcow2")


def test_qemu_opens_what_was_converted_onto_it() -> None:
    base_with_content("b-10:00.qcow2")
    tapcore.convert_image("qcow2:./b-10:00.qcow2", "child.qcow2", parent="qcow2:b-10:00.qcow2")
    assert_both_read("child.qcow2")


def test_qemu_opens_a_data_file_with_a_colon() -> None:
    tapcore.create_image("disk.qcow2", MIB, options={"data_file": "d-10:00.raw"})
    with tapcore.open("qcow2:disk.qcow2", readonly=False) as disk:
        disk.pwrite(0, b"there")
    assert sorted(os.listdir()) == ["d-10:00.raw", "disk.qcow2"]
    assert qemu_map("disk.qcow2")[0]["data"]


@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentFlat"])
def test_qemu_opens_a_vmdk_with_a_colon(subformat: str) -> None:
    tapcore.create_image("vmdk:./v-10:00.vmdk", MIB, options={"subformat": subformat})
    with tapcore.open("vmdk:./v-10:00.vmdk", readonly=False) as disk:
        disk.pwrite(0, b"there")
    assert qemu_map("./v-10:00.vmdk")[0]["data"]


# ---- an image behind a symbolic link -----------------------------------------------------------


def a_link_to_a_child() -> None:
    """links/child.qcow2 leads to real/child.qcow2, whose parent is base.qcow2."""
    for folder in ("real", "links"):
        os.mkdir(folder)
    base_with_content("real/base.qcow2")
    tapcore.create_image("real/child.qcow2", None, parent="qcow2:base.qcow2")
    os.symlink("../real/child.qcow2", "links/child.qcow2")


def test_where_qemu_finds_no_parent_it_is_looked_for_beside_the_file() -> None:
    a_link_to_a_child()
    with pytest.raises(subprocess.CalledProcessError):
        qemu_map("links/child.qcow2")
    with tapcore.open("qcow2:links/child.qcow2", readonly=True) as disk:
        assert disk.pread(0, length=5) == b"below"


def test_never_another_parent_than_the_one_that_qemu_takes() -> None:
    a_link_to_a_child()
    tapcore.create_image("links/base.qcow2", MIB)
    with tapcore.open("qcow2:links/base.qcow2", readonly=False) as disk:
        disk.pwrite(0, b"QEMU's")
    assert {item["depth"] for item in qemu_map("links/child.qcow2") if item["data"]} == {1}
    with pytest.raises(tapcore.ReferencePolicyError, match=r"--parents .*/links would allow it"):
        tapcore.open("qcow2:links/child.qcow2", readonly=True)
    with tapcore.open("qcow2:links/child.qcow2", readonly=True, parents="links") as disk:
        assert disk.pread(0, length=6) == b"QEMU's"


def test_a_parent_behind_a_link_looks_beside_the_link_too() -> None:
    for folder in ("real", "links"):
        os.mkdir(folder)
    base_with_content("base.qcow2")
    tapcore.create_image("real/middle.qcow2", None, parent=f"qcow2:{os.getcwd()}/base.qcow2")
    rebase_image("real/middle.qcow2", "qcow2:base.qcow2", unsafe=True)
    os.symlink("real/middle.qcow2", "middle.qcow2")
    rebase_image("real/middle.qcow2", "qcow2:base.qcow2", unsafe=True)
    tapcore.create_image("child.qcow2", MIB)
    rebase_image("child.qcow2", "qcow2:middle.qcow2", unsafe=True)
    assert {item["depth"] for item in qemu_map("child.qcow2") if item["data"]} == {2}
    with tapcore.open("qcow2:child.qcow2", readonly=True) as disk:
        assert disk.pread(0, length=5) == b"below"
