"""What was done to files, and what of it a crash can leave."""

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import attrs

SECTOR = 512
NEVER = 1 << 62


@attrs.define(eq=False)
class Change:
    """Something that was done to a file.

    Attributes:
        path: of the file.
        kind: "write", "zero" (a hole was punched, or the like), "size".
        offset: bytes; of a "write" at a sector's start, once the recording is over.
        data: what was written; after the recording filled up to whole sectors.
        end: of the range (bytes), or the new size.
        began: moment before the system call.
        done: moment after it.
        safe: moment at which an fdatasync that covers it was done.
        metadata: it came through `write_metadata`.
    """

    path: str
    kind: Literal["write", "zero", "size"]
    offset: int
    data: bytes
    end: int
    began: int
    done: int = NEVER
    safe: int = NEVER
    metadata: bool = False

    def __str__(self) -> str:
        what = {"write": "write", "zero": "zero", "size": "resize to"}[self.kind]
        where = f"{self.offset:#x}+{self.end - self.offset:#x}" if self.kind != "size" else self.end
        return f"{self.began}: {os.path.basename(self.path)} {what} {where}"

    def apply(self, content: bytearray, sectors: set[int] | None = None) -> None:
        """Do it to a file's content.

        Args:
            content: of the file.
            sectors: of a write: those of its sectors that reach the disk; None for all.
        """
        if self.kind == "size":
            del content[self.end :]
            content.extend(bytes(self.end - len(content)))
        elif self.kind == "zero":
            end = min(self.end, len(content))
            if end > self.offset:
                content[self.offset : end] = bytes(end - self.offset)
        else:
            self._write(content, sectors)

    def _write(self, content: bytearray, sectors: set[int] | None) -> None:
        content.extend(bytes(max(self.end - len(content), 0)))
        if sectors is None:
            end = min(self.offset + len(self.data), len(content))
            content[self.offset : end] = self.data[: end - self.offset]
            return
        for number in sectors:
            at = self.offset + number * SECTOR
            end = min(at + SECTOR, len(content))
            content[at:end] = self.data[number * SECTOR :][: end - at]


@attrs.frozen
class Barrier:
    """An fdatasync of a file that succeeded: when it began, and when it was done."""

    path: str
    began: int
    done: int


@attrs.frozen(eq=False)
class State:
    """What may be on the disk after a crash.

    Attributes:
        moment: of the crash.
        contents: of every recorded file.
        lost: what had begun, or was even done, and is not there, or not all of it.
    """

    moment: int
    contents: Mapping[str, bytes]
    lost: tuple[str, ...] = ()

    def write(self, places: Mapping[str | Path, str | Path]) -> None:
        """Write the files, each to the place given for it."""
        for path, place in places.items():
            with open(place, "wb") as file:
                _write_sparsely(file.fileno(), self.contents[os.path.realpath(path)])

    def __str__(self) -> str:
        return f"crash at {self.moment}; lost: {', '.join(self.lost) or 'nothing'}"


def way_of_losing(rng: random.Random, pending: list[Change]) -> Callable[[Change], bool]:
    """Which of the changes that may be lost are kept; single survivors find most mistakes."""
    pending = [change for change in pending if change.metadata] or pending
    way = rng.randrange(5)
    if way == 0 or not pending:
        return lambda change: False
    if way == 1:
        survivor = rng.choice(pending)
        return lambda change: change is survivor
    if way == 2:
        victim = rng.choice(pending)
        return lambda change: change is not victim
    share = rng.choice((0.1, 0.5, 0.9))
    if way == 3:  # what came late is there, what came early is not
        start = rng.choice(pending).began
        return lambda change: change.began >= start
    return lambda change: rng.random() < share


def torn(rng: random.Random, sectors: int) -> set[int]:
    """Some of a write's sectors: its head, its tail, or any."""
    cut = rng.randrange(sectors + 1)
    way = rng.randrange(3)
    if way == 0:
        return set(range(cut))
    if way == 1:
        return set(range(cut, sectors))
    return {number for number in range(sectors) if rng.random() < 0.5}


def _write_sparsely(fd: int, content: bytes) -> None:
    """Write an empty file's content, but for its zeroes."""
    piece = 64 << 10
    zeroes = bytes(piece)
    os.ftruncate(fd, len(content))
    with memoryview(content) as view:
        for start in range(0, len(content), piece):
            part = view[start : start + piece]
            if part != zeroes[: len(part)]:
                os.pwrite(fd, part, start)
