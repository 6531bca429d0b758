"""Images of which the end was cut off: whatever can still be read is right, or it fails."""

import contextlib
import os
import random
import re
from pathlib import Path

import tapcore

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
_BLOCK = 512


def cut_anywhere(handle: str, image: Path, want: bytes, rng: random.Random) -> None:
    """Cut a whole image at random places, and at every kind of boundary; read what is left.

    Args:
        handle: of the driver.
        image: is changed.
        want: the disk's content.
        rng: where it is cut.
    """
    content = image.read_bytes()
    lengths = {rng.randrange(len(content)) for _ in range(8 * THOROUGH)}
    lengths |= {rng.randrange(len(content)) // _BLOCK * _BLOCK for _ in range(6 * THOROUGH)}
    opened = 0
    for length in sorted(lengths):
        image.write_bytes(content[:length])
        with contextlib.suppress(tapcore.TapError):
            _look(f"{handle}:{image}", want, f"{length} bytes of {len(content)}")
            opened += 1
    assert opened or handle == "vmdk"  # a stream ends with what says where all is


def _look(name: str, want: bytes, case: str) -> None:
    with tapcore.open(name, readonly=True) as disk:  # raises where nothing can be read
        unit = disk.cluster_size
        wrong = [
            at for at in range(0, len(want), unit) if not _fails_or_is_right(disk, at, unit, want)
        ]
        # of the one cluster in which the file ends, the rest reads as zeroes
        assert len(wrong) <= 1, f"{case}: wrong without a word at {wrong}"
    with tapcore.open(name, readonly=True, salvage=True) as disk:
        got = disk.pread(0, length=len(want))
        assert disk.salvage is not None
        left = bytearray(want)
        for lost in disk.salvage.ranges:
            left[lost.start : lost.end] = bytes(lost.length)
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
