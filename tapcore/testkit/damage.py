"""Damage aimed at what tells two images apart: that is metadata, and what it says."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs

from tapcore.errors import TapError
from tapcore.interface.extent import Extent
from tapcore.testkit.subject import Subject

WORD = 8
_APART = 64


@attrs.frozen
class Damage:
    """The places of a file at which it can be damaged so that something comes of it.

    Attributes:
        content: of the file.
        runs: (start, end) in bytes of what differs from other images, without the disk's content.
        packed: content lies there too that only the driver can read.
    """

    content: bytes
    runs: tuple[tuple[int, int], ...]
    packed: bool = False

    @classmethod
    def between(cls, subject: Subject, image: str, others: Sequence[str]) -> Damage:
        """Compare an image with others of its format, made with other sizes or content."""
        with open(image, "rb") as file:
            content = file.read()
        found = _extents_of(subject, image)
        plain = [
            (extent.offset, extent.offset + extent.nb_sectors * 512)
            for extent in found
            if extent.kind == "data" and extent.fd is not None
        ]
        packed = any(extent.fd is None for extent in found if extent.kind in ("data", "compressed"))
        words: set[int] = set()
        for other in others:
            with open(other, "rb") as file:
                words.update(_differing(content, file.read()))
        places = [at for at in sorted(words) if not any(a <= at < b for a, b in plain)]
        return cls(content, tuple(_runs(places)), packed)

    def aimed(self, content: bytearray, rng: random.Random) -> str:
        """Damage one place of the content, which is as long as before; says what was done."""
        start, end = rng.choice(self.runs)
        width = rng.choice((1, 4, 4, 4, 8))
        at = min(rng.randrange(start, end) & -4, len(content) - width)
        other = rng.choice(self.runs)[0] & -4
        value = rng.choice(
            (
                self.content[other : other + width].ljust(width, b"\0"),
                bytes(width),
                b"\xff" * width,
                (1).to_bytes(width, "little"),
                (1).to_bytes(width, "big"),
                content[at : at + width - 1] + b"\x7f",
                bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 : at + width],
            )
        )
        content[at : at + width] = value
        return f"{value.hex()} at offset {at}"

    def write(self, path: str, rng: random.Random) -> str:
        """Write a damaged copy; returns its path."""
        damaged = bytearray(self.content)
        if self.runs:
            self.aimed(damaged, rng)
        with open(path, "wb") as file:
            file.write(damaged)
        return path


def _extents_of(subject: Subject, image: str) -> list[Extent]:
    try:
        with subject.open(image, readonly=True) as disk:
            dd = disk.state.disks
            return list(dd.drv.td_extents(dd, 0, dd.size))
    except (TapError, OSError):
        return []


def _differing(content: bytes, other: bytes) -> list[int]:
    """Offsets of the words that differ; what one has and the other has not, differs."""
    found = []
    for start in range(0, len(content), 4096):
        mine, others = content[start : start + 4096], other[start : start + 4096]
        if mine == others or not any(mine):
            continue
        for at in range(0, len(mine), WORD):
            if mine[at : at + WORD] != others[at : at + WORD]:
                found.append(start + at)
    return found


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for at in places:
        if runs and at - runs[-1][1] <= _APART:
            runs[-1] = (runs[-1][0], at + WORD)
        else:
            runs.append((at, at + WORD))
    return runs
