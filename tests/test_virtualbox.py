"""Disks that VirtualBox itself has written, and what it makes of ours.

`scripts/virtualbox.sh DIR` brings its tools; they are used where TAPCORE_VIRTUALBOX=DIR says so.
"""

import os
import random
import subprocess
from pathlib import Path

import pytest

import tapcore
from tapcore.tools.check import check_image

ROOT = os.environ.get("TAPCORE_VIRTUALBOX", "")
SIZE = (9 << 20) + 3 * 512

if not ROOT:
    pytest.skip(
        "TAPCORE_VIRTUALBOX says no folder (scripts/virtualbox.sh makes it)",
        allow_module_level=True,
    )


def virtualbox(tool: str, *words: object) -> str:
    """What a tool of VirtualBox prints."""
    libraries = next(Path(ROOT, "usr/lib").glob("*-linux-gnu"))
    [loader] = libraries.glob("ld-linux-*.so.*")
    home = Path(ROOT, "usr/lib/virtualbox")
    start = [loader, "--library-path", f"{libraries}:{home}", home / tool]
    line = [str(word) for word in (*start, *words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert not done.returncode, said
    return said


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Content with holes, also in a file: `disk.img`."""
    monkeypatch.chdir(tmp_path)
    rng, content = random.Random(16), bytearray(SIZE)
    for _ in range(30):
        at, some = rng.randrange(SIZE), rng.randbytes(rng.randint(1, 60_000))
        content[at : at + len(some)] = some[: SIZE - at]
    Path("disk.img").write_bytes(content)
    return bytes(content)


def reads(image: str) -> bytes:
    with tapcore.open(image, readonly=True) as disk:
        return disk.pread(0, length=disk.size)


THEIRS = [
    *(("vdi", variant) for variant in ("Standard", "Fixed")),
    *(("vhd", variant) for variant in ("Standard", "Fixed")),
    *(
        ("vmdk", v)
        for v in ("Standard", "Fixed", "Split2G", "Split2G,Fixed", "Stream", "Fixed,ESX")
    ),
]


@pytest.mark.parametrize(("handle", "variant"), THEIRS)
def test_what_virtualbox_writes_is_read(handle: str, variant: str, disk: bytes) -> None:
    image = f"disk.{handle}"
    how = (f"--format={handle.upper()}", f"--variant={variant}")
    virtualbox("VBoxManage", "convertfromraw", "disk.img", image, *how)
    assert reads(f"{handle}:{image}") == disk
    found = check_image(f"{handle}:{image}")
    assert not found.corruptions + found.leaks + found.check_errors, found.messages


@pytest.mark.parametrize("handle", ["vdi", "vhd", "vmdk"])
def test_and_what_it_has_made_larger(handle: str, disk: bytes) -> None:
    image, size = f"disk.{handle}", 3 << 30
    virtualbox("VBoxManage", "convertfromraw", "disk.img", image, f"--format={handle.upper()}")
    virtualbox("vbox-img", "resize", "--filename", image, "--size", size)
    with tapcore.open(f"{handle}:{image}", readonly=False) as opened:
        assert opened.size == size
        assert opened.pread(0, length=SIZE) == disk
        assert not any(opened.pread(SIZE, length=1 << 20))
        opened.pwrite(size - 512, b"e" * 512)
    assert not check_image(f"{handle}:{image}").corruptions
    virtualbox("vbox-img", "info", "--filename", image)


OURS = [
    *(("vdi", {"block_size": size}) for size in ("128K", "1M", "128M")),
    ("vdi", {"subformat": "fixed"}),
    *(("vhd", {"subformat": kind}) for kind in ("dynamic", "fixed")),
    *(("qcow2", {"compat": version}) for version in ("0.10", "1.1")),
    *((handle, {}) for handle in ("vhdx", "qcow")),
    *(
        ("vmdk", {"subformat": kind})
        for kind in (
            *("monolithicSparse", "monolithicFlat", "streamOptimized"),
            *("twoGbMaxExtentSparse", "twoGbMaxExtentFlat"),
        )
    ),
]


@pytest.mark.parametrize(("handle", "options"), OURS)
def test_what_is_written_here_virtualbox_reads(
    handle: str, options: dict[str, str], disk: bytes
) -> None:
    image = f"disk.{handle}"
    tapcore.convert_image("raw:disk.img", f"{handle}:{image}", options=options)
    ways = ("--srcfilename", image, "--dstfilename", "back.img", "--dstformat", "RAW")
    virtualbox("vbox-img", "convert", *ways)
    assert Path("back.img").read_bytes() == disk
    if handle in ("vdi", "vhd"):  # others it cannot check
        said = virtualbox("vbox-img", "repair", "--filename", image, "--dry-run")
        assert "consistent state" in said


def test_virtualbox_drops_what_was_zeroed_here(disk: bytes) -> None:
    tapcore.convert_image("raw:disk.img", "vdi:disk.vdi")
    with tapcore.open("vdi:disk.vdi", readonly=False) as opened:
        opened.zero(2 << 20, length=4 << 20)
    before = os.stat("disk.vdi").st_size
    virtualbox("vbox-img", "compact", "--filename", "disk.vdi")
    assert os.stat("disk.vdi").st_size == before - (4 << 20)
    assert reads("vdi:disk.vdi") == disk[: 2 << 20] + bytes(4 << 20) + disk[6 << 20 :]
    assert not check_image("vdi:disk.vdi").leaks
