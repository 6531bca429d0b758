"""`vhd:` keeps a driver's contract, in each of its kinds."""

import os
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore.testkit import DriverContract
from vhdtools import KIB, MIB, make


class TestDynamic(DriverContract):
    """As they are made; children are differencing images."""

    handle = "vhd"
    qemu_format = "vpc"
    damages = 60


class TestFixed(DriverContract):
    handle = "vhd"
    damages = 20

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, f"{name}.vhd")  # at its head there is nothing to see
        self.operations().td_create(path, size, None, {"subformat": "fixed"})
        return path


@pytest.mark.usefixtures("nothing_at_once")
class TestNothingAtOnce(DriverContract):
    """Small blocks, as if the page cache were empty and full: all is read and written late."""

    handle = "vhd"
    sizes = (512, MIB + 512)
    damages = 10

    @pytest.fixture
    def nothing_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("read_now", "write_now", "metadata_now"):
            monkeypatch.setattr(tapcore.ImageFile, name, lambda *_: None)

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        make(Path(path), size, 16 * KIB)
        return path

    def make_child(self, parent: str, size: int | None, name: str = "child") -> str:
        path = os.path.join(self.folder, name)
        make(Path(path), size or self._size_of(parent), 16 * KIB, os.path.basename(parent))
        return path

    def open(self, image: str, *, readonly: bool = False, cache: Any = "writeback") -> tapcore.Disk:
        return tapcore.open(f"vhd:{image}", readonly=readonly, cache=cache, metadata_cache=2048)
