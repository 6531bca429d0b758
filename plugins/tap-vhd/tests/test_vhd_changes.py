"""Another size, another parent, a commit: as QEMU sees it, and after a crash at any moment."""

import json
import os
import random
from pathlib import Path

import attrs
import pytest

import tapcore
from tap_vhd.footer import unpack_footer
from tapcore import NotSupportedError, UsageError
from tapcore.cli.main import main
from tapcore.testkit import Recording
from tapcore.tools.check import check_image
from vhdtools import KIB, MIB, content_of, make, problems, qemu_content, run, some_content

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
BLOCK = 64 * KIB


def resize(path: Path, size: int) -> None:
    with tapcore.open(f"vhd:{path}", readonly=False) as disk:
        disk.resize(size)
        assert disk.size == size


def sound(path: Path) -> bool:
    """Whether there is nothing to be found, but what a smaller disk gave up."""
    return check_image(f"vhd:{path}").corruptions == 0


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_sizes_in_turn(kind: str, tmp_path: Path, rng: random.Random) -> None:
    """What was cut off does not come back."""
    image = tmp_path / "disk.vhd"
    size = 3 * MIB + 512
    tapcore.create_image(f"vhd:{image}", size, options={"subformat": kind} | {"block_size": "512K"})
    want = bytearray(size)
    for _ in range(12):
        at = rng.randrange(len(want) // 512) * 512
        with tapcore.open(f"vhd:{image}", readonly=False) as disk:
            length = min(rng.randint(1, 400) * 512, len(want) - at)
            want[at : at + length] = rng.randbytes(length)
            disk.pwrite(at, want[at : at + length])
            size = rng.choice((512, rng.randint(1, 12000) * 512, rng.randint(1, 8) * 512 * KIB))
            disk.resize(size)
            want = want[:size].ljust(size, b"\0")
            assert disk.pread(0, length=size) == want
        assert content_of(image) == want
        assert qemu_content(image) == want
        assert sound(image)


def test_a_size_by_geometry_becomes_one_to_the_sector(tmp_path: Path) -> None:
    image = tmp_path / "disk.vhd"
    run("qemu-img", "create", "-q", "-f", "vpc", image, 5 * MIB)
    for size in (6 * MIB + 512, 2 * MIB + 1024):
        resize(image, size)
        said = json.loads(run("qemu-img", "info", "--output=json", "-f", "vpc", image))
        assert said["virtual-size"] == size


def test_an_image_of_xenserver_is_no_longer_one(tmp_path: Path, rng: random.Random) -> None:
    """Its map of full blocks would be looked for behind the block table, and say what was."""
    image = tmp_path / "disk.vhd"
    make(image, MIB, BLOCK)
    content = image.read_bytes()
    footer = attrs.evolve(unpack_footer(content[:512]), creator=b"tap\0", creator_version=0x10003)
    image.write_bytes(footer.pack() + content[512:-512] + footer.pack())
    resize(image, 2 * MIB)
    assert unpack_footer(image.read_bytes()[-512:]).creator == b"win "


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.vhd"
    tapcore.create_image(f"vhd:{image}", MIB)
    with (
        tapcore.open(f"vhd:{image}", readonly=False) as disk,
        pytest.raises(UsageError, match="2040 GiB"),
    ):
        disk.resize(3 << 40)


@pytest.mark.parametrize("size", [MIB // 2 + 512, 3 * MIB])
def test_a_crash_while_it_is_resized(size: int, tmp_path: Path, rng: random.Random) -> None:
    image, copy = tmp_path / "disk.vhd", tmp_path / "crashed.vhd"
    make(image, MIB, BLOCK)
    content = some_content(rng, MIB)
    with tapcore.open(f"vhd:{image}", readonly=False) as disk:
        disk.pwrite(0, content)
    after = content[:size].ljust(size, b"\0")
    with Recording(image) as recording:
        resize(image, size)
    seen = set()
    for state in (*recording.prefixes(), *recording.states(rng, 20 * THOROUGH)):
        state.write({image: copy})
        found = content_of(copy)
        assert found in (content, after), str(state)
        seen.add(len(found))
    assert seen == {MIB, size}
    assert not problems(image.read_bytes(), closed=True)


def chain(folder: Path, rng: random.Random) -> tuple[bytes, bytes]:
    """`base.vhd`, `other.vhd` with other content, and `child.vhd` on the first."""
    contents = some_content(rng, MIB), some_content(rng, MIB)
    for name, content in zip(("base", "other"), contents, strict=True):
        tapcore.create_image(f"vhd:{folder / name}.vhd", MIB)
        with tapcore.open(f"vhd:{folder / name}.vhd", readonly=False) as disk:
            disk.pwrite(0, content)
    tapcore.create_image(f"vhd:{folder / 'child.vhd'}", None, parent="base.vhd")
    with tapcore.open(f"vhd:{folder / 'child.vhd'}", readonly=False) as disk:
        disk.pwrite(5000, b"mine")
    return contents


def test_a_rebase(tmp_path: Path, rng: random.Random) -> None:
    """Safe, unsafe, and onto nothing; and back."""
    base, other = chain(tmp_path, rng)
    child = str(tmp_path / "child.vhd")
    want = base[:5000] + b"mine" + base[5004:]
    assert main(["rebase", "-b", str(tmp_path / "other.vhd"), child]) == 0
    assert content_of(child) == want
    assert sound(tmp_path / "child.vhd")
    assert main(["rebase", "-b", "", child]) == 0
    (tmp_path / "other.vhd").rename(tmp_path / "gone.vhd")
    assert content_of(child) == want == qemu_content(Path(child))
    assert unpack_footer(Path(child).read_bytes()[-512:]).disk_type == 3
    tapcore.create_image(f"vhd:{tmp_path / 'leaf.vhd'}", None, parent="base.vhd")
    leaf = str(tmp_path / "leaf.vhd")
    assert main(["rebase", "-u", "-b", str(tmp_path / "gone.vhd"), leaf]) == 0
    assert content_of(leaf) == other
    assert check_image(f"vhd:{leaf}", repair="leaks").corruptions == 0
    assert content_of(leaf) == other


def test_a_commit(tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture) -> None:
    base, _ = chain(tmp_path, rng)
    want = base[:5000] + b"mine" + base[5004:]
    length = (tmp_path / "child.vhd").stat().st_size
    assert main(["commit", str(tmp_path / "child.vhd")]) == 0
    assert content_of(tmp_path / "base.vhd") == want
    assert (tmp_path / "child.vhd").stat().st_size < length
    caplog.clear()
    assert content_of(tmp_path / "child.vhd") == want
    assert not caplog.text
    assert not problems((tmp_path / "child.vhd").read_bytes(), closed=True)
    with tapcore.open(f"vhd:{tmp_path / 'child.vhd'}", readonly=False) as disk:
        disk.pwrite(0, b"again")
    assert content_of(tmp_path / "child.vhd")[:5] == b"again"


def test_a_crash_while_the_parent_changes(tmp_path: Path, rng: random.Random) -> None:
    base, other = chain(tmp_path, rng)
    image, copy = tmp_path / "child.vhd", tmp_path / "crashed.vhd"
    with Recording(image) as recording:
        words = ["rebase", "-u", "-b", str(tmp_path / "other.vhd"), str(image)]
        assert main(words) == 0
    seen = set()
    for state in (*recording.prefixes(), *recording.states(rng, 20 * THOROUGH)):
        state.write({image: copy})
        seen.add(content_of(copy)[:4608])
    assert seen == {base[:4608], other[:4608]}


def test_a_fixed_image_has_no_parent(tmp_path: Path, rng: random.Random) -> None:
    chain(tmp_path, rng)
    fixed = tmp_path / "fixed.vhd"
    tapcore.create_image(f"vhd:{fixed}", MIB, options={"subformat": "fixed"})
    with tapcore.open(f"vhd:{fixed}", readonly=False) as disk:
        leaf = disk.state.disks
        assert leaf is not None
        with pytest.raises(NotSupportedError, match="cannot have a parent"):
            leaf.drv.td_set_parent(leaf, tapcore.DiskId("base.vhd", "vhd"))
        with pytest.raises(NotSupportedError, match="cannot be emptied"):
            leaf.drv.td_make_empty(leaf)


def test_a_child_of_a_longer_parent_does_not_grow(tmp_path: Path) -> None:
    """The rest of its parent would show, since it cannot say of a sector that it is zeroes."""
    parent, child = tmp_path / "parent.vhd", tmp_path / "child.vhd"
    tapcore.create_image(f"vhd:{parent}", 4 * MIB)
    with tapcore.open(f"vhd:{parent}", readonly=False) as disk:
        disk.pwrite(3 * MIB, b"p" * 512)
    tapcore.create_image(f"vhd:{child}", 2 * MIB, parent="vhd:parent.vhd")
    with pytest.raises(NotSupportedError, match="its parent, which is longer, would show"):
        resize(child, 4 * MIB)
    with tapcore.open(f"vhd:{child}") as disk:
        assert disk.size == 2 * MIB
    resize(child, MIB)
