"""The programs of docs/examples do what they say; `make lint` has mypy look at them, strictly."""

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nbd_client import Client

import tapcore
from docpages import DOCS

MIB = 1 << 20
SIZE = 20 * MIB
PLACES = (5, 8 * MIB - 3, SIZE - 6)
"""Where the text lies; the second one crosses two pieces of the search."""


def content(rng: random.Random) -> bytes:
    found = bytearray(SIZE)
    found[9 * MIB : 10 * MIB] = rng.randbytes(MIB).replace(b"needle", b"noodle")
    for place in PLACES:
        found[place : place + 6] = b"needle"
    return bytes(found)


@pytest.fixture
def image(tmp_path: Path, rng: random.Random) -> Path:
    """A child, that its parent holds half of."""
    whole = content(rng)
    for name, parent, part in (
        ("base.qcow2", "", slice(0, 9 * MIB)),
        ("disk.qcow2", tmp_path / "base.qcow2", slice(9 * MIB, SIZE)),
    ):
        tapcore.create_image(tmp_path / name, SIZE, parent=parent)
        with tapcore.open(f"qcow2:{tmp_path / name}", "r+b") as disk:
            for at in range(part.start, part.stop, MIB):
                if any(piece := whole[at : at + MIB]):
                    disk.pwrite(at, piece)
    (tmp_path / "whole").write_bytes(whole)
    return tmp_path / "disk.qcow2"


def printed(script: str, *words: object) -> list[str]:
    command = [sys.executable, str(DOCS / "examples" / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_digest(image: Path) -> None:
    base = image.parent / "base.qcow2"
    whole = (image.parent / "whole").read_bytes()
    sums = [
        hashlib.sha256(each).hexdigest() for each in (whole, whole[: 9 * MIB] + bytes(11 * MIB))
    ]
    assert printed("digest.py", image, base) == [f"{sums[0]} {image}", f"{sums[1]} {base}"]


def test_search(image: Path) -> None:
    assert printed("search.py", image, "needle") == list(map(str, PLACES))


def test_overview(image: Path) -> None:
    base = image.parent / "base.qcow2"
    first, second = printed("overview.py", base, image)
    assert first == f"{base}: {3 * MIB} of {SIZE} bytes"
    assert second == f"{image}: {5 * MIB} of {SIZE} bytes"


def test_export(image: Path) -> None:
    target = image.parent / "copy"
    (line,) = printed("export.py", image, target)
    assert target.read_bytes() == (image.parent / "whole").read_bytes()
    assert line.startswith(f"{SIZE} bytes, of which ")
    assert target.stat().st_blocks * 512 < SIZE // 2


def test_offer(image: Path) -> None:
    before = image.read_bytes()
    command = [sys.executable, str(DOCS / "examples/offer.py"), str(image), "sock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=image.parent) as server:
        assert server.stdout is not None
        uri = server.stdout.readline().strip()
        with Client(uri) as client:
            assert client.read(5, 6) == b"needle"
            client.write(0, b"x" * 512)
            assert client.read(0, 512) == b"x" * 512
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(60) == 0
    assert image.read_bytes() == before
