"""`qcow:` keeps a driver's contract: encrypted, compressed, as blktap made it."""

import os
import random
from typing import Any

import pytest

import tapcore
from tap_qcow import layout, qcow_create
from tap_qcow.create import l1_end, write_image
from tap_qcow.header import HEADER, Header
from tapcore import DiskId, ImageOpenError, Keys, OpenOptions, ReferencePolicy
from tapcore.constants import TD_RDONLY
from tapcore.interface.access import Access
from tapcore.opening.chain import open_disk
from tapcore.testkit import DriverContract, Session

PASSPHRASE = b"a passphrase"


class QcowContract(DriverContract):
    def test_a_chain_of_three(self, cache: Any, rng: random.Random) -> None:
        """No format is recorded, and what was guessed may not name a parent: the core says so."""
        image = self.make_image(self.sizes[0])
        for depth in range(2):
            image = self.make_child(image, None, f"child{depth}")
        with pytest.raises(ImageOpenError, match="format was only guessed"):
            self.open(image, cache=cache)


class TestQcow(QcowContract):
    handle = "qcow"
    qemu_format = "qcow"
    cache_modes = ("writeback", "none")


class TestLargeClusters(QcowContract):
    """64 KiB, which children never have as they are made here; writes copy what they leave out."""

    handle = "qcow"
    cache_modes = ("writeback", "none")

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        header = Header(layout.Geometry(16, 6), size, l1_offset=HEADER.size)
        write_image(path, header, l1_end(header))
        return path

    def make_child(self, parent: str, size: int | None, name: str = "child") -> str:
        size = self._size_of(parent) if size is None else size
        path = os.path.join(self.folder, name)
        header = Header(layout.Geometry(16, 6), size, l1_offset=4096)
        header.backing_file, header.backing_offset = os.path.basename(parent), HEADER.size
        write_image(path, header, l1_end(header))
        return path


class TestXenImage(QcowContract):
    """With blktap's extension; children are named by their real path."""

    handle = "qcow"

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        qcow_create(path, size, None, 1)
        return path


class TestFewTables(QcowContract):
    """Hardly any memory for tables, which are small: they come and go all the time."""

    handle = "qcow"
    metadata_cache = 1024

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        header = Header(layout.Geometry(9, 6), size, l1_offset=HEADER.size)
        write_image(path, header, l1_end(header))
        return path

    def open(self, image: str, *, readonly: bool = False, cache: Any = "writeback") -> tapcore.Disk:
        return tapcore.open(
            f"qcow:{image}", readonly=readonly, cache=cache, metadata_cache=self.metadata_cache
        )

    def session(
        self, image: str, *, readonly: bool = False, cache: Any = "writeback", errors: bool = False
    ) -> Session:
        options = OpenOptions(
            cache=cache, references=ReferencePolicy(), metadata_cache=self.metadata_cache
        )
        flags = TD_RDONLY if readonly else 0
        disk = open_disk(DiskId(image, "qcow"), self.registry(), flags=flags, options=options)
        return Session(disk, patience=self.patience, errors=errors)


@pytest.mark.usefixtures("nothing_at_once")
class TestNothingAtOnce(QcowContract):
    """As if the page cache were empty, and full: tables are read, clusters written, by threads."""

    handle = "qcow"

    @pytest.fixture
    def nothing_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("read_now", "write_now", "metadata_now"):
            monkeypatch.setattr(tapcore.ImageFile, name, lambda *_: None)

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        header = Header(layout.Geometry(13, 6), size, l1_offset=HEADER.size)
        write_image(path, header, l1_end(header))
        return path


class TestEncrypted(QcowContract):
    handle = "qcow"

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        self.operations().td_create(path, size, None, self._options())
        return path

    def make_child(self, parent: str, size: int | None, name: str = "child") -> str:
        path = os.path.join(self.folder, name)
        size = self._size_of(parent) if size is None else size
        recorded = DiskId(os.path.basename(parent), "qcow")
        self.operations().td_create(path, size, recorded, self._options())
        return path

    def _options(self) -> dict[str, str]:
        key_file = os.path.join(self.folder, "key")
        with open(key_file, "wb") as file:
            file.write(PASSPHRASE + b"\n")
        return {"encrypt.format": "aes", "encrypt.key-file": key_file}

    def open(self, image: str, *, readonly: bool = False, cache: Any = "writeback") -> tapcore.Disk:
        return tapcore.open(f"qcow:{image}", readonly=readonly, cache=cache, keys=PASSPHRASE)

    def access(self) -> Access:
        return Access(registry=self.registry(), keys=Keys(PASSPHRASE))


class TestCompressed(QcowContract):
    """All of it written compressed before: every cluster that is written to is inflated first."""

    handle = "qcow"

    def make_image(self, size: int, name: str = "image") -> str:
        path = super().make_image(size, name)
        with tapcore.open(f"qcow:{path}", readonly=False) as disk:
            disk.write_compressed(0, bytes(size))
        return path
