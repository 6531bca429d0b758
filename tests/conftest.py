"""Fixtures of the core's tests."""

from pathlib import Path

import pytest
from drivers.toy import ToyDriver

from tapcore import Registry


@pytest.fixture
def toy_driver() -> ToyDriver:
    """The toy driver of this test."""
    return ToyDriver()


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_driver: ToyDriver) -> Path:
    """A directory to work in, and the toy driver beside those installed."""
    registry = Registry()
    registry.register(toy_driver)
    monkeypatch.setattr("tapcore.interface.registry._default", registry)
    monkeypatch.chdir(tmp_path)
    return tmp_path
