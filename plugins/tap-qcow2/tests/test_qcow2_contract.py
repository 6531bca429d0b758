"""`qcow2:` keeps a driver's contract, in every layout that changes how it works."""

import os
from typing import Any, ClassVar

import pytest

from tapcore import UsageError, create_image
from tapcore.interface.options import CacheMode
from tapcore.testkit import DriverContract

MIB = 1 << 20


class TestDefault(DriverContract):
    handle = "qcow2"
    qemu_format = "qcow2"
    cache_modes = ("writeback", "none")

    def test_every_option_makes_an_image(self) -> None:
        """The kit's check, for options of which some need another one."""
        needed = {"data_file_raw": {"data_file": "new.data"}}
        for option in self.info().create_options:
            if option.name.startswith("encrypt."):
                continue  # see the tests of encryption
            for value in dict.fromkeys((*option.choices, option.default)):
                options = {**needed.get(option.name, {}), option.name: value}
                path = os.path.join(self.folder, "new")
                self.operations().td_create(path, MIB, None, options if value else {})
                with self.open(path, readonly=True) as disk:
                    assert disk.pread(0, length=MIB + 1) == bytes(MIB)

    def test_bad_options_are_refused(self) -> None:
        """The kit's check; a data file may have any name, so it makes no error by itself."""
        wrong = {option.name: "no such value" for option in self.info().create_options}
        del wrong["data_file"]
        for name, value in [*wrong.items(), ("cluster_size", "513"), ("refcount_bits", "3")]:
            with pytest.raises(UsageError):
                create_image(f"qcow2:{self.folder}/new", MIB, options={name: value})
            assert os.listdir(self.folder) == []


class Layout(DriverContract):
    """Images with create options; smaller and fewer ones than the kit's defaults."""

    sizes: ClassVar[tuple[int, ...]] = ((300 << 10) + 512,)
    damages = 60
    options: ClassVar[dict[str, str]] = {}
    test_every_option_makes_an_image: Any = None  # once is enough
    test_bad_options_are_refused: Any = None
    test_committing_into_the_parent: Any = None
    test_a_power_loss_leaves_a_child: Any = None  # test_qcow2_crash does it, in every layout
    test_a_power_loss_during_a_commit: Any = None
    test_what_was_repaired_is_right: Any = None  # test_unit_repair and others do
    __test__ = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        cls.handle, cls.__test__ = "qcow2", True
        super().__init_subclass__(**kwargs)

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        self.operations().td_create(path, size, None, self.options)
        return path


class TestSmallestClusters(Layout):
    options: ClassVar = {"cluster_size": "512"}
    sizes = ((300 << 10) + 512, 3 << 20)


class TestLargestClusters(Layout):
    options: ClassVar = {"cluster_size": "2M"}
    sizes = ((3 << 20) + 512,)
    damages = 20


class TestExtended(Layout):
    options: ClassVar = {"extended_l2": "on"}
    cache_modes = ("writeback", "none")


class TestExtendedSmall(Layout):
    options: ClassVar = {"extended_l2": "on", "cluster_size": "16K"}


class TestVersion2(Layout):
    options: ClassVar = {"compat": "0.10", "cluster_size": "4K"}


class TestLazyRefcounts(Layout):
    options: ClassVar = {"lazy_refcounts": "on", "cluster_size": "4K"}


class TestOneBitRefcounts(Layout):
    options: ClassVar = {"refcount_bits": "1", "cluster_size": "1K"}


class TestPreallocated(Layout):
    options: ClassVar = {"preallocation": "metadata"}


class TestDataFile(Layout):
    """Plain clusters lie in a file of their own."""

    cache_modes: ClassVar[tuple[CacheMode, ...]] = ("writeback", "none")
    raw = "off"

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        options = {"data_file": f"{name}.data", "data_file_raw": self.raw}
        self.operations().td_create(path, size, None, options)
        return path

    def image_files(self, image: str) -> list[str]:
        return [image, f"{image}.data"]


class TestRawDataFile(TestDataFile):
    raw = "on"
    cache_modes = ("writeback",)
