"""The images that are served: how each kind is made, by QEMU's tools or from disks.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import disks

Maker = Callable[[Path, int], Path]
"""Gives the path of an image that it makes in a folder, of a disk of so many bytes."""


def qemu_img(*args: object) -> None:
    """Run qemu-img, which must succeed."""
    subprocess.run(["qemu-img", *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def raw(folder: Path, size: int) -> Path:
    """Random data throughout."""
    disks.make(folder / "disk.raw", size)
    return folder / "disk.raw"


def full(form: str) -> Maker:
    """All clusters hold random data."""

    def make(folder: Path, size: int) -> Path:
        source, image = raw(folder, size), folder / f"full.{form}"
        qemu_img("convert", "-f", "raw", "-O", form, source, image)
        source.unlink()
        return image

    return make


def empty(form: str) -> Maker:
    """No cluster is allocated."""

    def make(folder: Path, size: int) -> Path:
        image = folder / f"empty.{form}"
        image.unlink(missing_ok=True)
        qemu_img("create", "-q", "-f", form, image, size)
        return image

    return make


def chain(depth: int) -> Maker:
    """A chain in which each image holds every depth-th run of 1 MiB."""

    def make(folder: Path, size: int) -> Path:
        parent: Path | None = None
        for level in range(depth):
            image = folder / f"level{level}.qcow2"
            backing = ["-b", parent.name, "-F", "qcow2"] if parent else []
            qemu_img("create", "-q", "-f", "qcow2", *backing, image, size)
            writes = [
                arg
                for at in range(level, size >> 20, depth)
                for arg in ("-c", f"write -q -P {at % 255 + 1} {at}M 1M")
            ]
            for start in range(0, len(writes), 1000):
                subprocess.run(["qemu-io", *writes[start : start + 1000], str(image)], check=True)
            parent = image
        assert parent is not None
        return parent

    return make


def packed(folder: Path, size: int) -> Path:
    """Compressed clusters: bytes of which half are zero, so that they can be compressed."""
    source, image = raw(folder, size), folder / "packed.qcow2"
    with open(source, "r+b") as file:
        for at in range(0, size, 64 << 10):
            file.seek(at)
            file.write(bytes(32 << 10))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", source, image)
    source.unlink()
    return image
