"""Another size: as QEMU and dissect.hypervisor see it, and after a crash at any moment."""

import os
import random
from pathlib import Path

import pytest

import tapcore
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DYNAMIC, FIXED
from tapcore import NotSupportedError, UsageError
from tapcore.testkit import Recording
from tapcore.tools.check import check_image
from tapcore.tools.resize import resize_image
from vditools import (
    KIB,
    MIB,
    content_of,
    dissect_content,
    make,
    problems,
    qemu_content,
    qemu_io,
    run,
    set_entry,
)

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


def filled(path: Path, rng: random.Random, part: float = 0.5) -> bytes:
    """Write into some of it; returns the content."""
    with tapcore.open(f"vdi:{path}", readonly=False) as disk:
        for _ in range(12):
            at = rng.randrange(int(disk.size * part) // 512) * 512
            disk.pwrite(at, rng.randbytes(min(100 * KIB, disk.size - at)))
        return disk.pread(0, length=disk.size)


def check_resized(path: Path, want: bytes) -> None:
    assert content_of(path) == want
    assert not problems(path.read_bytes(), closed=False)
    result = check_image(f"vdi:{path}")
    assert result.corruptions == 0, result.messages


@pytest.mark.parametrize("kind", [DYNAMIC, FIXED])
def test_sizes_one_after_the_other(kind: int, tmp_path: Path, rng: random.Random) -> None:
    """Both directions, each with what was written; small blocks make the map move."""
    for seed in range(2 * THOROUGH):
        rng = random.Random(f"{kind} {seed}")
        path = tmp_path / f"{seed}.vdi"
        block = rng.choice((512, 4 * KIB, 64 * KIB))
        size = rng.randint(1, 300) * 512
        write_image(str(path), new_header(size, block, kind))
        content = filled(path, rng)
        for _ in range(6):
            new = rng.choice((rng.randint(1, 2000), rng.randint(1, 60_000))) * 512
            if block == 512:
                new = min(new, MIB)
            resize_image(f"vdi:{path}", str(new), shrink=True)
            content = content[:new].ljust(new, b"\0")
            check_resized(path, content)
            assert dissect_content(path)[:new] == content
            content = filled(path, rng, rng.random())


def test_the_map_moves_where_it_has_no_room(tmp_path: Path, rng: random.Random) -> None:
    """4 MiB in blocks of 512 bytes need a map of 32 KiB; QEMU leaves half a KiB for 1 MiB ones."""
    path = tmp_path / "disk.vdi"
    run("qemu-img", "create", "-f", "vdi", path, "100M")
    qemu_io(path, ["write -P 1 0 3M", "write -P 2 50M 1M", "write -P 3 99M 1M"])
    content = content_of(path)
    (before,) = (path.read_bytes()[0x158:0x15C],)
    resize_image(f"vdi:{path}", "1G")
    assert path.read_bytes()[0x158:0x15C] != before
    with tapcore.open(f"vdi:{path}", readonly=False) as disk:
        assert disk.pread(0, length=100 * MIB) == content
        disk.pwrite(1023 * MIB, b"end")
    assert not problems(path.read_bytes(), closed=True)
    run("qemu-img", "check", "-f", "vdi", path)
    run("qemu-img", "compare", "-f", "vdi", path, "-F", "raw", _raw(tmp_path, content))


def _raw(folder: Path, content: bytes) -> Path:
    path = folder / "want.raw"
    path.write_bytes(content)
    os.truncate(path, 1 << 30)
    with open(path, "r+b") as file:
        file.seek(1023 * MIB)
        file.write(b"end")
    return path


def test_qemu_writes_on_what_was_resized(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "disk.vdi"
    tapcore.create_image(f"vdi:{path}", 5 * MIB + 512)
    content = filled(path, rng)
    for size in (9 * MIB, 3 * MIB, 20 * MIB):
        resize_image(f"vdi:{path}", str(size), shrink=True)
        content = content[:size].ljust(size, b"\0")
        qemu_io(path, ["write -P 7 2M 1M"])
        content = content[: 2 * MIB] + b"\7" * MIB + content[3 * MIB :]
        assert content_of(path) == qemu_content(path) == content
        run("qemu-img", "check", "-f", "vdi", path)


@pytest.mark.parametrize(("old", "new"), [(300, 4000), (4000, 1000), (999, 1001)])
@pytest.mark.parametrize("kind", [DYNAMIC, FIXED])
def test_a_crash_while_it_is_resized(
    old: int, new: int, kind: int, tmp_path: Path, rng: random.Random
) -> None:
    """It has the old size or the new one, and all content that lies in both."""
    image, copy = tmp_path / "disk.vdi", tmp_path / "crashed.vdi"
    write_image(str(image), new_header(old * 512, 2 * KIB, kind))
    content = filled(image, rng, 1)
    with Recording(image) as recording:
        resize_image(f"vdi:{image}", str(new * 512), shrink=True)
    stays = content[: new * 512]
    step = max(len(recording.changes) // (12 * THOROUGH), 1)
    for state in (*recording.prefixes(step), *recording.states(rng, 12 * THOROUGH)):
        state.write({image: copy})
        found = content_of(copy)
        assert len(found) in (old * 512, new * 512), str(state)
        assert found.startswith(stays), str(state)
        assert not found[len(content) :].strip(b"\0"), str(state)
        check_image(f"vdi:{copy}", repair="all")
        assert content_of(copy) == found, str(state)
        assert not problems(copy.read_bytes(), closed=False), str(state)
    check_resized(image, stays.ljust(new * 512, b"\0"))


def test_what_cannot_be_is_said(tmp_path: Path, rng: random.Random) -> None:
    path, child = tmp_path / "disk.vdi", tmp_path / "child.vdi"
    make(path, MIB, 4 * KIB)
    tapcore.create_image(f"vdi:{child}", None, parent=f"vdi:{path}")
    with pytest.raises(NotSupportedError, match="is a differencing VDI, which is as large as"):
        resize_image(f"vdi:{child}", "2M")
    with pytest.raises(UsageError, match="this VDI can have from 512 bytes to 256 GiB"):
        resize_image(f"vdi:{path}", "257G")
    filled(path, rng)
    set_entry(path, 3, 0)
    set_entry(path, 4, 0)
    with pytest.raises(tapcore.ImageFormatError, match="only be read until it is repaired"):
        resize_image(f"vdi:{path}", "2M")
