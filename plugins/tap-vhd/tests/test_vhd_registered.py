"""The installed distribution offers its driver to the core, which finds it by content and name."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

import tapcore
from tapcore import ImageFormatError
from vhdtools import MIB


def test_the_driver_is_registered_and_imports() -> None:
    points = distribution("tap-vhd").entry_points.select(group="tapcore.drivers")
    assert points.names == {"vhd"}
    assert points["vhd"].load().__name__ == "tap_vhd.driver"


@pytest.mark.parametrize(
    ("name", "subformat", "handle"),
    [
        ("disk.vhd", "fixed", "vhd"),
        ("DISK.VHD", "fixed", "vhd"),
        ("disk.vhd", "dynamic", "vhd"),
        ("disk", "dynamic", "vhd"),
    ],
)
def test_it_is_found_without_its_handle(
    name: str, subformat: str, handle: str, tmp_path: Path
) -> None:
    tapcore.create_image(f"vhd:{tmp_path / name}", MIB, options={"subformat": subformat})
    with tapcore.open(tmp_path / name, readonly=True) as disk:
        assert (disk.handle, disk.size) == (handle, MIB)


def test_a_fixed_one_of_another_name_is_refused_until_its_handle_is_said(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    tapcore.create_image(f"vhd:{path}", MIB, options={"subformat": "fixed"})
    with pytest.raises(ImageFormatError, match=r"is a VHD image: .* \(vhd:PATH\)"):
        tapcore.open(path, readonly=True)
    with tapcore.open(f"vhd:{path}", readonly=True) as disk:
        assert disk.size == MIB


def test_what_is_only_named_so_is_none(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    for content in (b"", bytes(100), bytes(4096)):
        path.write_bytes(content)
        with pytest.raises(ImageFormatError, match=r"so not a VHD image|but does not hold one"):
            tapcore.open(path, readonly=True)
