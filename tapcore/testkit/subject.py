"""What a test of a driver says about it, and what the checks do with its images."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tapcore.disk import Disk
from tapcore.disk import open as open_image
from tapcore.errors import TapError
from tapcore.interface.access import Access
from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.models import TapDisk
from tapcore.interface.options import CacheMode, DiskId
from tapcore.interface.registry import Registry
from tapcore.opening.door import open_with
from tapcore.testkit.needs import withdraw
from tapcore.testkit.session import Session

SEED = os.environ.get("TAPCORE_SEED") or str(random.SystemRandom().getrandbits(32))


_TINY = 64 << 10


class Subject:
    """The driver under test; a test class sets what differs for it.

    Attributes:
        handle: the driver's handle; the only one that must be set.
        driver: the driver itself, where it is not installed (a module or object).
        sizes: of the images that are made, in bytes; multiples of `granularity`.
        granularity: bytes that the size of every image is a multiple of; itself one of 512.
        cache_modes: "writeback", and "none" where the driver can.
        volatile: the content is gone when the disk is closed.
        any_file: every file is an image of this format, as with raw disks.
        header: so many bytes at the start of a file are damaged in the check of bad input.
        damages: so many damaged files are tried.
        time_limit: CPU seconds that a bad file may take.
        memory_limit: MiB that a bad file may take.
        check_limit: CPU seconds that any single check may take.
        patience: seconds to wait for an answer before it counts as lost.
        qemu_format: QEMU's name of the format, where it has it: images go both ways then.
        notices_changed_parents: a child is refused when its parent was written to.
        growth_limit: MiB by which memory may grow with the work that is done.
    """

    handle: ClassVar[str] = ""
    driver: ClassVar[Any] = None
    sizes: ClassVar[tuple[int, ...]] = (512, (200 << 10) + 512, 3 << 20)
    granularity: ClassVar[int] = 512
    cache_modes: ClassVar[tuple[CacheMode, ...]] = ("writeback",)
    volatile: ClassVar[bool] = False
    any_file: ClassVar[bool] = False
    header: ClassVar[int] = 4096
    damages: ClassVar[int] = 300
    time_limit: ClassVar[float] = 5.0
    memory_limit: ClassVar[int] = 256
    check_limit: ClassVar[float] = 60.0
    patience: ClassVar[float] = 10.0
    qemu_format: ClassVar[str] = ""
    notices_changed_parents: ClassVar[bool] = False
    growth_limit: ClassVar[int] = 12

    folder: str
    _registry: ClassVar[Registry | None] = None

    # ---- to be overridden where the defaults do not do ---------------------------------------

    def make_image(self, size: int, name: str = "image") -> str:
        """Make a new image that reads as zeroes (or as `fresh_content` says).

        Args:
            size: bytes.
            name: of the file, in `self.folder`; each name is used once in a check.

        Returns:
            What stands behind `HANDLE:`.
        """
        path = os.path.join(self.folder, name)
        self.operations().td_create(path, size, None, {})
        return path

    def make_child(self, parent: str, size: int | None, name: str = "child") -> str:
        """Make an image on a parent of the same format (only for drivers with parents).

        Args:
            parent: an image that `make_image` or `make_child` returned.
            size: bytes; None: the parent's.
            name: of the file.
        """
        path = os.path.join(self.folder, name)
        size = self._size_of(parent) if size is None else size
        recorded = DiskId(os.path.basename(parent), self.handle)
        self.operations().td_create(path, size, recorded, {})
        return path

    def fresh_content(self, size: int) -> bytes:
        """What a new image reads as."""
        return bytes(size)

    def image_files(self, image: str) -> list[str]:
        """The host files that an image consists of, without its parents; [] where it has none."""
        return [image] if self.info().file_backed else []

    def host_files(self, image: str) -> list[str]:
        """Those of `image_files` that there are: an image of another kind may have fewer."""
        return [path for path in self.image_files(image) if os.path.exists(path)]

    # ---- the driver ---------------------------------------------------------------------------

    @classmethod
    def registry(cls) -> Registry:
        """The installed drivers, and `driver` where one is set."""
        if cls.__dict__.get("_registry") is None:
            registry = Registry()
            if cls.driver is not None:
                registry.register(cls.driver, handle=cls.handle)
            cls._registry = registry
        assert cls._registry is not None
        return cls._registry

    @classmethod
    def info(cls) -> DiskInfo:
        """The driver's row of the table."""
        return cls.registry().get(cls.handle)

    @classmethod
    def operations(cls) -> TapDisk:
        """The driver's hooks."""
        return cls.registry().operations(cls.handle)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.handle:
            return
        try:
            info, drv = cls.info(), cls.operations()
        except TapError:  # `test_the_driver_loads` tells why
            withdraw(cls, frozenset())
            return
        has = {*info.capabilities, *drv.implemented}
        if info.file_backed:
            has.add("file")
        if info.magic or "td_probe" in has:
            has.add("recognised")
        if not cls.volatile:
            has.add("lasting")
        if not cls.any_file:
            has.add("format")
        if cls.qemu_format:
            has.add("qemu")
        if cls.notices_changed_parents:
            has.add("noticing")
        withdraw(cls, frozenset(has))

    # ---- opening ------------------------------------------------------------------------------

    def open(self, image: str, *, readonly: bool = False, cache: CacheMode = "writeback") -> Disk:
        """The image through the engine, as clients see it; what is only read, read-only."""
        name = f"{self.handle}:{image}"
        readonly = readonly or not self._can_write
        return open_image(name, readonly=readonly, cache=cache, registry=self.registry())

    def access(self) -> Access:
        """With what tools open the images: keys, where they are needed."""
        return Access(registry=self.registry())

    def session(
        self,
        image: str,
        *,
        readonly: bool = False,
        cache: CacheMode = "writeback",
        errors: bool = False,
    ) -> Session:
        """The image with its hooks called directly."""
        name = DiskId(image, self.handle)
        writing = self._can_write and not readonly
        disk = open_with(self.access(), name, writing=writing, cache=cache)
        return Session(disk, patience=self.patience, errors=errors)

    @property
    def _can_write(self) -> bool:
        return "write" in self.info().capabilities

    def _size_of(self, image: str) -> int:
        with self.open(image, readonly=True) as disk:
            return disk.size

    @property
    def small(self) -> int:
        """A size that is quickly done with."""
        return min((size for size in self.sizes if size > _TINY), default=self.sizes[-1])

    def filled(
        self, rng: random.Random, name: str = "image", *, whole: bool = False
    ) -> tuple[str, bytes]:
        """A small image, with content in about half of it where the driver can write.

        Args:
            rng: decides.
            name: of the file.
            whole: with content everywhere.

        Returns:
            The image, and what it reads as.
        """
        size = self.small
        image, content = self.make_image(size, name), bytearray(self.fresh_content(size))
        if "write" not in self.info().capabilities or self.volatile:
            return image, bytes(content)
        with self.open(image) as disk:
            if whole:
                content[:] = rng.randbytes(size)
                disk.pwrite(0, content)
                return image, bytes(content)
            for _ in range(6):
                at = rng.randrange(size)
                piece = rng.randbytes(min(rng.randint(1, max(size // 8, 1)), size - at))
                disk.pwrite(at, piece)
                content[at : at + len(piece)] = piece
        return image, bytes(content)

    def copied(self, image: str, name: str) -> str:
        """A copy of an image's files in a new folder of that name, with the image's own name."""
        folder = os.path.join(self.folder, name)
        os.mkdir(folder)
        for path in self.host_files(image):
            shutil.copy(path, folder)
        return os.path.join(folder, os.path.basename(image))

    def snapshot(self, image: str) -> dict[str, bytes]:
        """The content of every host file of an image."""
        found = {}
        for path in self.host_files(image):
            with open(path, "rb") as file:
                found[path] = file.read()
        return found

    # ---- fixtures -----------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path) -> None:
        self.folder = str(tmp_path)

    @pytest.fixture
    def rng(self, request: pytest.FixtureRequest) -> random.Random:
        """Random numbers that depend on the seed and on the check alone."""
        print(f"to see the same again: TAPCORE_SEED={SEED}")
        return random.Random(f"{SEED} {request.node.name}")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Checks that take `size` or `cache` run once for each."""
        if "size" in metafunc.fixturenames:
            metafunc.parametrize("size", self.sizes)
        if "cache" in metafunc.fixturenames:
            metafunc.parametrize("cache", self.cache_modes)
