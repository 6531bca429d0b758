"""The installed distribution offers its driver to the core."""

from importlib.metadata import distribution


def test_the_driver_is_registered_and_imports() -> None:
    points = distribution("tap-qcow").entry_points.select(group="tapcore.drivers")
    assert points.names == {"qcow"}
    assert points["qcow"].load().__name__ == "tap_qcow.driver"
