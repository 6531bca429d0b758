"""`part:` keeps a driver's contract, whatever the table lies in."""

import os
from typing import ClassVar

import tapcore
from parttables import mbr
from tapcore.testkit import DriverContract

FIRST = 2048
"""The sector at which the partition begins; what lies before and behind it is looked at too."""


class Partition(DriverContract):
    """Partition 2 of a table of three."""

    sizes: ClassVar[tuple[int, ...]] = (512, (200 << 10) + 512, 2 << 20)
    outer: ClassVar[str] = ""
    __test__ = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        cls.handle, cls.__test__ = "part", True
        super().__init_subclass__(**kwargs)

    def make_image(self, size: int, name: str = "image") -> str:
        disk = f"{self.outer}:{os.path.join(self.folder, name)}"
        count = size // 512
        table = mbr((0x83, 1, 2047), (0x83, FIRST, count), (0x83, FIRST + count, 9))
        tapcore.create_image(disk, (FIRST + count + 16) * 512)
        with tapcore.open(disk, readonly=False) as whole:
            whole.pwrite(0, table)
        return f"2:{disk}"


class TestOfARawDisk(Partition):
    outer = "aio"


class TestOfAQcow2(Partition):
    outer = "qcow2"
