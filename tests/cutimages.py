"""Images of which the end was cut off: whatever can still be read is right, or it fails."""

import contextlib
import os
import random
import re
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.engine.salvage import Salvage
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
_BLOCK = 512


def cut_anywhere(
    handle: str, image: Path, want: bytes, rng: random.Random, *, whole: bool = False
) -> None:
    """Cut a whole image at random places, and at every kind of boundary; read what is left.

    Args:
        handle: of the driver.
        image: is changed.
        want: the disk's content.
        rng: where it is cut.
        whole: the format's clusters are written whole: of the last one, too, nothing reads as
            zeroes.
    """
    content = image.read_bytes()
    lengths = {rng.randrange(len(content)) for _ in range(8 * THOROUGH)}
    lengths |= {rng.randrange(len(content)) // _BLOCK * _BLOCK for _ in range(6 * THOROUGH)}
    opened = 0
    for length in sorted(lengths):
        image.write_bytes(content[:length])
        with contextlib.suppress(tapcore.TapError):
            case = f"{length} bytes of {len(content)}"
            _look(f"{handle}:{image}", want, case, 0 if whole else 1)
            opened += 1
    assert opened or handle == "vmdk"  # a stream ends with what says where all is


def _look(name: str, want: bytes, case: str, most: int) -> None:
    with tapcore.open(name, readonly=True) as disk:  # raises where nothing can be read
        unit = disk.cluster_size
        wrong = [
            at for at in range(0, len(want), unit) if not _fails_or_is_right(disk, at, unit, want)
        ]
        # of the one cluster in which the file ends, the rest may read as zeroes
        assert len(wrong) <= most, f"{case}: wrong without a word at {wrong}"
    with tapcore.open(name, readonly=True, salvage=True) as disk:
        got = disk.pread(0, length=len(want))
        assert disk.salvage is not None
        left = _without(want, disk.salvage)
        differs = [
            at for at in range(0, len(want), unit) if got[at : at + unit] != left[at : at + unit]
        ]
        assert differs in ([], wrong), f"{case}: not said to be lost: {differs}"
        _zeroes_are_true(disk, want, wrong, unit, case)


def _fails_or_is_right(disk: tapcore.Disk, at: int, unit: int, want: bytes) -> bool:
    try:
        got = disk.pread(at, length=unit)
    except tapcore.LostContentError as exc:
        place = re.search(r"read failed at (\d+): ", str(exc))
        return place is not None and at <= int(place[1]) < at + unit
    right = want[at : at + unit]
    if got == right:
        return True
    there = len(got.rstrip(b"\0"))
    assert got[:there] == right[:there], "neither right nor zeroes"
    return False


def _zeroes_are_true(
    disk: tapcore.Disk, want: bytes, wrong: list[int], unit: int, case: str
) -> None:
    for run in disk.extents():
        if run.kind == "zero" and any(want[run.start : run.end]):
            assert wrong, f"{case}: {run} hides content"
            assert run.start >= wrong[0] - unit, f"{case}: {run} hides content"


def cut_beside_qemu(handle: str, image: Path, rng: random.Random) -> None:
    """Cut an image at random places and convert what is left, beside qemu-img.

    What a strict convert makes is what QEMU made of the whole image; what a salvaging one makes of
    plain clusters is what QEMU makes of the rest: zeroes for all that is not there.

    Args:
        handle: of the driver.
        image: is changed; without compressed clusters.
        rng: where it is cut.
    """
    content = image.read_bytes()
    want = _by_qemu(handle, image)
    assert want is not None
    raw = image.with_name("ours.img")
    with tapcore.open(f"{handle}:{image}", readonly=True) as disk:
        unit = disk.cluster_size
    for length in sorted(rng.randrange(1024, len(content)) for _ in range(3 * THOROUGH)):
        image.write_bytes(content[:length])
        case = f"{length} bytes of {len(content)}"
        with contextlib.suppress(tapcore.TapError):
            tapcore.convert_image(f"{handle}:{image}", f"aio:{raw}", force=True)
            _is_all_but_a_tail(raw.read_bytes(), want, unit, case)
        lost = Salvage()
        with contextlib.suppress(tapcore.TapError):
            tapcore.convert_image(f"{handle}:{image}", f"aio:{raw}", force=True, salvage=lost)
            theirs = _by_qemu(handle, image)
            if theirs is not None:  # it reads a part of a sector
                want = _without(theirs, lost)
                assert raw.read_bytes() == want, f"{case}: QEMU salvages something else"


def _without(content: bytes, lost: Salvage) -> bytes:
    left = bytearray(content)
    for each in lost.ranges:
        left[each.start : each.end] = bytes(each.length)
    return bytes(left)


def _by_qemu(handle: str, image: Path) -> bytes | None:
    raw = image.with_name("theirs.img")
    words = ("convert", "-f", handle, "-O", "raw", image, raw)
    done = subprocess.run([peer("qemu-img"), *words], capture_output=True, timeout=60, check=False)
    return None if done.returncode else raw.read_bytes()


def _is_all_but_a_tail(got: bytes, want: bytes, unit: int, case: str) -> None:
    """But for the one cluster in which the file ends: what it lacks reads as zeroes."""
    assert len(got) == len(want)
    blocks = range(0, len(want), _BLOCK)
    wrong = [at for at in blocks if got[at : at + _BLOCK] != want[at : at + _BLOCK]]
    if not wrong:
        return
    assert wrong[0] // unit == wrong[-1] // unit, f"{case}: wrong without a word at {wrong[0]}"
    there = len(got[wrong[0] : wrong[-1] + _BLOCK].rstrip(b"\0"))
    assert there < _BLOCK, f"{case}: neither right nor zeroes at {wrong[0]}"


def mixed_content(rng: random.Random, size: int, unit: int) -> bytes:
    """Noise, text and holes, each of some units."""
    parts: list[bytes] = []
    done = 0
    while done < size:
        length = unit * rng.randint(1, 5)
        kind = rng.randrange(3)
        noise = rng.randbytes(length) if kind == 0 else rng.randbytes(16) * (length // 16)
        parts.append(noise if kind < 2 else bytes(length))
        done += length
    return b"".join(parts)[:size]


def random_writes(rng: random.Random, size: int) -> list[str]:
    """Commands for qemu-io, in no order, so that the file's order is not that of the disk."""
    commands = []
    for number in range(10):
        length = rng.randrange(1, 512) * _BLOCK
        at = rng.randrange((size - length) // _BLOCK) * _BLOCK
        commands.append(f"write -P {number + 1} {at} {length}")
    return commands


def cut_inside_the_last_cluster(handle: str, image: Path, want: bytes, behind: int = 0) -> None:
    """Everybody says that an image of whole clusters has lost the end of the last one.

    Args:
        handle: of the driver.
        image: is changed; the last sector of its file is also the disk's last that holds content.
        want: the disk's content, up to there.
        behind: bytes of the file behind its last cluster.
    """
    name, copy = f"{handle}:{image}", f"aio:{image.with_suffix('.copy')}"
    os.truncate(image, image.stat().st_size - behind - 700)
    with pytest.raises(tapcore.LostContentError, match="past the end of the file"):
        tapcore.convert_image(name, copy, force=True)
    lost = Salvage()
    tapcore.convert_image(name, copy, force=True, salvage=lost)
    assert [(each.start, each.length) for each in lost.ranges] == [(len(want) - 1024, 1024)]
    got = image.with_suffix(".copy").read_bytes()[: len(want)]
    assert got == want[:-1024] + bytes(1024)
    assert "content-lost" in [each.code for each in inspect_image(name).findings]
    assert check_image(name).corruptions
    with (
        tapcore.open(name, readonly=False) as disk,
        pytest.raises(tapcore.TapError, match="past the end of the file"),
    ):
        disk.pwrite(disk.size - 512, b"x" * 512)
