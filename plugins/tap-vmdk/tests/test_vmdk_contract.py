"""The test kit's checks for every kind of VMDK that is written."""

import os
import random
from typing import ClassVar

import pytest

import tapcore
from tapcore.interface.options import CacheMode, DiskId
from tapcore.testkit import DriverContract


class TestMonolithicSparse(DriverContract):
    handle = "vmdk"
    qemu_format = "vmdk"
    notices_changed_parents = True
    cache_modes: ClassVar[tuple[CacheMode, ...]] = ("writeback", "none")


class _Kind(DriverContract):
    """Images of another subformat than the default."""

    sizes: ClassVar[tuple[int, ...]] = ((200 << 10) + 512, 3 << 20)
    options: ClassVar[dict[str, str]] = {}

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, f"{name}.vmdk")
        self.operations().td_create(path, size, None, self.options)
        return path


class TestZeroedGrain(_Kind):
    handle = "vmdk"
    options: ClassVar[dict[str, str]] = {"zeroed_grain": "on"}

    def make_child(self, parent: str, size: int | None, name: str = "child") -> str:
        path = os.path.join(self.folder, f"{name}.vmdk")
        recorded = DiskId(os.path.basename(parent), "vmdk")
        self.operations().td_create(path, size, recorded, self.options)
        return path


class TestMonolithicFlat(_Kind):
    handle = "vmdk"
    options: ClassVar[dict[str, str]] = {"subformat": "monolithicFlat"}
    damages = 100

    def image_files(self, image: str) -> list[str]:
        return [image, image.removesuffix(".vmdk") + "-flat.vmdk"]


class TestSplitSparse(_Kind):
    handle = "vmdk"
    options: ClassVar[dict[str, str]] = {"subformat": "twoGbMaxExtentSparse"}
    damages = 100

    def image_files(self, image: str) -> list[str]:
        return [image, image.removesuffix(".vmdk") + "-s001.vmdk"]


class TestStreamOptimized(_Kind):
    handle = "vmdk"
    options: ClassVar[dict[str, str]] = {"subformat": "streamOptimized"}

    def test_a_power_loss_leaves_what_was_flushed(self, rng: random.Random) -> None:
        """A new one cannot be read before its first flush."""
        image = self.make_image(self.small)
        with self.open(image) as disk:
            disk.pwrite(0, rng.randbytes(512))
        self.lose_power(image, None, [], rng)

    def test_resizing_keeps_the_content(self, cache: CacheMode, rng: random.Random) -> None:
        """A stream has one size: that is said, and its content stays."""
        size = self.sizes[-1]
        image, content = self.make_image(size), rng.randbytes(size)
        with self.open(image, cache=cache) as disk:
            disk.pwrite(0, content)
            for new in (size + 512, size - 512):
                with pytest.raises(tapcore.NotSupportedError):
                    disk.resize(new)
            assert disk.size == size
        with self.open(image, readonly=True, cache=cache) as disk:
            assert disk.pread(0, length=size) == content
