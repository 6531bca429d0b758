"""`vdi:` keeps a driver's contract, in each of its kinds."""

import os
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from tap_vdi.create import new_header, write_image
from tap_vdi.header import DIFFERENCING, DYNAMIC
from tap_vdi.parents import new_parent
from tapcore import DiskId
from tapcore.testkit import DriverContract
from vditools import KIB, MIB, make


class TestDynamic(DriverContract):
    """As they are made; children are differencing images."""

    handle = "vdi"
    qemu_format = "vdi"
    notices_changed_parents = True
    cache_modes = ("writeback", "none")
    damages = 60


class TestFixed(DriverContract):
    handle = "vdi"
    damages = 20

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        self.operations().td_create(path, size, None, {"subformat": "fixed"})
        return path


class TestWithExtraBytes(DriverContract):
    """Of whoever made the image, before each block."""

    handle = "vdi"
    sizes = (512, MIB + 512)
    damages = 20

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        write_image(path, attrs.evolve(new_header(size, 64 * KIB, DYNAMIC), extra=512))
        return path


@pytest.mark.usefixtures("nothing_at_once")
class TestNothingAtOnce(DriverContract):
    """Small blocks, as if the page cache were empty and full: all is read and written late."""

    handle = "vdi"
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
        below = new_parent(self.folder, DiskId(parent, "vdi"))
        header = new_header(size or below.disk_size, 16 * KIB, DIFFERENCING)
        header = attrs.evolve(header, parent=below.id, parent_modified=below.modified)
        write_image(path, header)
        return path

    def open(self, image: str, *, readonly: bool = False, cache: Any = "writeback") -> tapcore.Disk:
        return tapcore.open(f"vdi:{image}", readonly=readonly, cache=cache, metadata_cache=2048)
