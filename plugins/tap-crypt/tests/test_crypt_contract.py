"""`crypt:` keeps a driver's contract, with both versions of LUKS."""

import os
from pathlib import Path
from typing import Any, ClassVar

import tapcore
from lukstools import KEY, Luks2, by_hand
from tapcore.interface.access import Access
from tapcore.testkit import DriverContract


class Encrypted(DriverContract):
    """Disks that hold zeroes, encrypted; the key is given."""

    sizes: ClassVar[tuple[int, ...]] = ((200 << 10) + 512, 2 << 20)
    __test__ = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        cls.handle, cls.__test__ = "crypt", True
        super().__init_subclass__(**kwargs)

    def disk(self, size: int) -> bytes:
        """The file's content."""
        raise NotImplementedError

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name)
        Path(path).write_bytes(self.disk(size))
        return f"aio:{path}"

    def access(self) -> Access:
        return Access(registry=self.registry(), keys=tapcore.Keys(KEY))

    def open(self, image: str, *, readonly: bool = False, cache: Any = "writeback") -> tapcore.Disk:
        return tapcore.open(f"crypt:{image}", readonly=readonly, cache=cache, keys=KEY)


class TestVersion1(Encrypted):
    def disk(self, size: int) -> bytes:
        return by_hand(bytes(size))


class TestVersion2(Encrypted):
    """Sectors of 4096 bytes: smaller writes read first."""

    sizes = ((200 << 10) + 4096, 2 << 20)
    granularity = 4096

    def disk(self, size: int) -> bytes:
        return bytes(Luks2(4096).disk(bytes(size)))
