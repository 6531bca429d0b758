"""Comparing disks, beside `qemu-img compare`."""

import random
import re
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.tools.compare import Comparison, compare_disks
from tapcore.tools.openimage import open_image

MIB = 1 << 20


def compare(one: str, other: str, *, strict: bool = False) -> Comparison:
    with open_image(one) as left, open_image(other) as right:
        return compare_disks(left, right, strict=strict)


def write(path: Path, size: int, *pieces: tuple[int, bytes]) -> str:
    """A sparse file with pieces of data; returns its name as an image."""
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    return f"aio:{path}"


def test_same_and_different(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 4 * MIB, (MIB, b"x" * 5000))
    b = write(tmp_path / "b", 4 * MIB, (MIB, b"x" * 5000))
    c = write(tmp_path / "c", 4 * MIB, (MIB, b"x" * 4999 + b"y"))
    assert compare(a, b) == Comparison(True)
    assert compare(a, b, strict=True) == Comparison(True)
    assert compare(a, c) == Comparison(False, "content", MIB + 4999)


def test_written_zeroes_are_the_same_as_holes_unless_strict(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 2 * MIB)
    b = write(tmp_path / "b", 2 * MIB, (MIB, bytes(8192)))
    assert compare(a, b) == Comparison(True)
    assert compare(a, b, strict=True) == Comparison(False, "allocation", MIB)


def test_a_longer_disk_may_go_on_with_zeroes(tmp_path: Path) -> None:
    a = write(tmp_path / "a", MIB, (0, b"x"))
    b = write(tmp_path / "b", 3 * MIB, (0, b"x"), (2 * MIB, bytes(4096)))
    c = write(tmp_path / "c", 3 * MIB, (0, b"x"), (2 * MIB + 77, b"y"))
    for one, other in ((a, b), (b, a)):
        assert compare(one, other) == Comparison(True, sizes_differ=True)
        assert compare(one, other, strict=True) == Comparison(False, "size", sizes_differ=True)
    for one, other in ((a, c), (c, a)):
        wanted = Comparison(False, "content", 2 * MIB + 77, sizes_differ=True)
        assert compare(one, other) == wanted


def test_holes_on_both_sides_are_not_read(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 1 << 40, (1 << 39, b"x"))
    b = write(tmp_path / "b", 1 << 40, (1 << 39, b"x"))
    assert compare(a, b) == Comparison(True)  # or the test would run into its time limit


def test_empty_disks_are_the_same(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 0)
    assert compare(a, write(tmp_path / "b", 0)) == Comparison(True)
    assert compare(a, write(tmp_path / "c", 512)).identical


def test_other_drivers(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(MIB)
    a = write(tmp_path / "a", 2 * MIB, (0, content))
    assert compare(a, f"ram:{tmp_path}/a").identical
    assert compare(a, f"sync:{tmp_path}/a").identical
    assert not compare("ram:2M", a).identical


def test_a_failed_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write(tmp_path / "a", MIB, (0, b"x"))
    b = write(tmp_path / "b", MIB, (0, b"x"))
    with open_image(a) as one, open_image(b) as other:
        (tmp_path / "a").write_bytes(b"")  # under its feet
        with pytest.raises(tapcore.IOFailedError, match="a: has become shorter while it was open"):
            compare_disks(one, other)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("number", range(12))
def test_the_same_as_qemu_img(
    tmp_path: Path, rng: random.Random, number: int, strict: bool
) -> None:
    qemu_img = peer("qemu-img")
    pieces = [(rng.randrange(0, 3 * MIB, 512), rng.randbytes(3000)) for _ in range(4)]
    changed = list(pieces)
    if number % 3:
        offset, data = pieces[rng.randrange(4)]
        at = rng.randrange(len(data))
        changed.append((offset + at, bytes([data[at] ^ 255])))
    if number % 4 == 0:
        changed.append((rng.randrange(0, 3 * MIB, 4096), bytes(4096)))
    write(tmp_path / "a", 4 * MIB, *pieces)
    size = rng.choice((4 * MIB, 5 * MIB))
    write(tmp_path / "b", size, *changed)
    flags = ["-s"] if strict else []
    theirs = subprocess.run(
        [qemu_img, "compare", *flags, "-f", "raw", "-F", "raw", tmp_path / "a", tmp_path / "b"],
        capture_output=True,
        text=True,
    )
    ours = compare(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b", strict=strict)
    assert ours.identical == (theirs.returncode == 0), theirs.stdout
    told = re.search(r"[Oo]ffset (\d+)", theirs.stdout)
    assert (ours.offset is None) == (told is None), theirs.stdout
    if told is None or ours.offset is None:
        return
    if ours.reason == "allocation":
        # to QEMU a hole up to the end of the file is another kind of hole, from its start on
        assert int(told[1]) <= ours.offset
        between = (tmp_path / "a").read_bytes()[int(told[1]) : ours.offset]
        assert between == bytes(len(between))
    else:
        assert ours.offset & ~511 == int(told[1])
