"""The installed distribution offers its driver to the core, which finds it by content."""

from importlib.metadata import distribution
from pathlib import Path

import tapcore
from vditools import MIB


def test_the_driver_is_registered_and_imports() -> None:
    points = distribution("tap-vdi").entry_points.select(group="tapcore.drivers")
    assert points.names == {"vdi"}
    assert points["vdi"].load().__name__ == "tap_vdi.driver"


def test_it_is_found_without_its_handle(tmp_path: Path) -> None:
    tapcore.create_image(f"vdi:{tmp_path / 'disk'}", MIB)
    with tapcore.open(tmp_path / "disk", readonly=True) as disk:
        assert (disk.handle, disk.size) == ("vdi", MIB)


def test_a_new_image_is_one_by_its_name(tmp_path: Path) -> None:
    tapcore.create_image(tmp_path / "disk.vdi", MIB)
    with tapcore.open(tmp_path / "disk.vdi", readonly=True) as disk:
        assert disk.handle == "vdi"
