"""`vhdx:` keeps a driver's contract, in each of its kinds."""

import os
from typing import Any

import pytest

import tapcore
from tapcore.testkit import DriverContract
from vhdxtools import MIB

SMALL = {"block_size": "1M"}


class TestDynamic(DriverContract):
    """As they are made; children are differencing images."""

    handle = "vhdx"
    cache_modes = ("writeback", "none")
    damages = 60


class TestFixed(DriverContract):
    handle = "vhdx"
    damages = 20

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        self.operations().td_create(path, size, None, SMALL | {"subformat": "fixed"})
        return path


class TestLargeSectors(DriverContract):
    """Of 4096 bytes, as guests see them."""

    handle = "vhdx"
    sizes = (4096, 3 * MIB + 4096)
    granularity = 4096
    damages = 20

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        self.operations().td_create(path, size, None, SMALL | {"logical_sector": "4096"})
        return path


@pytest.mark.usefixtures("nothing_at_once")
class TestNothingAtOnce(DriverContract):
    """As if the page cache were empty and full: all is read and written late."""

    handle = "vhdx"
    sizes = (512, 3 * MIB + 512)
    damages = 10

    @pytest.fixture
    def nothing_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("read_now", "write_now", "metadata_now"):
            monkeypatch.setattr(tapcore.ImageFile, name, lambda *_: None)

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        self.operations().td_create(path, size, None, SMALL)
        return path

    def open(self, image: str, *, readonly: bool = False, cache: Any = "writeback") -> tapcore.Disk:
        return tapcore.open(f"vhdx:{image}", readonly=readonly, cache=cache, metadata_cache=2048)
