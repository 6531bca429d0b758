"""Another parent, none, a commit: as others see it, and after a crash at any moment."""

import os
import random
import shutil
from pathlib import Path

import pytest

import tapcore
from tapcore import NotSupportedError
from tapcore.cli.main import main
from tapcore.testkit import Recording
from tapcore.tools.check import check_image
from tapcore.tools.commit import commit_image
from tapcore.tools.rebase import rebase_image
from vhdxtools import (
    MIB,
    content_of,
    dissect_content,
    libvhdi_content,
    make,
    problems,
    qemu_content,
    some_content,
    store_in_part,
)

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
SIZE = 3 * MIB


def chain(folder: Path, rng: random.Random) -> tuple[bytes, bytes]:
    """`base.vhdx`, `other.vhdx` with other content, and `child.vhdx` on the first."""
    contents = some_content(rng, SIZE), some_content(rng, SIZE)
    for name, content in zip(("base", "other"), contents, strict=True):
        make(folder / f"{name}.vhdx", SIZE)
        with tapcore.open(f"vhdx:{folder / name}.vhdx", readonly=False) as disk:
            disk.pwrite(0, content)
    make(folder / "child.vhdx", SIZE, "base.vhdx")
    with tapcore.open(f"vhdx:{folder / 'child.vhdx'}", readonly=False) as disk:
        disk.pwrite(5000, b"mine")
    return contents


def test_a_rebase(tmp_path: Path, rng: random.Random) -> None:
    """Safe, and onto nothing; unsafe."""
    base, other = chain(tmp_path, rng)
    child = str(tmp_path / "child.vhdx")
    want = base[:5000] + b"mine" + base[5004:]
    assert main(["rebase", "-b", str(tmp_path / "other.vhdx"), child]) == 0
    assert content_of(child) == want
    assert libvhdi_content(Path(child), tmp_path / "other.vhdx") == want
    assert main(["rebase", "-b", "", child]) == 0
    (tmp_path / "other.vhdx").rename(tmp_path / "another-name-than-it-had.vhdx")
    assert content_of(child) == want == qemu_content(Path(child))
    make(tmp_path / "leaf.vhdx", SIZE, "base.vhdx")
    leaf = str(tmp_path / "leaf.vhdx")
    renamed = str(tmp_path / "another-name-than-it-had.vhdx")
    assert main(["rebase", "-u", "-b", renamed, leaf]) == 0
    assert content_of(leaf) == other
    for name in ("child.vhdx", "leaf.vhdx"):
        check_image(f"vhdx:{tmp_path / name}", repair="leaks")
        assert not problems((tmp_path / name).read_bytes(), closed=True)


def test_a_child_that_is_stored_in_part_stands_alone(tmp_path: Path, rng: random.Random) -> None:
    """Also where the parent holds nothing, so that nothing has to be copied."""
    make(tmp_path / "base.vhdx", SIZE)
    child, want = tmp_path / "child.vhdx", bytearray(SIZE)
    make(child, SIZE, "base.vhdx")
    for block in (0, 2):
        content, stored = rng.randbytes(MIB), [rng.random() < 0.5 for _ in range(2048)]
        store_in_part(child, block, stored, content, 512)
        for number, there in enumerate(stored):
            if there:
                at = block * MIB + number * 512
                want[at : at + 512] = content[number * 512 :][:512]
    assert content_of(child) == want == libvhdi_content(child, tmp_path / "base.vhdx")
    rebase_image(f"vhdx:{child}", "")
    (tmp_path / "base.vhdx").unlink()
    assert content_of(child) == want == qemu_content(child) == dissect_content(child)
    assert check_image(f"vhdx:{child}", repair="leaks").corruptions == 0
    assert not problems(child.read_bytes(), closed=True)


def test_one_without_a_parent_cannot_have_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / f"{name}.vhdx", MIB)
    with pytest.raises(NotSupportedError, match="only differencing ones can"):
        rebase_image(f"vhdx:{tmp_path / 'a.vhdx'}", f"vhdx:{tmp_path / 'b.vhdx'}", unsafe=True)


def test_a_commit(tmp_path: Path, rng: random.Random) -> None:
    base, _ = chain(tmp_path, rng)
    child = tmp_path / "child.vhdx"
    want = base[:5000] + b"mine" + base[5004:]
    length = child.stat().st_size
    assert main(["commit", str(child)]) == 0
    assert content_of(child) == want == content_of(tmp_path / "base.vhdx")
    assert child.stat().st_size < length
    assert not problems(child.read_bytes(), closed=True)
    with tapcore.open(f"vhdx:{child}", readonly=False) as disk:
        disk.pwrite(SIZE - 4, b"more")
    assert content_of(child) == want[:-4] + b"more"


def test_a_crash_while_it_is_committed(tmp_path: Path, rng: random.Random) -> None:
    """The child takes its parent at every moment, and shows the same content."""
    base, _ = chain(tmp_path, rng)
    want = base[:5000] + b"mine" + base[5004:]
    files = [tmp_path / f"{name}.vhdx" for name in ("base", "child")]
    after = tmp_path / "crashed"
    after.mkdir()
    with Recording(*files) as recording:
        commit_image(f"vhdx:{files[1]}")
    step = max(len(recording.changes) // (10 * THOROUGH), 1)
    for state in (*recording.prefixes(step), *recording.states(rng, 8 * THOROUGH)):
        state.write({file: after / file.name for file in files})
        assert content_of(after / "child.vhdx") == want, str(state)


@pytest.mark.parametrize("parent", ["other.vhdx", ""])
def test_a_crash_while_another_parent_is_recorded(
    parent: str, tmp_path: Path, rng: random.Random
) -> None:
    base, other = chain(tmp_path, rng)
    image, after = tmp_path / "leaf.vhdx", tmp_path / "crashed"
    make(image, SIZE, "base.vhdx")
    after.mkdir()
    shutil.copy2(tmp_path / "base.vhdx", after)
    with Recording(image) as recording:
        name = parent and f"vhdx:{tmp_path / parent}"
        rebase_image(f"vhdx:{image}", name, unsafe=True)
    seen = set()
    for state in (*recording.prefixes(2), *recording.states(rng, 6 * THOROUGH)):
        state.write({image: after / "leaf.vhdx"})
        seen.add(content_of(after / "leaf.vhdx", parents=[tmp_path]))
    assert seen == {base, other if parent else bytes(SIZE)}
