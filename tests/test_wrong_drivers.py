"""A driver that gives back what cannot be is named, with its hook, in one line."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore import DiskDriver, DiskInfo, DriverError, Registry, TapError, TdCallback, hookimpl
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image


class Wrong:
    """A disk of one sector; a test replaces what its hooks give back."""

    disk_info = DiskInfo(handle="wrong", name="for tests", api=1)
    opened: Any = None
    size: Any = 1
    info: Any = None
    check: Any = None

    @hookimpl
    def td_open(self, dd: DiskDriver) -> Any:
        if self.size is not None:
            dd.size = self.size
        return self.opened

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
        return cb(dd, 0, sector, nb_sectors, id, prv)

    @hookimpl
    def td_info(self) -> Any:
        return self.info

    @hookimpl
    def td_check(self) -> Any:
        return self.check

    @hookimpl
    def td_inspect(self) -> Any:
        return self.check

    @hookimpl
    def td_measure(self) -> Any:
        return self.check


Make = Callable[..., str]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    (tmp_path / "disk").write_bytes(b"")

    def made(**answers: Any) -> str:
        driver = Wrong()
        for name, answer in answers.items():
            setattr(driver, name, answer)
        registry = Registry()
        assert not registry.register(driver).error
        monkeypatch.setattr("tapcore.interface.registry._default", registry)
        return f"wrong:{tmp_path}/disk"

    return made


@pytest.mark.parametrize("returned", [None, 0])
def test_an_image_that_was_opened(image: Make, returned: object) -> None:
    with tapcore.open(image(opened=returned), readonly=True) as disk:
        assert disk.size == 512


def test_an_errno_that_td_open_returns_is_why_it_is_not_open(image: Make) -> None:
    with pytest.raises(TapError) as caught:
        tapcore.open(image(opened=-errno.ENOSPC), readonly=True)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("returned", [1, "open", [], object()])
def test_anything_else_that_td_open_returns(image: Make, returned: object) -> None:
    with pytest.raises(DriverError, match="the driver wrong is wrong: its td_open returned"):
        tapcore.open(image(opened=returned), readonly=True)


def test_a_size_that_was_never_set(image: Make) -> None:
    """It is not taken for an empty disk, which would be copied without a word."""
    with pytest.raises(DriverError, match="the driver wrong has opened the image and set no size"):
        tapcore.open(image(size=None), readonly=True)


@pytest.mark.parametrize("size", [1.0, "1", [1]])
def test_a_size_that_is_no_number(image: Make, size: object) -> None:
    with pytest.raises(DriverError, match="has set a size that is no whole number"):
        tapcore.open(image(size=size), readonly=True)


@pytest.mark.parametrize("info", [None, [], "text"])
def test_info_that_is_no_object(image: Make, info: object) -> None:
    name = image(info=info)
    with pytest.raises(DriverError, match=r"its td_info returned .*, which is no dict"):
        image_info(name)
    disk = tapcore.open(name, readonly=True)
    with disk, pytest.raises(DriverError, match=r"its td_info returned"):
        disk.info()


@pytest.mark.parametrize("result", [None, 0, {}])
def test_results_of_another_kind(image: Make, result: object) -> None:
    name = image(check=result)
    with pytest.raises(DriverError, match=r"its td_check returned .*, which is no CheckResult"):
        check_image(name)
    with pytest.raises(DriverError, match=r"its td_inspect returned .*, which is no Inspection"):
        inspect_image(name)
