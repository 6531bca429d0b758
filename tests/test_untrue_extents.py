"""What a driver's `td_extents` leaves out, or tells twice, is an error: a copy would lose it."""

from collections.abc import Callable, Iterable
from errno import EIO
from pathlib import Path
from typing import Any

import pytest
from nbd_client import BLOCK_STATUS, READ
from nbdwire import Wire, opened

import tapcore
from tapcore import (
    TD_RDONLY,
    DiskDriver,
    DiskInfo,
    DriverError,
    Extent,
    Registry,
    TdCallback,
    hookimpl,
)

SECTORS = 256
MISTAKES: dict[str, Callable[[int, int], list[Any]]] = {
    "nothing": lambda at, n: [],
    "half": lambda at, n: [Extent(at, n // 2, "data")],
    "not the beginning": lambda at, n: [Extent(at + 1, n - 1, "data")],
    "too much": lambda at, n: [Extent(at, n + 1, "data")],
    "a gap": lambda at, n: [Extent(at, 1, "data"), Extent(at + 2, n - 2, "data")],
    "twice": lambda at, n: [Extent(at, n, "data"), Extent(at, n, "data")],
    "backwards": lambda at, n: [Extent(at + 1, n - 1, "data"), Extent(at, 1, "data")],
    "an empty one": lambda at, n: [Extent(at, 0, "data"), Extent(at, n, "data")],
    "less than none": lambda at, n: [Extent(at, -5, "data"), Extent(at - 5, n + 5, "data")],
    "an unknown kind": lambda at, n: [Extent(at, n, "content")],  # type: ignore[arg-type]
}


class Untrue:
    """A disk full of content, of which `td_extents` tells as a test wants it."""

    disk_info = DiskInfo(handle="untrue", name="for tests", api=1)
    told: Callable[[int, int], list[Extent]] = staticmethod(lambda at, n: [])

    @hookimpl
    def td_open(self, dd: DiskDriver) -> None:
        dd.size = SECTORS

    @hookimpl
    def td_queue_read(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        buf[:] = b"x" * len(buf)
        return cb(dd, 0, sector, nb_sectors, id, prv)

    @hookimpl
    def td_extents(self, sector: int, nb_sectors: int) -> Iterable[Extent]:
        return self.told(sector, nb_sectors)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    registry = Registry()
    assert not registry.register(Untrue()).error
    monkeypatch.setattr("tapcore.interface.registry._default", registry)
    (tmp_path / "disk").write_bytes(b"")
    return f"untrue:{tmp_path}/disk"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_copy_is_refused_and_the_driver_named(
    mistake: str, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Untrue, "told", staticmethod(MISTAKES[mistake]))
    target = tmp_path / "copy"
    with pytest.raises(DriverError, match="the driver untrue is wrong: its td_extents tells of"):
        tapcore.convert_image(image, f"aio:{target}")
    assert not target.exists()
    disk = tapcore.open(image, readonly=True)
    with disk, pytest.raises(DriverError):
        list(disk.extents())


def test_what_is_true_is_copied(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def true(at: int, n: int) -> list[Extent]:
        return [Extent(at, 1, "data"), Extent(at + 1, n - 1, "compressed")]

    monkeypatch.setattr(Untrue, "told", staticmethod(true))
    tapcore.convert_image(image, f"aio:{tmp_path}/copy")
    assert (tmp_path / "copy").read_bytes() == b"x" * SECTORS * 512


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_server_answers_with_an_error_and_goes_on(
    mistake: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block status of it, while a read has what the driver reads."""
    monkeypatch.setattr(Untrue, "told", staticmethod(MISTAKES[mistake]))
    with opened(image, TD_RDONLY) as disk:
        wire = Wire(disk)
        assert wire.call(BLOCK_STATUS, 0, SECTORS * 512).error == EIO
        assert wire.call(READ, 0, 65536).content(0, 65536) == b"x" * 65536
        wire.end()
