"""The tools on qcow2, beside qemu-img on copies of the same images: status, content, metadata."""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tapcore
from peers import peer
from tapcore.cli.main import main

MIB = 1 << 20
SIZE = 5 * MIB + 512


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def qemu_img(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [peer("qemu-img"), *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True)


def qemu_json(*arguments: object) -> Any:
    return json.loads(qemu_img(*arguments, "--output=json").stdout)


def qemu_io(image: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        [peer("qemu-io"), *words, image], check=True, capture_output=True, text=True
    )
    assert "failed" not in done.stdout, done.stdout


def make(
    name: str, rng: random.Random, *, base: str = "", size: int = SIZE, **options: str
) -> None:
    """A qcow2 image with data, zeroes and discarded parts."""
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    parent = ["-b", base, "-F", "raw" if base.endswith(".img") else "qcow2"] if base else []
    qemu_img("create", "-f", "qcow2", *words, *parent, name, size)
    commands = []
    for _ in range(8):
        at = rng.randrange(0, size - 200000, 512)
        length = rng.choice((512, 5120, 65536, 150528))
        kind = rng.choice(("write", "write", "write", "zero", "discard"))
        commands.append(
            f"write -P {rng.randrange(1, 256)} {at} {length}"
            if kind == "write"
            else f"write -z {at} {length}"
            if kind == "zero"
            else f"discard {at} {length}"
        )
    qemu_io(name, *commands)


def content(name: str) -> bytes:
    """What qemu reads."""
    qemu_img("convert", "-O", "raw", name, "content.tmp")
    data = Path("content.tmp").read_bytes()
    os.unlink("content.tmp")
    return data


def clean(*names: str) -> None:
    for name in names:
        done = qemu_img("check", "-f", "qcow2", name, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# ---- convert ---------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "small clusters": {"cluster_size": "4096"},
    "large clusters": {"cluster_size": "2M"},
    "subclusters": {"extended_l2": "on"},
    "version 2": {"compat": "0.10"},
    "zstd": {"compression_type": "zstd"},
}


@pytest.mark.parametrize("compressed", [[], ["-c"]], ids=["", "compressed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_convert_both_ways(rng: random.Random, layout: str, compressed: list[str]) -> None:
    make("a.qcow2", rng, **LAYOUTS[layout])
    options = [word for pair in LAYOUTS[layout].items() for word in ("-o", "=".join(pair))]
    assert main(["convert", "-q", *compressed, *options, "a.qcow2", "b.qcow2"]) == 0
    clean("b.qcow2")
    assert content("b.qcow2") == content("a.qcow2")
    qemu_img("convert", *compressed, *options, "-O", "qcow2", "a.qcow2", "theirs.qcow2")
    assert main(["convert", "-q", "theirs.qcow2", "c.raw"]) == 0
    assert Path("c.raw").read_bytes() == content("a.qcow2")
    ours, theirs = (qemu_json("check", name) for name in ("b.qcow2", "theirs.qcow2"))
    assert ours.get("compressed-clusters") == theirs.get("compressed-clusters")
    assert ours["allocated-clusters"] <= theirs["allocated-clusters"]


def test_convert_flattens_a_chain_or_keeps_a_parent(rng: random.Random) -> None:
    make("base.qcow2", rng, size=3 * MIB)
    make("child.qcow2", rng, base="base.qcow2", cluster_size="8192")
    assert main(["convert", "-q", "child.qcow2", "flat.qcow2"]) == 0
    assert main(["convert", "-q", "-b", "base.qcow2", "child.qcow2", "again.qcow2"]) == 0
    clean("flat.qcow2", "again.qcow2")
    assert content("flat.qcow2") == content("again.qcow2") == content("child.qcow2")
    assert qemu_json("info", "again.qcow2")["backing-filename-format"] == "qcow2"
    held = qemu_json("check", "again.qcow2")["allocated-clusters"]
    assert held < qemu_json("check", "flat.qcow2")["allocated-clusters"]


def test_convert_of_a_snapshot(rng: random.Random) -> None:
    make("a.qcow2", rng)
    before = content("a.qcow2")
    qemu_img("snapshot", "-c", "then", "a.qcow2")
    qemu_io("a.qcow2", "write -P 9 0 1M")
    assert main(["convert", "-q", "--snapshot", "then", "a.qcow2", "b.raw"]) == 0
    assert Path("b.raw").read_bytes() == before
    assert main(["convert", "-q", "--snapshot", "never", "a.qcow2", "c.raw"]) == 1


def test_a_sparse_terabyte(rng: random.Random) -> None:
    qemu_img("create", "-f", "qcow2", "a.qcow2", "1T")
    qemu_io("a.qcow2", "write -P 7 600G 1M")
    assert main(["convert", "-q", "a.qcow2", "b.raw"]) == 0
    assert main(["convert", "-q", "b.raw", "c.qcow2"]) == 0
    clean("c.qcow2")
    assert Path("b.raw").stat().st_blocks * 512 < 2 * MIB
    assert qemu_img("compare", "-f", "qcow2", "-F", "qcow2", "a.qcow2", "c.qcow2").returncode == 0


def test_encrypted(rng: random.Random) -> None:
    make("a.qcow2", rng)
    Path("key").write_bytes(b"correct horse\n")
    luks = ["-o", "encrypt.format=luks,encrypt.key-file=key"]
    assert main(["convert", "-q", *luks, "a.qcow2", "b.qcow2"]) == 0
    assert main(["convert", "-q", "b.qcow2", "c.raw"]) == 1
    assert main(["convert", "-q", "--key-file", "b.qcow2=key", "b.qcow2", "c.raw"]) == 0
    assert Path("c.raw").read_bytes() == content("a.qcow2")
    assert main(["info", "b.qcow2"]) == main(["check", "b.qcow2"]) == 0
    qemu_img(
        "convert", "--object", "secret,id=s,data=correct horse", "--image-opts",
        "driver=qcow2,file.filename=b.qcow2,encrypt.key-secret=s", "-O", "raw", "d.raw",
    )  # fmt: skip
    assert Path("d.raw").read_bytes() == Path("c.raw").read_bytes()


# ---- measure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_measure_is_what_qemu_img_says(
    rng: random.Random, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    make("base.qcow2", rng)
    make("a.qcow2", rng, base="base.qcow2", **LAYOUTS[layout])
    options = [word for pair in LAYOUTS[layout].items() for word in ("-o", "=".join(pair))]
    for source in (["a.qcow2"], ["--size", "10G"]):
        assert main(["measure", *source, "-O", "qcow2", *options, "--json"]) == 0
        theirs = qemu_json("measure", "-O", "qcow2", *options, *source)
        theirs.pop("bitmaps", None)  # the source's, which convert leaves out
        assert json.loads(capsys.readouterr().out) == theirs
        assert main(["measure", *source, "-O", "aio", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == qemu_json("measure", "-O", "raw", *source)


# ---- commit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["base.qcow2", "base.img"])
@pytest.mark.parametrize(("size", "child"), [(SIZE, SIZE), (3 * MIB, SIZE), (SIZE, 3 * MIB)])
def test_commit_as_qemu_img_does(rng: random.Random, base: str, size: int, child: int) -> None:
    if base == "base.img":
        Path(base).write_bytes(rng.randbytes(size))
    else:
        make(base, rng, size=size)
    make("child.qcow2", rng, base=base, size=child, **rng.choice(list(LAYOUTS.values())))
    before = content("child.qcow2")
    os.mkdir("theirs")
    for name in (base, "child.qcow2"):
        shutil.copy(name, "theirs")
    assert main(["commit", "-q", "child.qcow2"]) == 0
    qemu_img("commit", "-f", "qcow2", "theirs/child.qcow2")
    assert content("child.qcow2") == content("theirs/child.qcow2") == before
    assert content(base) == content(f"theirs/{base}")
    clean("child.qcow2", *([base] if base.endswith("qcow2") else []))
    assert not any(
        item["depth"] == 0 and item["present"] for item in qemu_json("map", "child.qcow2")
    )


# ---- rebase ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "child", "new"),
    [(SIZE, SIZE, SIZE), (3 * MIB, SIZE, 4 * MIB), (SIZE, 3 * MIB, MIB), (MIB, SIZE, 6 * MIB)],
)
@pytest.mark.parametrize("layout", ["default", "subclusters"])
def test_rebase_keeps_the_content(
    rng: random.Random, layout: str, old: int, child: int, new: int
) -> None:
    make("old.qcow2", rng, size=old)
    make("child.qcow2", rng, base="old.qcow2", size=child, **LAYOUTS[layout])
    make("new.qcow2", rng, size=new, cluster_size="16384")
    before = content("child.qcow2")
    assert main(["rebase", "-q", "child.qcow2", "-b", "new.qcow2"]) == 0
    clean("child.qcow2")
    info = qemu_json("info", "child.qcow2")
    assert (info["backing-filename"], info["backing-filename-format"]) == ("new.qcow2", "qcow2")
    assert content("child.qcow2") == before


def test_unsafe_rebase_as_qemu_img_does(rng: random.Random) -> None:
    make("old.qcow2", rng)
    make("child.qcow2", rng, base="old.qcow2")
    make("new.qcow2", rng, size=4 * MIB)
    shutil.copy("child.qcow2", "theirs.qcow2")
    assert main(["rebase", "-q", "--unsafe", "child.qcow2", "-b", "new.qcow2"]) == 0
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "new.qcow2", "theirs.qcow2")
    clean("child.qcow2")
    assert content("child.qcow2") == content("theirs.qcow2")


def test_rebase_to_a_raw_parent_and_to_none(rng: random.Random) -> None:
    make("old.qcow2", rng)
    make("child.qcow2", rng, base="old.qcow2")
    before = content("child.qcow2")
    Path("base.img").write_bytes(rng.randbytes(4 * MIB))
    assert main(["rebase", "-q", "child.qcow2", "-b", "base.img"]) == 0
    assert qemu_json("info", "child.qcow2")["backing-filename-format"] == "raw"
    assert content("child.qcow2") == before
    assert main(["rebase", "-q", "child.qcow2", "-b", ""]) == 0
    assert "backing-filename" not in qemu_json("info", "child.qcow2")
    clean("child.qcow2")
    assert content("child.qcow2") == before


# ---- snapshot, amend -------------------------------------------------------------------------


def test_snapshots_beside_qemu_img(rng: random.Random, capsys: pytest.CaptureFixture[str]) -> None:
    make("a.qcow2", rng)
    states = {}
    for number, name in enumerate(("one", "two", "three")):
        states[name] = content("a.qcow2")
        if number % 2:
            qemu_img("snapshot", "-c", name, "a.qcow2")
        else:
            assert main(["snapshot", "-q", "create", "a.qcow2", name]) == 0
        qemu_io("a.qcow2", f"write -P {number + 1} {number}M 512k")
        clean("a.qcow2")
    assert main(["snapshot", "list", "a.qcow2", "--json"]) == 0
    ours = [(item["id"], item["name"]) for item in json.loads(capsys.readouterr().out)]
    theirs = [(item["id"], item["name"]) for item in qemu_json("info", "a.qcow2")["snapshots"]]
    assert ours == theirs
    for name, state in states.items():
        assert main(["snapshot", "-q", "apply", "a.qcow2", name]) == 0
        clean("a.qcow2")
        assert content("a.qcow2") == state
    assert main(["snapshot", "-q", "delete", "a.qcow2", "one"]) == 0
    qemu_img("snapshot", "-d", "two", "a.qcow2")
    clean("a.qcow2")
    for action in ("apply", "delete"):
        assert main(["snapshot", action, "a.qcow2", "one"]) == 1
        assert qemu_img("snapshot", f"-{action[0]}", "one", "a.qcow2", check=False).returncode == 1


@pytest.mark.parametrize(
    "option",
    ["compat=0.10", "compat=1.1", "lazy_refcounts=on", "refcount_bits=32", "refcount_bits=3",
     "cluster_size=4096", "nonsense=1"],
)  # fmt: skip
def test_amend_ends_as_qemu_img_does(rng: random.Random, option: str) -> None:
    make("a.qcow2", rng)
    before = content("a.qcow2")
    shutil.copy("a.qcow2", "theirs.qcow2")
    status = main(["amend", "-q", "a.qcow2", "-o", option])
    theirs = qemu_img("amend", "-f", "qcow2", "-o", option, "theirs.qcow2", check=False)
    assert status == theirs.returncode, theirs.stderr
    clean("a.qcow2")
    assert content("a.qcow2") == before
    keys = ("compat", "lazy-refcounts", "refcount-bits")
    ours, other = (
        qemu_json("info", name)["format-specific"]["data"] for name in ("a.qcow2", "theirs.qcow2")
    )
    assert [ours.get(key) for key in keys] == [other.get(key) for key in keys]


# ---- locks -----------------------------------------------------------------------------------


def test_an_image_that_is_in_use_is_not_touched(rng: random.Random) -> None:
    make("base.qcow2", rng)
    make("child.qcow2", rng, base="base.qcow2")
    before = [Path(name).read_bytes() for name in ("base.qcow2", "child.qcow2")]
    with tapcore.open("qcow2:child.qcow2", readonly=False):
        for command in (
            ["commit", "child.qcow2"],
            ["rebase", "child.qcow2", "-b", ""],
            ["amend", "child.qcow2", "-o", "lazy_refcounts=on"],
            ["snapshot", "create", "child.qcow2", "x"],
            ["convert", "--force", "base.qcow2", "child.qcow2"],
        ):
            assert main(command) == 1
    with tapcore.open("qcow2:base.qcow2", readonly=True):
        assert main(["commit", "child.qcow2"]) == 1
    assert [Path(name).read_bytes() for name in ("base.qcow2", "child.qcow2")] == before
