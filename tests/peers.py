"""The real clients and servers that tests talk to: ``peer("qemu-io")`` is the path of one.

Where one is missing the test is skipped on a developer's machine, and fails when CI is set, so that
a machine that should test everything cannot quietly test less.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

PACKAGES = {  # command: Debian package
    "bash": "bash",
    "cryptsetup": "cryptsetup-bin",
    "fio": "fio",
    "fish": "fish",
    "gzip": "gzip",
    "img_cat": "sleuthkit",
    "img_stat": "sleuthkit",
    "mkfs.ext4": "e2fsprogs",
    "nbd-client": "nbd-client",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "nbdkit": "nbdkit",
    "pzstd": "zstd",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "xz": "xz-utils",
    "sfdisk": "fdisk",
    "systemd-analyze": "systemd",
    "systemd-sysusers": "systemd",
    "zsh": "zsh",
    "zstd": "zstd",
}


def in_ci() -> bool:
    """Whether this machine is one that must test everything."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false", "no"}


def peer(name: str) -> str:
    """The path of a client; skips the test, or in CI fails it, where it is not installed."""
    package = PACKAGES[name]
    path = shutil.which(name)
    if path is None:
        missing(f"{name} is not installed (Debian package {package})")
    return path


def missing(reason: str) -> NoReturn:
    """Skip the test for something that this machine lacks; in CI, fail it."""
    if in_ci():
        pytest.fail(f"{reason}, and CI is set", pytrace=False)
    pytest.skip(reason)


def by_qemu(command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of QEMU's tools: again where it could not time its key derivation.

    It gives up then, since its clock is too coarse for a short one.

    Args:
        command: words; the first is its path.
        folder: in which it runs.
    """
    for _ in range(10):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            cwd=folder,
        )
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    return done
