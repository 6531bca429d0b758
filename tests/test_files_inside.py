"""Files inside a disk: listed, printed and copied out, without root; hostile ones harm nobody."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from commandline import tapdisk

from peers import peer
from tapcore.cli.main import main

MIB = 1 << 20
BIG = random.Random(7).randbytes(300_000)


@pytest.fixture(scope="module")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file system of 4 MiB, with files, folders and links."""
    folder = tmp_path_factory.mktemp("ext4")
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "home" / "a").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("guest\n")
    (tree / "etc" / "name").symlink_to("hostname")
    (tree / "etc" / "out").symlink_to("../../../../etc/passwd")
    (tree / "home" / "a" / "big").write_bytes(BIG)
    (tree / "home" / "a" / "e\x1bvil\n").write_text("x")
    image = folder / "fs.img"
    with open(image, "wb") as file:
        file.truncate(4 * MIB)
    subprocess.run([peer("mkfs.ext4"), "-q", "-d", tree, image], check=True, timeout=60)
    return image.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ext4: bytes) -> Path:
    """`fs.img`, a file system; `disk.qcow2`, with it in the first of two partitions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fs.img").write_bytes(ext4)
    table = bytearray(512)
    table[510:] = b"\x55\xaa"
    for number, start in enumerate((2048, 2048 + 8192)):
        entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0])
        at = 446 + 16 * number
        table[at : at + 16] = entry + start.to_bytes(4, "little") + (8192).to_bytes(4, "little")
    (tmp_path / "disk.raw").write_bytes(bytes(table) + bytes(MIB - 512) + ext4 + bytes(4 * MIB))
    tapdisk("convert", "-q", "raw:disk.raw", "disk.qcow2", status=0)
    return tmp_path


@pytest.mark.parametrize("image", ["fs.img", "raw:fs.img", "disk.qcow2:1", "qcow2:disk.qcow2:1"])
def test_a_folder_is_listed(image: str, folder: Path) -> None:
    assert tapdisk("ls", image, status=0)[0].split() == ["etc", "home", "lost+found"]
    assert tapdisk("ls", image, "/etc", status=0)[0].split() == ["hostname", "name", "out"]
    long, _ = tapdisk("ls", "-l", image, "etc/", status=0)
    assert "-rw-" in long
    assert "name -> hostname" in long


def test_a_disk_with_partitions_shows_them(folder: Path) -> None:
    shown, _ = tapdisk("ls", "disk.qcow2", status=0)
    assert [line.split()[:4] for line in shown.splitlines()[1:]] == [
        ["/p1", "4", "MiB", "ext4"],
        ["/p2", "4", "MiB", "-"],
    ]
    assert tapdisk("ls", "disk.qcow2", "/p1/etc", status=0)[0].startswith("hostname\n")


def test_info_lists_partitions(folder: Path) -> None:
    shown, _ = tapdisk("info", "--partitions", "disk.qcow2", status=0)
    assert shown.splitlines()[-4:] == [
        "partitions:",
        "    NUMBER  SIZE   FORMAT  LABEL",
        "    1       4 MiB  ext4    -",
        "    2       4 MiB  -       -",
    ]
    found = json.loads(tapdisk("info", "--partitions", "--json", "disk.qcow2", status=0)[0])
    assert found["partitions"] == [
        {"number": 1, "size": 4 * MIB, "format": "ext4", "label": None},
        {"number": 2, "size": 4 * MIB, "format": None, "label": None},
    ]
    for image in ("fs.img", "ram:1M"):
        assert tapdisk("info", "--partitions", image, status=0)[0].endswith("partitions:   none\n")
    assert "partitions" not in tapdisk("info", "disk.qcow2", status=0)[0]


def test_as_json_paths_are_whole(folder: Path) -> None:
    found = json.loads(tapdisk("ls", "--json", "-R", "disk.qcow2:1", status=0)[0])
    sizes = {item["path"]: item["size"] for item in found if item["type"] == "file"}
    assert sizes["/home/a/big"] == len(BIG)
    assert sizes["/etc/hostname"] == 6


def test_a_name_cannot_write_to_the_terminal(folder: Path) -> None:
    shown, _ = tapdisk("ls", "fs.img", "/home/a", status=0)
    assert shown == "big\ne\\x1bvil\\x0a\n"
    assert "\x1b" not in tapdisk("tree", "fs.img", status=0)[0]


def test_a_tree_is_as_deep_as_is_asked_for(folder: Path) -> None:
    whole, _ = tapdisk("tree", "fs.img", status=0)
    assert "      big\n" in whole
    assert tapdisk("tree", "fs.img", "-L", "1", status=0)[0].split() == [
        *("/", "etc/", "home/", "lost+found/"),
    ]


def test_a_file_is_printed_as_it_is(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["cat", "disk.qcow2:1", "/home/a/big", "/etc/name"]) == 0
    assert capfdbinary.readouterr().out == BIG + b"guest\n"


def test_files_and_folders_are_copied_out(folder: Path) -> None:
    out, _ = tapdisk("extract", "disk.qcow2:1", "/etc", "/home/a/big", "-d", "out", status=0)
    assert (folder / "out" / "etc" / "hostname").read_text() == "guest\n"
    assert (folder / "out" / "home" / "a" / "big").read_bytes() == BIG
    assert os.readlink(folder / "out" / "etc" / "name") == "hostname"
    assert not os.path.lexists(folder / "out" / "etc" / "out")  # it leads out
    assert "left out: 1 links" in out


def test_what_is_there_is_replaced_only_by_force(folder: Path) -> None:
    (folder / "out" / "etc").mkdir(parents=True)
    (folder / "out" / "etc" / "hostname").write_text("mine")
    _, err = tapdisk("extract", "fs.img", "/etc/hostname", "-d", "out", status=1)
    assert "exists" in err
    assert (folder / "out" / "etc" / "hostname").read_text() == "mine"
    tapdisk("extract", "--force", "fs.img", "/etc/hostname", "-d", "out", status=0)
    assert (folder / "out" / "etc" / "hostname").read_text() == "guest\n"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ls disk.qcow2:3", "has no partition 3 (its partitions: 1, 2)"),
        ("ls fs.img:1", "has no partition 1 (it has none)"),
        ("ls disk.qcow2:99999", "is not the number of a partition"),
        ("ls disk.qcow2:2", "no partition or file system that is known"),
        ("cat fs.img /nope", "/nope: no such file"),
        ("cat fs.img /etc", "/etc"),
        ("extract fs.img /nope -d out", "/nope"),
        ("ls gone.img", "gone.img: No such file"),
    ],
)
def test_what_is_not_there_is_one_line(
    line: str, why: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 1
    err = capfd.readouterr().err
    assert why in err
    assert err.count("\n") == 1


def test_a_file_with_a_colon_in_its_name_is_a_file(folder: Path) -> None:
    os.rename("fs.img", "fs.img:1")
    (folder / "fs.img").write_bytes(bytes(4096))
    assert "etc" in tapdisk("ls", "raw:fs.img:1", status=0)[0]


def test_without_the_library_the_line_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fs_explorer", None)
    _, err = tapdisk("ls", "fs.img", status=1)
    assert "pip install 'tapcore[files]'" in err


def test_damage_anywhere_is_an_error_or_harmless(
    folder: Path, ext4: bytes, rng: random.Random
) -> None:
    for _ in range(20 * int(os.environ.get("TAPCORE_THOROUGH", "1"))):
        content = bytearray(ext4)
        for _ in range(rng.randrange(1, 40)):
            at = rng.randrange(1024, 64 * 1024)
            content[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), rng.randbytes(4)])
        (folder / "fs.img").write_bytes(content)
        assert main(["ls", "-R", "raw:fs.img"]) in (0, 1)
        main(["extract", "-q", "raw:fs.img", "-d", "damaged", "--force"])
    assert {*os.listdir(folder)} <= {"fs.img", "disk.raw", "disk.qcow2", "damaged"}
