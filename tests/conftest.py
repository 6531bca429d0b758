"""Fixtures of the core's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import RunningDaemon, daemon_in
from drivers.toy import ToyDriver

from tapcore import Registry
from tapcore.daemon.client import DaemonClient


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


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningDaemon, DaemonClient]]:
    """A daemon for all tests of a module."""
    with daemon_in(tmp_path_factory.mktemp("daemon")) as daemon, daemon.start() as client:
        yield daemon, client


@pytest.fixture
def client(
    running: tuple[RunningDaemon, DaemonClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DaemonClient]:
    """Its client, in a directory to work in; what a test has attached is detached."""
    monkeypatch.chdir(tmp_path)
    _, client = running
    yield client
    for disk in client.disks():
        client.detach(disk["name"], force=True)
