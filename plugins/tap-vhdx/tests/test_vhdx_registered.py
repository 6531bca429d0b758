"""The installed distribution offers its driver to the core, which finds it by content and name."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

import tapcore
from tapcore import ImageFormatError
from vhdxtools import MIB, make


def test_the_driver_is_registered_and_imports() -> None:
    points = distribution("tap-vhdx").entry_points.select(group="tapcore.drivers")
    assert points.names == {"vhdx"}
    assert points["vhdx"].load().__name__ == "tap_vhdx.driver"


@pytest.mark.parametrize("name", ["disk.vhdx", "disk.avhdx", "disk"])
def test_it_is_found_without_its_handle(name: str, tmp_path: Path) -> None:
    make(tmp_path / name, MIB)
    with tapcore.open(tmp_path / name, readonly=True) as disk:
        assert (disk.handle, disk.size) == ("vhdx", MIB)


def test_what_is_only_named_so_is_none(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    for content in (b"", bytes(100), bytes(4096)):
        path.write_bytes(content)
        with pytest.raises(ImageFormatError, match=r"so not a VHDX image|but does not hold one"):
            tapcore.open(path, readonly=True)
