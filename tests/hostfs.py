"""Block devices and file systems made for a test: loop devices, small or unusual mounts.

All of them need root; without it the test is skipped (in CI: fails) with the reason.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers import missing

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _run(*command: str | Path) -> str:
    """The output of a command; skips the test where this machine cannot run it."""
    words = [str(word) for word in command]
    if os.geteuid():
        missing(f"{words[0]} needs root")
    program = shutil.which(words[0], path=_PATH)
    if program is None:
        missing(f"{words[0]} is not installed")
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def loop_device(file: Path, *, sector_size: int = 512, read_only: bool = False) -> Iterator[str]:
    """A block device over a file; detached at the end."""
    options = ["--read-only"] if read_only else []
    device = _run("losetup", "--find", "--show", "--sector-size", str(sector_size), *options, file)
    try:
        yield device
    finally:
        subprocess.run([shutil.which("losetup", path=_PATH) or "losetup", "-d", device], check=True)


@contextmanager
def mounted(kind: str, where: Path, source: str = "none", options: str = "rw") -> Iterator[Path]:
    """A file system of a kind ("tmpfs", "ramfs", "ext4", ...); unmounted at the end."""
    where.mkdir(exist_ok=True)
    _run("mount", "-t", kind, "-o", options, source, where)
    try:
        yield where
    finally:
        subprocess.run([shutil.which("umount", path=_PATH) or "umount", str(where)], check=True)


def made_on(device: str) -> None:
    """An empty ext4 on a block device."""
    _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", "-m", "0", device)


@contextmanager
def small_ext4(base: Path, size: int, *, sector_size: int = 512) -> Iterator[Path]:
    """An empty ext4 of about `size` bytes, on a device with the sector size given."""
    image = base / "ext4.img"
    with open(image, "wb") as file:
        file.truncate(size)
    with loop_device(image, sector_size=sector_size) as device:
        made_on(device)
        with mounted("ext4", base / "mnt", device) as where:
            yield where
