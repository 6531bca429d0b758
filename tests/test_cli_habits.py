"""What users of qemu-img and qemu-nbd type: taken as they mean it, or one line says the way."""

import json
import os
import shlex
from pathlib import Path

import pytest
from commandline import tapdisk

from tapcore.cli.otherway import INSTEAD

SIZE = 2 << 20


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a raw disk, its copy as qcow2, and a child of that."""
    monkeypatch.chdir(tmp_path)
    content = bytearray(SIZE)
    content[4096:8192] = b"data" * 1024
    (tmp_path / "d.raw").write_bytes(content)
    tapdisk("convert", "-q", "raw:d.raw", "d.qcow2", status=0)
    tapdisk("create", "-q", "child.qcow2", "-b", "d.qcow2", status=0)
    return tmp_path


TAKEN = {
    "create -f qcow2 new.qcow2 20G": "info --json new.qcow2",
    "create -f raw new.x 1M": "info --json raw:new.x",
    "create -q -f vmdk new.vmdk 20GiB": "info --json vmdk:new.vmdk",
    "create -f qcow2 -b d.qcow2 -F qcow2 new.qcow2": "info --json new.qcow2",
    "create -f qcow2 -o backing_file=d.qcow2,backing_fmt=qcow2 new.qcow2": "info --json new.qcow2",
    "create -f qcow2 -o size=3M new.qcow2": "info --json new.qcow2",
    "convert -f raw -O qcow2 d.raw new.img": "check qcow2:new.img",
    "convert -p -f qcow2 -O raw d.qcow2 new.img": "compare raw:new.img d.raw",
    "convert -c -O qcow2 d.raw new.qcow2": "compare new.qcow2 raw:d.raw",
    "convert -m 8 -W -O qcow2 d.raw new.qcow2": "compare new.qcow2 raw:d.raw",
    "convert -S 4k -O qcow2 d.raw new.qcow2": "compare new.qcow2 raw:d.raw",
    "convert -t writeback -T unsafe -O qcow2 d.raw new.qcow2": "compare new.qcow2 raw:d.raw",
    "convert -O qcow2 -B d.qcow2 -F qcow2 d.raw new.qcow2": "compare new.qcow2 raw:d.raw",
    "convert -n -O qcow2 d.raw child.qcow2": "compare child.qcow2 raw:d.raw",
    "info --output=json d.qcow2": "info --json d.qcow2",
    "info --output json --backing-chain child.qcow2": "info --json --chain child.qcow2",
    "info -U -f qcow2 d.qcow2": "info d.qcow2",
    "check -r all d.qcow2": "check d.qcow2",
    "check -r leaks -f qcow2 --output=json d.qcow2": "check --json d.qcow2",
    "check -q d.qcow2": "check d.qcow2",
    "check --quiet -r leaks d.qcow2": "check d.qcow2",
    "map --output=json d.qcow2": "map --json d.qcow2",
    "map -f raw d.raw": "map d.raw",
    "compare -f raw -F qcow2 d.raw d.qcow2": "compare raw:d.raw d.qcow2",
    "compare -p d.raw d.qcow2": "compare raw:d.raw d.qcow2",
    "measure -O qcow2 --output=json d.raw": "measure -O qcow2 --json d.raw",
    "measure --output=json -O qcow2 --size 10G": "measure -O qcow2 --json --size 10G",
    "bitmap --add -g 1M d.qcow2 one": "bitmap list d.qcow2",
    "convert --bitmaps -O qcow2 d.qcow2 new.qcow2": "bitmap list new.qcow2",
    "snapshot -c one d.qcow2": "snapshot list d.qcow2",
    "snapshot -l d.qcow2": "snapshot list d.qcow2",
    "commit -f qcow2 child.qcow2": "info child.qcow2",
    "rebase -u -b d.qcow2 -F qcow2 child.qcow2": "info --json child.qcow2",
    "rebase -b '' -p child.qcow2": "info --json child.qcow2",
    "resize -f qcow2 d.qcow2 +1G": "info --json d.qcow2",
    "resize --shrink d.qcow2 1M": "info --json d.qcow2",
    "amend -f qcow2 -o lazy_refcounts=on d.qcow2": "info --json d.qcow2",
}
"""A line of another program's, and one of ours that shows what came of it."""


@pytest.mark.parametrize("line", TAKEN)
def test_it_is_taken_as_it_is_meant(line: str, images: Path) -> None:
    out, _ = tapdisk(*shlex.split(line), status=0)
    shown, _ = tapdisk(*shlex.split(TAKEN[line]), status=0)
    assert not ("-q" in line and out)
    if "--output" in line and line.split()[0] in TAKEN[line]:
        assert json.loads(out) == json.loads(shown)
    for word, fact in (("20G", 20 << 30), ("+1G", SIZE + (1 << 30)), ("1M", 1 << 20)):
        if line.endswith(word) and "--json" in TAKEN[line]:
            assert json.loads(shown)["virtual_size"] == fact
    if "-F qcow2" in line and "info" in TAKEN[line]:
        assert json.loads(shown)["parent_handle"] == "qcow2"
    if "-b ''" in line:
        assert json.loads(shown)["parent"] is None


def test_a_snapshot_by_options_of_its_action(images: Path) -> None:
    tapdisk("snapshot", "-c", "one", "d.qcow2", status=0)
    tapdisk("snapshot", "-q", "-a", "one", "d.qcow2", status=0)
    tapdisk("convert", "-l", "snapshot.name=one", "-O", "raw", "d.qcow2", "one.img", status=0)
    assert (images / "one.img").read_bytes() == (images / "d.raw").read_bytes()
    tapdisk("convert", "-s", "one", "-O", "raw", "d.qcow2", "two.img", status=0)
    assert (images / "two.img").read_bytes() == (images / "d.raw").read_bytes()
    tapdisk("snapshot", "d.qcow2", "-d", "one", status=0)
    assert tapdisk("snapshot", "-l", "d.qcow2", status=0)[0] == "no snapshots\n"


def test_a_bitmap_by_options_of_its_action(images: Path) -> None:
    for line in ("--add d.qcow2 one", "--add d.qcow2 two", "--disable d.qcow2 one"):
        tapdisk("bitmap", *line.split(), status=0)
    tapdisk("bitmap", "--merge", "two", "d.qcow2", "one", status=0)
    tapdisk("bitmap", "--remove", "d.qcow2", "two", status=0)
    found = json.loads(tapdisk("bitmap", "list", "--json", "d.qcow2", status=0)[0])
    assert [(each["name"], each["enabled"]) for each in found] == [("one", False)]


@pytest.mark.parametrize(
    ("line", "way"),
    [
        ("create -u -f qcow2 -b gone.qcow2 new.qcow2 1G", "rebase --unsafe"),
        ("create -f nosuch new.img 1G", "nosuch"),
        ("create -f raw qcow2:new.img 1G", "'qcow2:new.img' says qcow2, and -f raw"),
        ("create -F qcow2 new.qcow2 1G", "it needs -b"),
        ("convert -t none -O qcow2 d.raw new.qcow2", "page cache"),
        ("convert -S 0 -O raw d.raw new.raw", "preallocation=full"),
        ("convert -U -O raw d.qcow2 new.raw", "tapdisk info"),
        ("convert -r 10M -O raw d.qcow2 new.raw", "ionice"),
        ("convert --image-opts driver=qcow2,file.filename=d.qcow2 new.raw", "HANDLE:PATH"),
        ("convert --target-is-zero -O raw d.qcow2 new.raw", "--into"),
        ("convert -n -c d.raw d.qcow2", "--into"),
        ("info --object secret,id=x,data=y d.qcow2", "--key-file"),
        ("info --output=xml d.qcow2", "json or human"),
        ("map --start-offset=0 d.qcow2", "--json"),
        ("commit -b d.qcow2 child.qcow2", "its own parent"),
        ("resize --preallocation=full d.qcow2 +1M", "unallocated"),
        ("serve -c /dev/nbd0 d.qcow2", "nbd-client"),
        ("serve -d /dev/nbd0", "nbd-client -d"),
        ("serve -L", "nbdinfo"),
        ("serve -l one d.qcow2", "convert --snapshot"),
        ("serve --aio=native d.qcow2", "--cache none"),
        ("serve -v d.qcow2", "--log-level"),
        ("serve --tls-creds tls0 d.qcow2", "--tls-certificates"),
        ("bench -c 100 d.qcow2", "--seconds"),
        ("bench -s 4096 d.qcow2", "--bs"),
        ("mount d.qcow2 /mnt", "nbdfuse"),
        ("dd if=d.raw of=new.raw", "no such command 'dd': tapdisk convert"),
    ],
)
def test_or_one_line_says_the_way(line: str, way: str, images: Path) -> None:
    before = {name: (images / name).read_bytes() for name in os.listdir(images)}
    out, err = tapdisk(*shlex.split(line), status=2)
    assert not out
    assert err.startswith("tapdisk: ")
    assert err.count("\n") == 1
    assert way in err
    assert {name: (images / name).read_bytes() for name in os.listdir(images)} == before


def test_no_help_shows_them() -> None:
    for name in INSTEAD:
        shown, _ = tapdisk(name, "--help", status=0)
        assert "--image-opts" not in shown
        assert "As in qemu-img" not in shown


def test_none_is_suggested() -> None:
    _, err = tapdisk("convert", "--image-op", "a", "b", status=2)
    assert "--image-opts" not in err


@pytest.mark.parametrize("name", ["qcow2", "raw", "aio"])
def test_the_options_of_a_format_need_no_image(name: str) -> None:
    assert "preallocation" in tapdisk("create", "-f", name, "-o", "help", status=0)[0]


def test_without_a_format_the_options_of_all_are_shown() -> None:
    shown, _ = tapdisk("create", "-o", "help", status=0)
    assert "\nqcow2 (" in shown
    assert "\nvmdk (" in shown


# ---- several images --------------------------------------------------------------------------


def test_info_of_several_images_goes_on_past_one_that_is_not_there(images: Path) -> None:
    out, err = tapdisk("info", "--json", "d.qcow2", "gone", "raw:d.raw", status=1)
    found = json.loads(out)
    assert [item["image"] for item in found] == ["d.qcow2", "gone", "d.raw"]
    assert found[1]["error"] == "gone: No such file or directory"
    assert err == "tapdisk: gone: No such file or directory\n"


def test_check_of_several_images_ends_with_what_says_most(images: Path) -> None:
    with open("child.qcow2", "r+b") as file:
        file.truncate(os.path.getsize("child.qcow2") - 65536)
        file.write(b"QFI\xfb" + b"\xff" * 100)
    out, _ = tapdisk("check", "--json", "d.qcow2", "child.qcow2", status=1)
    assert [item["image"] for item in json.loads(out)] == ["d.qcow2", "child.qcow2"]
    out, _ = tapdisk("check", "d.qcow2", "d.qcow2", status=0)
    assert out.count("d.qcow2:\nNo errors were found.\n") == 2


def test_a_quiet_check_of_several_images_says_what_went_wrong_alone(images: Path) -> None:
    assert tapdisk("check", "-q", "d.qcow2", "child.qcow2", status=0) == ("", "")
    out, err = tapdisk("check", "-q", "d.qcow2", "gone.qcow2", "child.qcow2", status=1)
    assert (out, err.count("\n")) == ("", 1)
    assert "gone.qcow2" in err


def test_map_of_several_images_says_whose_each_is(images: Path) -> None:
    found = json.loads(tapdisk("map", "--json", "d.qcow2", "child.qcow2", status=0)[0])
    assert [item["image"] for item in found] == ["d.qcow2", "child.qcow2"]
    alone = json.loads(tapdisk("map", "--json", "d.qcow2", status=0)[0])
    assert found[0]["map"] == alone


def test_one_stranger_to_be_afraid_of_among_several(images: Path) -> None:
    assert "harmless" in tapdisk("inspect", "d.qcow2", "d.qcow2", status=0)[0]
    tapdisk("inspect", "d.qcow2", "child.qcow2", "gone", status=2)
    tapdisk("inspect", "d.qcow2", "gone", status=1)


# ---- into what exists, every difference ------------------------------------------------------


def test_into_a_larger_disk_what_lies_past_the_end_stays(images: Path) -> None:
    (images / "large.raw").write_bytes(b"x" * (SIZE + 1024))
    _, err = tapdisk("convert", "--into", "d.qcow2", "raw:large.raw", status=0)
    assert "what it holds from 2 MiB on stays" in err
    assert (images / "large.raw").read_bytes() == (images / "d.raw").read_bytes() + b"x" * 1024


def test_into_a_target_that_is_zero_writes_none(images: Path) -> None:
    (images / "old.raw").write_bytes(b"x" * SIZE)
    tapdisk("convert", "--into", "--target-is-zero", "d.qcow2", "raw:old.raw", status=0)
    held = (images / "old.raw").read_bytes()
    assert held[4096:8192] == b"data" * 1024
    assert held[-4096:] == b"x" * 4096  # it was not zero: what was promised is believed


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("d.qcow2", "child.qcow2", ""),
        ("child.qcow2", "d.qcow2", "is the source, or one of its parents"),
        ("d.qcow2", "d.qcow2", "is the source, or one of its parents"),
        ("d.qcow2", "raw:small.raw", "is smaller"),
        ("d.qcow2", "gone.qcow2", "No such file"),
    ],
)
def test_what_cannot_be_written_into_is_as_it_was(
    source: str, target: str, why: str, images: Path
) -> None:
    (images / "small.raw").write_bytes(b"x" * 4096)
    before = {name: (images / name).read_bytes() for name in os.listdir(images)}
    _, err = tapdisk("convert", "-n", source, target, status=1 if why else 0)
    assert why in err
    if why:
        assert {name: (images / name).read_bytes() for name in os.listdir(images)} == before


def test_every_range_that_differs_is_listed(images: Path) -> None:
    content = bytearray((images / "d.raw").read_bytes())
    content[0] = 1
    content[1024:2048] = b"y" * 1024
    content[SIZE - 1] = 1
    (images / "other.raw").write_bytes(content + bytes(1024) + b"z" * 512)
    out, _ = tapdisk("compare", "--all", "--json", "d.qcow2", "raw:other.raw", status=1)
    assert json.loads(out) == [
        {"start": 0, "length": 512},
        {"start": 1024, "length": 1024},
        {"start": SIZE - 512, "length": 512},
        {"start": SIZE + 1024, "length": 512},
    ]
    assert (
        json.loads(tapdisk("compare", "--all", "--json", "d.qcow2", "raw:d.raw", status=0)[0]) == []
    )
    out, _ = tapdisk("compare", "--all", "d.qcow2", "raw:other.raw", status=1)
    assert out.splitlines()[-1] == "2.5 KiB (2560 bytes) differ."
