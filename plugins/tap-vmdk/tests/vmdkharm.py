"""What a repair did to an image: whether anything that could be read before is read otherwise."""

import itertools
import subprocess
from collections import Counter
from pathlib import Path

import attrs
from vmdkmutator import Layout

import tapcore
from peers import peer
from tapcore.interface.results import CheckResult
from tapcore.tools.check import check_image
from vmdkwriters import descriptor


@attrs.define
class Seen:
    """What was read of a disk.

    Attributes:
        pieces: of each grain its content; None: it could not be read.
    """

    pieces: list[bytes | None]

    def differs(self, other: "Seen") -> list[int]:
        """The grains that were readable here, and are not the same there."""
        return [
            n
            for n, (one, two) in enumerate(itertools.zip_longest(self.pieces, other.pieces))
            if (one is not None or n >= len(self.pieces)) and one != two
        ]


def by_tapdisk(image: Path, grain: int) -> Seen | None:
    """What tapdisk reads; None where it does not open the image."""
    try:
        disk = tapcore.open(f"vmdk:{image}", readonly=True)
    except tapcore.TapError:
        return None
    with disk:
        if disk.size > 1 << 24:
            return None  # a damaged size: what matters lies in the first sectors of such a disk
        return Seen([piece_of(disk, at, grain) for at in range(0, disk.size, grain)])


def piece_of(disk: tapcore.Disk, at: int, grain: int) -> bytes | None:
    try:
        return disk.pread(at, length=grain)
    except tapcore.TapError:
        return None


def by_qemu(image: Path, grain: int) -> Seen | None:
    """What qemu-img reads; None where it fails."""
    target = image.with_suffix(".raw")
    command = [peer("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", str(image), str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        return None
    content = target.read_bytes()
    return Seen([content[at : at + grain] for at in range(0, len(content), grain)])


def harm(image: Path, grain: int, statistics: Counter[str]) -> str:
    """Repair an image; returns what became worse by that, or nothing."""
    disk = image if image.name == "disk.vmdk" else image.parent / "disk.vmdk"
    before, raw = by_tapdisk(disk, grain), image.read_bytes()
    if before is None:
        return ""
    statistics["opened"] += 1
    try:
        result = check_image(f"vmdk:{disk}", repair="all")
    except tapcore.TapError as exc:
        statistics["not checked"] += 1
        return "" if image.read_bytes() == raw else f"changed, but: {exc}"
    statistics["left corrupt"] += bool(result.corruptions)
    after = by_tapdisk(disk, grain)
    if after is None:
        return "it does not open any more"
    if changed := before.differs(after):
        return f"tapdisk reads the grains {changed} otherwise"
    again = check_image(f"vmdk:{disk}")
    if not _agree(result, again):
        return f"a second check disagrees: {result} {again}"
    if image.read_bytes() == raw:
        return ""
    statistics["changed"] += 1
    return _harm_to_qemu(image, disk, raw, grain, (before, after), statistics)


def _agree(first: CheckResult, second: CheckResult) -> bool:
    return (first.corruptions, first.leaks) == (second.corruptions, second.leaks)


def _harm_to_qemu(
    image: Path,
    disk: Path,
    raw: bytes,
    grain: int,
    ours: tuple[Seen, Seen],
    statistics: Counter[str],
) -> str:
    """What qemu-img read before, it reads after; what it read otherwise than we did, as we do."""
    repaired = image.read_bytes()
    image.write_bytes(raw)
    before = by_qemu(disk, grain)
    image.write_bytes(repaired)
    if before is None:
        return ""
    statistics["read by qemu-img"] += 1
    after = by_qemu(disk, grain)
    if after is None:
        return "qemu-img does not read it any more"
    for number in before.differs(after):
        was, now = (seen.pieces[number : number + 1] for seen in ours)
        if not was or was[0] is None:
            # nothing that we could read: a table that lies half past the end, or a parent that
            # only QEMU finds
            statistics["read by qemu-img alone, and otherwise"] += 1
            continue
        if before.pieces[number : number + 1] == was:
            return f"qemu-img reads the grain {number} otherwise"
        theirs = after.pieces[number] if number < len(after.pieces) else None
        if theirs is None or not theirs.startswith(now[0] or b""):
            return f"qemu-img reads the grain {number} otherwise than before, and than tapdisk"
    return ""


def write(folder: Path, made: Layout, sectors: int) -> Path:
    """Put a made image into a folder, with what belongs to it."""
    if made.kind != "extent":
        (folder / "disk.vmdk").write_bytes(made.raw)
        return folder / "disk.vmdk"
    line = f'RW {sectors} SPARSE "disk-s001.vmdk"'
    (folder / "disk.vmdk").write_bytes(descriptor("twoGbMaxExtentSparse", [line]))
    (folder / "disk-s001.vmdk").write_bytes(made.raw)
    return folder / "disk-s001.vmdk"
