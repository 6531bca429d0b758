"""Tools that change two files, or two places of one, stopped at every point: all is right."""

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from stoppoints import Work, interrupted, killed, stopped

import tapcore
from peers import peer
from tapcore.tools.check import check_image
from tapcore.tools.commit import commit_image
from tapcore.tools.progress import Progress
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image
from vmdkwriters import descriptor

SIZE = 1 << 19
How = Literal["kill", "interrupt", "full"]
HOWS: tuple[How, ...] = ("kill", "interrupt", "full")


def states(
    tmp_path: Path,
    prepare: Work,
    work: Work,
    how: How,
    between: Callable[[Path, Progress], object] | None = None,
) -> Iterator[Path]:
    """The folder after each stop."""
    if how == "interrupt" and between is not None:
        return interrupted(tmp_path, prepare, between)
    if how == "kill":
        return killed(tmp_path, prepare, work)
    return stopped(tmp_path, prepare, work, how)


def read(image: Path, length: int = SIZE) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return disk.pread(0, length=length)


def read_by_qemu(image: Path) -> bytes | None:
    raw = image.with_suffix(".raw")
    command = [peer("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", str(image), str(raw)]
    done = subprocess.run(command, capture_output=True, check=False)
    return raw.read_bytes() if done.returncode == 0 else None


def fill(image: Path, *pieces: tuple[int, bytes]) -> None:
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        for at, content in pieces:
            disk.pwrite(at, content)


def family(rng: random.Random, subformat: str) -> tuple[Work, bytes, bytes]:
    """Makes a parent, a child with content of its own, and a sibling; what two of them hold."""
    below, own = rng.randbytes(SIZE), rng.randbytes(150_000)
    content = bytearray(below)
    content[200_000:350_000] = own

    def prepare(folder: Path) -> None:
        options = {"subformat": subformat}
        tapcore.create_image(f"vmdk:{folder}/base.vmdk", SIZE, options=options)
        fill(folder / "base.vmdk", (0, below))
        for name in ("child", "sibling"):
            image = f"vmdk:{folder}/{name}.vmdk"
            tapcore.create_image(image, None, parent="vmdk:base.vmdk", options=options)
        fill(folder / "child.vmdk", (200_000, own))

    return prepare, below, bytes(content)


@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse"])
@pytest.mark.parametrize("how", HOWS)
def test_a_commit_that_is_stopped_leaves_both_right(
    tmp_path: Path, rng: random.Random, how: How, subformat: str
) -> None:
    prepare, below, wanted = family(rng, subformat)
    spoilt = refused = count = 0

    def work(folder: Path, progress: Progress | None = None) -> None:
        commit_image(f"vmdk:{folder}/child.vmdk", progress=progress)

    for folder in states(tmp_path, prepare, work, how, work):
        count += 1
        assert read(folder / "child.vmdk") == wanted, folder.name
        base = read(folder / "base.vmdk")
        try:
            sibling = read(folder / "sibling.vmdk")
        except tapcore.ImageFormatError:
            spoilt += 1
        else:
            assert sibling == below, f"{folder.name}: a sibling reads what was committed"
        assert base[:200_000] + base[350_000:] == wanted[:200_000] + wanted[350_000:]
        if how == "kill":
            seen = read_by_qemu(folder / "child.vmdk")
            refused += seen is None
            assert seen in (None, wanted)
        for name in ("base", "child"):
            assert not check_image(f"vmdk:{folder}/{name}.vmdk", repair="all").corruptions
        assert read(folder / "child.vmdk") == wanted, folder.name
    assert count > 1
    assert spoilt
    assert refused <= 6, "qemu-img refuses the child only where the two ids are exchanged"
    if how == "kill":
        assert read(tmp_path / "work" / "base.vmdk") == wanted


@pytest.mark.parametrize("before", range(9))
def test_a_content_id_in_two_sectors_is_the_old_one_or_the_new(
    tmp_path: Path, rng: random.Random, before: int
) -> None:
    """Power may fail when one of the two is written, and the other not."""
    content = rng.randbytes(SIZE)
    text = descriptor("monolithicFlat", [f'RW {SIZE // 512} FLAT "flat" 0'])
    at = text.index(b"\nCID=") + 1
    text = text[:at] + b"#".ljust(507 - at - before, b"x") + b"\n" + text[at:]
    assert text.index(b"\nCID=") + 5 == 512 - before
    image = tmp_path / "base.vmdk"
    image.write_bytes(text)
    (tmp_path / "flat").write_bytes(content)
    tapcore.create_image(f"vmdk:{tmp_path}/child.vmdk", None, parent="vmdk:base.vmdk")
    fill(tmp_path / "child.vmdk", (0, content[:512]))
    commit_image(f"vmdk:{tmp_path}/child.vmdk")
    new = image.read_bytes()
    for torn in (text[:512] + new[512:], new[:512] + text[512:]):
        assert torn in (text, new)
    assert text != new


def test_a_commit_after_one_that_was_stopped(tmp_path: Path, rng: random.Random) -> None:
    prepare, _, wanted = family(rng, "monolithicSparse")
    for folder in killed(
        tmp_path, prepare, lambda folder: commit_image(f"vmdk:{folder}/child.vmdk")
    ):
        commit_image(f"vmdk:{folder}/child.vmdk")
        assert read(folder / "base.vmdk") == read(folder / "child.vmdk") == wanted
        assert b"nextParentCID" not in (folder / "child.vmdk").read_bytes()[: 21 * 512]
        assert read_by_qemu(folder / "child.vmdk") == wanted


def test_the_next_write_ends_what_a_stopped_commit_has_left(
    tmp_path: Path, rng: random.Random
) -> None:
    prepare, _, wanted = family(rng, "twoGbMaxExtentSparse")
    for folder in killed(
        tmp_path, prepare, lambda folder: commit_image(f"vmdk:{folder}/child.vmdk")
    ):
        fill(folder / "child.vmdk", (0, wanted[:1]))
        assert read_by_qemu(folder / "child.vmdk") == wanted
        assert b"nextParentCID" not in (folder / "child.vmdk").read_bytes()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("new", ["other.vmdk", ""])
def test_a_rebase_that_is_stopped_leaves_the_child_right(
    tmp_path: Path, rng: random.Random, how: How, new: str
) -> None:
    prepare, below, wanted = family(rng, "monolithicSparse")

    def with_another(folder: Path) -> None:
        prepare(folder)
        tapcore.create_image(f"vmdk:{folder}/other.vmdk", SIZE)
        fill(folder / "other.vmdk", (0, below[:250_000]))

    def work(folder: Path, progress: Progress | None = None) -> None:
        name = f"vmdk:{new}" if new else ""
        rebase_image(f"vmdk:{folder}/child.vmdk", name, progress=progress)

    for folder in states(tmp_path, with_another, work, how, work):
        assert read(folder / "child.vmdk") == wanted, folder.name
        assert not check_image(f"vmdk:{folder}/child.vmdk", repair="all").corruptions
        assert read(folder / "child.vmdk") == wanted, folder.name


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "subformat",
    ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"],
)
def test_a_disk_that_was_growing_has_the_old_size_or_the_new(
    tmp_path: Path, rng: random.Random, how: How, subformat: str
) -> None:
    content = rng.randbytes(SIZE)

    def prepare(folder: Path) -> None:
        image = f"vmdk:{folder}/disk.vmdk"
        tapcore.create_image(image, SIZE, options={"subformat": subformat})
        fill(folder / "disk.vmdk", (0, content))

    def work(folder: Path) -> None:
        resize_image(f"vmdk:{folder}/disk.vmdk", "70M")

    sizes = set()
    for folder in states(tmp_path, prepare, work, how):
        with tapcore.open(f"vmdk:{folder}/disk.vmdk", readonly=True) as disk:
            sizes.add(disk.size)
            assert disk.pread(0, length=SIZE) == content, folder.name
            assert not any(disk.pread(disk.size - 512, length=512)) or disk.size == SIZE
        with tapcore.open(f"vmdk:{folder}/disk.vmdk", readonly=False) as disk:
            disk.pwrite(0, content[:4096])
        resize_image(f"vmdk:{folder}/disk.vmdk", "70M")
    assert sizes <= {SIZE, 70 << 20}
    assert SIZE in sizes


@pytest.mark.parametrize("how", HOWS)
def test_a_repair_that_is_stopped_leaves_what_was_readable(
    tmp_path: Path, rng: random.Random, how: How
) -> None:
    content = rng.randbytes(SIZE)

    def prepare(folder: Path) -> None:
        image = folder / "disk.vmdk"
        tapcore.create_image(f"vmdk:{image}", 40 << 20)
        fill(image, (0, content))
        raw = bytearray(image.read_bytes())
        rgd = int.from_bytes(raw[48:56], "little") * 512
        raw[rgd + 4 : rgd + 8] = (128).to_bytes(4, "little")
        image.write_bytes(raw)

    def work(folder: Path) -> None:
        check_image(f"vmdk:{folder}/disk.vmdk", repair="all")

    for folder in states(tmp_path, prepare, work, how):
        assert read(folder / "disk.vmdk") == content, folder.name
        assert check_image(f"vmdk:{folder}/disk.vmdk", repair="all").corruptions == 0


@pytest.mark.parametrize("how", ["interrupt", "full"])
@pytest.mark.parametrize(
    "subformat",
    [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ],
)
def test_a_disk_that_could_not_be_made_leaves_nothing(
    tmp_path: Path, how: Literal["interrupt", "full"], subformat: str
) -> None:
    def work(folder: Path) -> None:
        image = f"vmdk:{folder}/disk.vmdk"
        tapcore.create_image(image, 3 << 30, options={"subformat": subformat})

    for folder in stopped(tmp_path, _nothing, work, how):
        if (folder / "disk.vmdk").exists():
            with tapcore.open(f"vmdk:{folder}/disk.vmdk", readonly=True) as disk:
                assert disk.size == 3 << 30
        else:
            assert not list(folder.iterdir()), folder.name


def _nothing(folder: Path) -> None:
    """Begin with an empty folder."""
