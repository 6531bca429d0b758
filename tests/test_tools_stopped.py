"""Tools that change two images, or one in two places, killed at every point: all reads right."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from interrupts import Moments
from stoppoints import Work, killed

import tapcore
from tapcore.tools.amend import amend_image
from tapcore.tools.commit import commit_image
from tapcore.tools.compare import compare_disks
from tapcore.tools.convert import convert_image
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image
from tapcore.tools.snapshots import apply_snapshot, create_snapshot, delete_snapshot

SIZE = 1 << 20
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

Tool = Callable[[str], object]

TOOLS: dict[str, Tool] = {
    "commit": commit_image,
    "rebase": lambda name: rebase_image(name, ""),
    "rebase to another": lambda name: rebase_image(name, "raw:other.img"),
    "resize": lambda name: resize_image(name, "+70M"),
    "snapshot create": lambda name: create_snapshot(name, "new"),
    "snapshot delete": lambda name: delete_snapshot(name, "old"),
    "snapshot apply": lambda name: apply_snapshot(name, "old"),
    "amend": lambda name: amend_image(name, {"refcount_bits": "32"}),
}


def family(handle: str, rng: random.Random) -> tuple[Work, bytes]:
    """Makes a raw parent, another one, and a child; what the child holds."""
    below, own = rng.randbytes(SIZE), rng.randbytes(150_000)
    content = bytearray(below)
    content[200_000:350_000] = own

    def prepare(folder: Path) -> None:
        (folder / "base.img").write_bytes(below)
        (folder / "other.img").write_bytes(below[: SIZE // 2] + rng.randbytes(SIZE // 2))
        image = f"{handle}:{folder}/child"
        tapcore.create_image(image, SIZE, parent="raw:base.img")
        with tapcore.open(image, readonly=False) as disk:
            disk.pwrite(200_000, own)
        if handle == "qcow2":
            create_snapshot(image, "old")

    return prepare, bytes(content)


CHANGING = [
    *(("qcow2", tool) for tool in TOOLS),
    *(("qcow", tool) for tool in ("commit", "rebase", "rebase to another")),
]


@pytest.mark.parametrize(("handle", "tool"), CHANGING)
def test_a_tool_that_is_killed_leaves_what_was_there(
    tmp_path: Path, rng: random.Random, handle: str, tool: str
) -> None:
    prepare, wanted = family(handle, rng)
    for folder in killed(tmp_path, prepare, lambda folder: TOOLS[tool](f"{handle}:{folder}/child")):
        assert_all_there(folder, handle, wanted)


def assert_all_there(folder: Path, handle: str, wanted: bytes) -> None:
    with tapcore.open(f"{handle}:{folder}/child", readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == wanted, folder.name
    with tapcore.open(f"raw:{folder}/base.img", readonly=True) as disk:
        base = disk.pread(0, length=SIZE)
    assert base[:200_000] + base[350_000:] == wanted[:200_000] + wanted[350_000:]


@pytest.mark.parametrize(("handle", "tool"), CHANGING)
def test_a_tool_that_is_interrupted_ends_and_leaves_what_was_there(
    tmp_path: Path, rng: random.Random, handle: str, tool: str
) -> None:
    """By Ctrl-C in a program: the command line puts it off until the work is done."""
    prepare, wanted = family(handle, rng)

    def interrupted(number: int, at: int) -> int:
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare(folder)
        moments = Moments(at)
        with suppress(KeyboardInterrupt):
            moments.run(lambda: TOOLS[tool](f"{handle}:{folder}/child"))
        with tapcore.open(f"{handle}:{folder}/child", readonly=False):
            pass  # nothing holds it any more
        assert_all_there(folder, handle, wanted)
        return moments.count

    count = interrupted(0, 0)
    for number in range(1, 1 + 4 * THOROUGH):
        interrupted(number, rng.randint(1, count))


@pytest.mark.parametrize("kind", ["raw", "qcow2", "compressed"])
def test_a_conversion_that_is_interrupted_ends(
    tmp_path: Path, rng: random.Random, kind: str
) -> None:
    handle = "raw" if kind == "raw" else "qcow2"
    source, target = f"{handle}:{tmp_path / 'source'}", f"{handle}:{tmp_path / 'target'}"
    tapcore.create_image(source, 4 * SIZE)
    with tapcore.open(source, readonly=False) as disk:
        disk.pwrite(SIZE, rng.randbytes(2 * SIZE))

    def convert(at: int) -> int:
        moments = Moments(at)
        with suppress(KeyboardInterrupt):
            moments.run(lambda: convert_image(source, target, compressed=kind == "compressed"))
        if (tmp_path / "target").exists():  # stopped after it had its place: it is whole then
            with tapcore.open(source, "rb") as one, tapcore.open(target, "rb") as other:
                assert compare_disks(one, other).identical
            (tmp_path / "target").unlink()
        assert [each.name for each in tmp_path.iterdir()] == ["source"]
        return moments.count

    count = convert(0)
    for _ in range(4 * THOROUGH):
        convert(rng.randint(1, count))
    with tapcore.open(source, readonly=False) as disk:
        assert disk.size == 4 * SIZE
