"""What NBD clients learn of an image's bitmaps and chain: QEMU's contexts, as QEMU serves them."""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import nbd_client
import pytest
from served import Served, served

from peers import peer
from qcow2tools import MIB, create, qemu_img, qemu_io

KIB = 1 << 10
BITMAP = "qemu:dirty-bitmap:"
Json = list[dict[str, Any]]


def run(*words: object) -> str:
    """A client's output."""
    command = [peer(str(words[0])), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def status(where: list[str], context: str) -> list[tuple[int, int, int]]:
    """(start, length, flags) of each run, neighbours joined."""
    found: list[tuple[int, int, int]] = []
    said: Json = json.loads(run("nbdinfo", "--json", f"--map={context}", *where))
    for each in said:
        start, length, flags = each["offset"], each["length"], each["type"]
        if found and found[-1][2] == flags:
            found[-1] = (found[-1][0], found[-1][1] + length, flags)
        else:
            found.append((start, length, flags))
    return found


def by_qemu(image: Path, context: str, *options: str) -> list[tuple[int, int, int]]:
    server = ["--", "[", peer("qemu-nbd"), "-r", "-f", "qcow2", *options, str(image), "]"]
    return status(server, context)


def dirty(server: Served, name: str) -> list[tuple[int, int]]:
    return [(at, size) for at, size, flags in status([server.uri], BITMAP + name) if flags & 1]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 32 MiB with three bitmaps, of which `off` is disabled."""
    path = create(tmp_path / "disk.qcow2", 32 * MIB)
    qemu_io(path, "write -P 1 0 4M")
    for name, granularity, *more in (("one", "64k"), ("off", "64k", "--disable"), ("fine", "512")):
        qemu_img("bitmap", "--add", "-g", granularity, *more, path, name)
    return path


def test_bitmaps_as_qemu_exports_them(image: Path) -> None:
    qemu_io(image, "write -P 2 1M 100k", "write -P 2 20M 5000", "write -P 2 33554000 432")
    with served(image, "--read-only", "--socket", image.parent / "s") as server:
        offered = json.loads(run("nbdinfo", "--json", server.uri))["exports"][0]["contexts"]
        assert [name for name in offered if name.startswith(BITMAP)] == [
            BITMAP + name for name in ("one", "off", "fine")
        ]
        for name in ("one", "off", "fine"):
            context = BITMAP + name
            assert status([server.uri], context) == by_qemu(image, context, "-B", name)
        assert sum(size for _, size in dirty(server, "one")) == 4 * 64 * KIB
        assert not dirty(server, "off")


def test_qemu_img_map_reads_a_bitmap(image: Path) -> None:
    qemu_io(image, "write -P 2 1M 64k")
    with served(image, "--read-only", "--socket", image.parent / "s"):
        where = f"driver=nbd,server.type=unix,server.path={image.parent}/s"
        options = f"{where},x-dirty-bitmap={BITMAP}one"
        found: Json = json.loads(qemu_img("map", "--output=json", "--image-opts", options))
    # that client shows what is dirty as absent
    assert [(each["start"], each["length"]) for each in found if not each["data"]] == [
        (MIB, 64 * KIB)
    ]


def test_a_bitmap_records_while_it_is_shown(image: Path) -> None:
    with served(image, "--socket", image.parent / "s") as server, server.client() as client:
        assert not dirty(server, "one")
        client.write(3 * MIB + 5, b"x" * 10)
        assert dirty(server, "one") == [(3 * MIB, 64 * KIB)]
        assert dirty(server, "fine") == [(3 * MIB, 512)]
        client.call(nbd_client.WRITE_ZEROES, 64 * KIB, 64 * KIB)
        assert dirty(server, "one") == [(64 * KIB, 64 * KIB), (3 * MIB, 64 * KIB)]
        assert not dirty(server, "off")
    with served(image, "--read-only", "--socket", image.parent / "s") as server:
        assert dirty(server, "fine") == [(64 * KIB, 64 * KIB), (3 * MIB, 512)]


def test_an_inconsistent_bitmap_is_not_offered(image: Path) -> None:
    content = bytearray(image.read_bytes())
    with served(image, "--socket", image.parent / "s") as server, server.client() as client:
        client.write(0, b"x")
        client.flush()
        content = bytearray(image.read_bytes())  # as a crash would leave it
    image.write_bytes(content)
    with served(image, "--read-only", "--socket", image.parent / "s") as server:
        out = run("nbdinfo", "--json", server.uri)
    offered = json.loads(out)["exports"][0]["contexts"]
    assert [name for name in offered if name.startswith(BITMAP)] == [BITMAP + "off"]


def test_an_incremental_backup(image: Path, rng: random.Random) -> None:
    backup = image.parent / "backup.raw"
    with served(image, "--read-only", "--socket", image.parent / "s") as server:
        run("nbdcopy", server.uri, backup)
    with served(image, "--socket", image.parent / "s") as server:
        job = ["--name=g", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bs=4k"]
        words = [peer("fio"), *job, "--number_ios=60", "--iodepth=4", "--output=/dev/null"]
        words += [f"--randseed={rng.randrange(1 << 30)}"]
        subprocess.run(words, check=True, timeout=60, cwd=image.parent)
    with served(image, "--read-only", "--socket", image.parent / "s") as server:
        changed = dirty(server, "one")
        assert 0 < sum(length for _, length in changed) < 16 * MIB
        with backup.open("r+b") as file, server.client() as client:
            for start, length in changed:
                os.pwrite(file.fileno(), client.read(start, length), start)
        run("nbdcopy", server.uri, image.parent / "whole.raw")
    assert backup.read_bytes() == (image.parent / "whole.raw").read_bytes()


def test_depth_as_qemu_tells_it(tmp_path: Path) -> None:
    base = create(tmp_path / "base.qcow2", 8 * MIB)
    qemu_io(base, "write -P 1 0 3M")
    middle = create(tmp_path / "middle.qcow2", parent=str(base))
    qemu_io(middle, "write -P 2 1M 3M", "write -z 5M 1M")
    leaf = create(tmp_path / "leaf.qcow2", parent=str(middle))
    qemu_io(leaf, "write -P 3 2M 64k")
    with served(leaf, "--read-only", "--socket", tmp_path / "s") as server:
        found = status([server.uri], "qemu:allocation-depth")
        assert found == by_qemu(leaf, "qemu:allocation-depth", "-A")
        assert {flags for _, _, flags in found} == {0, 1, 2, 3}
        assert status([server.uri], "tapcore:depth") == found
